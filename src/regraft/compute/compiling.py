"""torch.compile for a training step: the same numbers to rounding, and one sentence where it fails."""

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


COMPILERS = {"darwin": "clang++", "win32": "cl"}  # that torch takes where CXX names none; else g++


def check_compiler(device: torch.device) -> None:
    """Raises PlanError where there is nothing to compile with."""
    name = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    problem = ""
    if device.type == "cpu" and shutil.which(name) is None:
        problem = f"there is no C++ compiler {name} here: install one, name another one by CXX"
    elif device.type == "cuda" and find_spec("triton") is None:
        problem = "torch compiles for a GPU by triton, which is not installed: install it"
    if problem:
        raise PlanError([f"fit.compile: {problem}, or set it to false"])


def compiled(module: nn.Module) -> Callable[..., Any]:
    """The module compiled, all that was compiled before forgotten: torch would give up after a few sets
    of trainable weights, and go on uncompiled. Dropout draws what it draws uncompiled.

    The call raises RegraftError where the module cannot be compiled.
    """
    torch.compiler.reset()
    run = torch.compile(module, options={"fallback_random": True})

    def call(*inputs: Any) -> Any:
        try:
            return run(*inputs)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            first = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
            raise RegraftError(
                f"torch.compile fails on this model ({type(error).__name__}: {first}): set fit.compile to false"
            ) from error

    return call
