"""Standard streams: each is open, and regraft alone reads standard input.

Standard input may hold data, so a library that asks a person there finds it empty.
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

    The next opened file would take the number of a closed stream, so a library would print into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def mute(stream: TextIO) -> None:
    """Send a standard stream to the null device, because unwritten text would change the exit code."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def shown(text: str) -> str:
    """Return text with characters escaped, as in JSON, that are neither printable nor a line's end.

    A string of a stranger's file may hold commands to a terminal.
    """
    return "\n".join(line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n"))


def _escaped(letter: str) -> str:
    if letter.isprintable() or letter == "\t":
        return letter
    return "\\u007f" if letter == "\x7f" else json.dumps(letter)[1:-1]


def echo(text: str) -> None:
    """Print text, escaped, to standard output and flush it."""
    print(shown(text), flush=True)


class Shown:
    """A text stream that escapes what is written, as ``shown`` does."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> int:
        return self.file.write(shown(text))


def output() -> TextIO | Shown:
    """Return standard output for rows of data; a terminal gets them escaped, a pipe or file as they are."""
    return Shown(sys.stdout) if sys.stdout.isatty() else sys.stdout


def complain(text: str) -> None:
    """Print text, escaped, to standard error; where that fails, mute it and go on."""
    try:
        print(shown(text), file=sys.stderr, flush=True)
    except OSError:
        mute(sys.stderr)


@contextmanager
def own_input() -> Iterator[TextIO]:
    """Yield standard input. Inside the block this process and its children see an empty one."""
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
