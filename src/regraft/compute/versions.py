"""Versions of regraft and of the libraries that it computes with."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from ..errors import UsageError

__version__ = "0.1.0"

OLDEST, NEWEST = Version("2.10"), Version("2.15")  # of torch; older ones load weights unsafely


def installed(name: str) -> str:
    """Return the version of an installed package; "" where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def remedy_for_torch(torch: str) -> str:
    """Return what to do about torch's version; "" where regraft was tested with it."""
    if not torch:
        return "pip install torch torchvision"
    now = Version(torch).release[:2]  # a candidate or a nightly build counts as its release
    if now < OLDEST.release:
        return f"older than {OLDEST}, which loads weights safely: pip install -U torch torchvision"
    if now > NEWEST.release:
        return f"newer than {NEWEST}, the last one tried: run `regraft demo`, or install that one"
    return ""


def misfit(installed: Callable[[str], str] = installed, requires: Callable[[str], list[str] | None] = requires) -> str:
    """Return what to do where torchvision was built for another torch; "" where they fit.

    torchvision's package names the one torch that it was built for.
    """
    vision, torch = installed("torchvision"), installed("torch")
    if not vision:
        return "pip install torchvision"
    needs = [need for text in requires("torchvision") or [] if (need := Requirement(text)).name == "torch"]
    exact = [one for need in needs for one in need.specifier if one.operator == "=="]
    if not exact or (torch and exact[0].contains(torch, prereleases=True)):
        return ""
    return (
        f"torchvision {vision} is built for torch {exact[0].version}, and {torch or 'none'} is installed: "
        f"pip install -U torch torchvision, both at once"
    )


def check_torchvision() -> None:
    """Raise UsageError, with the remedy, if torchvision does not fit torch.

    torchvision's own import error does not name the cause.
    """
    if remedy := misfit():
        raise UsageError(remedy)
