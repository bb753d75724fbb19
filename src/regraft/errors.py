"""What can go wrong, drawn as a tree; each class owns its exit code.

    RegraftError              1
    ├── UsageError            2   the command line, or a run folder that is already there
    ├── PlanError             2   the plan: all problems at once, each with its line and remedy
    ├── DataError             3   the target data
    ├── SourceError           4   the source model or its weights
    ├── DivergedError         5   a loss that is not finite
    ├── DiskError             6   the disk is full or not writable
    ├── ExportError           7   an export that does not give the run's own predictions
    └── RankError             1   a rank that was killed, stopped or lost

A message is one sentence: what, where (file and row), how many, the remedy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class RegraftError(Exception):
    """A fault that the user can mend. Its text is shown as it is, without a traceback."""

    exit_code = 1


class UsageError(RegraftError):
    exit_code = 2


class PlanError(RegraftError):
    exit_code = 2

    def __init__(self, problems: Sequence[str], where: str = "the plan") -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{where} has {count}\n" + "\n".join(f"  {p}" for p in problems))


class DataError(RegraftError):
    exit_code = 3


class SourceError(RegraftError):
    exit_code = 4


class DivergedError(RegraftError):
    exit_code = 5


class DiskError(RegraftError):
    exit_code = 6


class ExportError(RegraftError):
    exit_code = 7


class RankError(RegraftError):
    """A rank that was killed or stopped, or one without which the others cannot go on."""


MANY = 30  # names; of more than these a message shows the nearest


def kind_of(error: Exception) -> str:
    """Return what a person is told of an error's kind: the class of the tree above that it belongs to."""
    known = (c for c in type(error).__mro__ if c.__module__ == __name__)
    return next(known, type(error)).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint for a name that matches nothing: the nearest known one, else all or the nearest few."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{near[0]}"?'
    if len(names) > MANY:
        alike = [n for n in names if word and word in n] or get_close_matches(word, names, 5, 0.3)
        some = ", ".join((alike or names)[:5])
        return f"there are {len(names):,}, {'the nearest' if alike else 'such as'}: {some}"
    return f"there are: {', '.join(names) or 'none'}"


def shorten(items: Sequence[str], limit: int = 5) -> str:
    """The first few items of a list and a count of the rest, for a message."""
    shown = ", ".join(map(printable, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def printable(text: str) -> str:
    """Names of files may hold anything: line breaks, escape sequences, bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


NAMES = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)

DISKS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
)


def of_the_system(error: OSError) -> RegraftError | None:
    """Return a UsageError for a name that the system refuses, a DiskError for what cannot be written or
    read, and None for any other fault."""
    why, named = error.strerror or str(error), error.filename
    if error.errno in NAMES and named is not None:
        return UsageError(f"{printable(os.fsdecode(named))}: {why}; give another name")
    if error.errno in DISKS:
        where = "standard output or a file" if named is None else printable(os.fsdecode(named))
        return DiskError(f"{where} cannot be written or read: {why}")
    return None
