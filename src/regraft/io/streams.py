"""The standard streams: each is open, and input is for regraft alone.

A library that asks a person on standard input finds it empty: an answer there would be a line of data.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


def open_closed() -> None:
    """Open the null device for each standard stream that is closed.

    The next file to be opened would take its number, and what a library prints would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def mute(stream: TextIO) -> None:
    """Send a standard stream nowhere: what it could not take would change the exit code at shutdown."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def shown(text: str) -> str:
    """Escape, as JSON does, each character that is neither printable nor the end of a line: a string of a
    file may hold commands to a terminal."""
    return "\n".join(line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n"))


def _escaped(letter: str) -> str:
    if letter.isprintable() or letter == "\t":
        return letter
    return "\\u007f" if letter == "\x7f" else json.dumps(letter)[1:-1]


def echo(text: str) -> None:
    """Print to standard output, at once."""
    print(shown(text), flush=True)


class Shown:
    """A place for text that a person looks at: what is written there is escaped as ``shown`` says."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> int:
        return self.file.write(shown(text))


def output() -> TextIO | Shown:
    """Return where rows of data go: as they are to a pipe or a file, escaped to a terminal."""
    return Shown(sys.stdout) if sys.stdout.isatty() else sys.stdout


def complain(text: str) -> None:
    """Print to standard error, where that can be: what is said there is no reason to stop."""
    try:
        print(shown(text), file=sys.stderr, flush=True)
    except OSError:
        mute(sys.stderr)


@contextmanager
def own_input() -> Iterator[TextIO]:
    """Yield standard input. Inside, this process and those that it starts see an empty one."""
    given = sys.stdin
    with open(os.devnull, encoding="utf-8") as empty:  # noqa: PTH123
        sys.stdin = empty
        try:
            number = given.fileno() if given is not None else None
        except (OSError, ValueError):  # text in memory, or closed
            number = None
        try:
            if number is None:
                yield empty if given is None else given
                return
            copy = os.dup(number)
            os.dup2(empty.fileno(), number)
            try:
                with open(copy, encoding=given.encoding, errors=given.errors, closefd=False) as own:
                    yield own
            finally:
                os.dup2(copy, number)
                os.close(copy)
        finally:
            sys.stdin = given


Report = Callable[[str], None]
