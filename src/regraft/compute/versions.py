"""Versions of regraft and of the libraries that it computes with."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version

from ..errors import UsageError

__version__ = "0.1.0"

OLDEST, NEWEST = (2, 10), (2, 15)  # of torch; older ones load weights unsafely


def installed(name: str) -> str:
    """ "" where it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def remedy_for_torch(torch: str) -> str:
    """What to do about torch's version; "" where it is one that regraft was tested with."""
    if not torch:
        return "pip install torch torchvision"
    now = tuple(int(n) for n in re.findall(r"\d+", torch)[:2])
    if now < OLDEST:
        return f"older than {dotted(OLDEST)}, which loads weights safely: pip install -U torch torchvision"
    if now > NEWEST:
        return f"newer than {dotted(NEWEST)}, the last one tried: run `regraft demo`, or install that one"
    return ""


def dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def misfit(installed: Callable[[str], str] = installed, requires: Callable[[str], list[str] | None] = requires) -> str:
    """What to do where torchvision was built for another torch, from what its package says; or ""."""
    vision, torch = installed("torchvision"), installed("torch")
    if not vision:
        return "pip install torchvision"
    wanted = [
        match[1] for need in requires("torchvision") or [] if (match := re.match(r"torch\s*\(?==\s*([0-9.]+)", need))
    ]
    plain = torch.partition("+")[0]
    if not wanted or wanted[0] == plain:
        return ""
    return (
        f"torchvision {vision} is built for torch {wanted[0]}, and {torch or 'none'} is installed: "
        f"pip install -U torch torchvision, both at once"
    )


def check_torchvision() -> None:
    """Raises UsageError where torchvision does not fit torch: its own import fails in riddles."""
    if remedy := misfit():
        raise UsageError(remedy)
