"""Compilation of a training step by torch.compile: the same numbers to rounding."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from ..errors import PlanError, RegraftError

if TYPE_CHECKING:
    from torch import nn


COMPILERS = {"darwin": "clang++", "win32": "cl"}  # torch's choice if CXX names none, by platform; else g++


def check_compiler(device: torch.device) -> None:
    """Raise PlanError if this machine lacks a compiler for the device."""
    name = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    problem = ""
    if device.type == "cpu" and shutil.which(name) is None:
        problem = f"there is no C++ compiler {name} here: install one, name another one by CXX"
    elif device.type == "cuda" and find_spec("triton") is None:
        problem = "torch compiles for a GPU by triton, which is not installed: install it"
    if problem:
        raise PlanError(f"fit.compile: {problem}, or set it to false")


def compile_module(module: nn.Module) -> Callable[..., Any]:
    """Return the module, compiled at its first call. Dropout draws the numbers that it draws uncompiled.

    Earlier compilations are dropped: torch stops compiling after a few sets of trainable weights. The call
    raises RegraftError if torch cannot compile the module.
    """
    torch.compiler.reset()
    run = torch.compile(module, options={"fallback_random": True})

    def call(*inputs: Any) -> Any:
        try:
            return run(*inputs)
        except Exception as error:  # the compiler's errors share no base class; others are raised again
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            first = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
            raise RegraftError(
                f"torch.compile fails on this model ({type(error).__name__}: {first}): set fit.compile to false"
            ) from error

    return call
