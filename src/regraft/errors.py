"""Errors, drawn as a tree; each class owns its exit code.

    RegraftError              1
    ├── UsageError            2   the command line, or a run folder that is already there
    ├── PlanError             2   the plan: all problems at once, each with its line and remedy
    ├── DataError             3   the target data
    ├── SourceError           4   the source model or its weights
    ├── DivergedError         5   a loss that is not finite
    ├── DiskError             6   the disk is full or not writable
    ├── ExportError           7   an export that does not give the run's own predictions
    ├── StudyError            8   a search's database that is away, or a study of something else
    └── RankError             1   a rank that was killed, stopped or lost

A message says what failed, where (file and row) and how many, then the remedy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class RegraftError(Exception):
    """A fault that the user can mend. The command line prints its text without a traceback."""

    exit_code = 1


class UsageError(RegraftError):
    """A command line that does not fit, or a run folder that exists already."""

    exit_code = 2


class PlanError(RegraftError):
    """All problems of a plan at once, each with its line and remedy."""

    exit_code = 2

    def __init__(self, problems: Sequence[str] | str, where: str = "the plan") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{where} has {count}\n" + "\n".join(f"  {p}" for p in self.problems))


class DataError(RegraftError):
    """Target data that cannot be used."""

    exit_code = 3


class SourceError(RegraftError):
    """A source model, or its weights, that cannot be used."""

    exit_code = 4


class DivergedError(RegraftError):
    """A loss or a score that is not finite."""

    exit_code = 5


class DiskError(RegraftError):
    """A disk that is full or not writable."""

    exit_code = 6


class ExportError(RegraftError):
    """An export that does not give the run's own predictions."""

    exit_code = 7


class StudyError(RegraftError):
    """A database of a search that cannot be reached, a study of other data or another plan, or no trial that ended."""

    exit_code = 8


class RankError(RegraftError):
    """A rank that was killed or stopped, or whose loss stops the others."""


MAX_NAMES_SHOWN = 30  # of more names than these, a message shows the nearest


def kind_of(error: Exception) -> str:
    """Return the name of the class in the tree above that an error belongs to."""
    known = (c for c in type(error).__mro__ if c.__module__ == __name__)
    return next(known, type(error)).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint for a name that matches nothing: the nearest known name, else all of them or the nearest few."""
    names = sorted(known)
    nearest = get_close_matches(word, names, n=1, cutoff=0.6)
    if nearest:
        return f'did you mean "{nearest[0]}"?'
    if len(names) > MAX_NAMES_SHOWN:
        alike = [n for n in names if word and word in n] or get_close_matches(word, names, 5, 0.3)
        some = ", ".join((alike or names)[:5])
        return f"there are {len(names):,}, {'the nearest' if alike else 'such as'}: {some}"
    return f"there are: {', '.join(names) or 'none'}"


def shorten(items: Sequence[str], limit: int = 5) -> str:
    """Return the first few items of a list and the number of the others, for a message."""
    shown = ", ".join(map(printable, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def printable(text: str) -> str:
    """Escape characters that no terminal can print: names of files may hold line breaks and escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


NAME_ERRNOS = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)

DISK_ERRNOS = (
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


def from_os_error(error: OSError) -> RegraftError | None:
    """Return the regraft error for an operating system error, or None where there is none.

    A name that the system refuses gives a UsageError, a file that cannot be read or written a DiskError.
    """
    why, named = error.strerror or str(error), error.filename
    if error.errno in NAME_ERRNOS and named is not None:
        return UsageError(f"{printable(os.fsdecode(named))}: {why}; give another name")
    if error.errno in DISK_ERRNOS:
        where = "standard output or a file" if named is None else printable(os.fsdecode(named))
        return DiskError(f"{where} cannot be written or read: {why}")
    return None
