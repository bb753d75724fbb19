"""The command line: its commands by group, its errors, streams and exit codes.

Heavy imports stay inside the commands, so that ``regraft --help`` loads no torch.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RankError, RegraftError, UsageError, from_os_error, kind_of
from ..io import streams
from . import help as about
from . import judge, start, train, use

app = typer.Typer(
    name="regraft",
    help="Transfer learning with evidence: did transfer help, how sure is that, and what did it cost?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None if os.environ.get("NO_COLOR") else "rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for panel, group in (("Start", start), ("Train", train), ("Judge", judge), ("Use", use), ("Help", about)):
    for name, function in group.COMMANDS.items():
        app.command(name, rich_help_panel=panel)(function)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from ..compute.versions import __version__

        streams.echo(f"regraft {__version__}")
        raise typer.Exit


def prints_error(error: Exception, message: str) -> bool:
    """Return whether this rank prints an error, and tell the launcher about it.

    Under regraft's launcher rank 0 prints an error that all ranks see, and the launcher prints one of a lost
    rank. Under torchrun the other ranks wait 3 s, so that torchrun can end them before they print.
    """
    from ..compute.launched import launched, report

    first = os.environ.get("RANK", "0") == "0"
    if launched():
        lost = isinstance(error, RankError)
        if not lost:
            report(message, str(error))
        return first and not lost
    if not first:
        time.sleep(3)
    return True


def make_streams_lenient() -> None:
    """Escape characters that a stream cannot encode, instead of failing. ASCII (a locale "C") becomes UTF-8.

    Printed names of files may hold any character, and bytes that are no text.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_alone = codecs.lookup(stream.encoding).name == "ascii"
            errors = "surrogateescape" if stream is sys.stdin else "backslashreplace"
            with suppress(io.UnsupportedOperation):  # another reader has begun this input
                stream.reconfigure(encoding="utf-8" if ascii_alone else None, errors=errors)


def call(arguments: list[str]) -> None:
    """Run a command and flush its output. Raises UsageError where standard output is closed."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        raise UsageError("standard output is closed: run it again with > /dev/null, or to a file")
    with streams.own_input() as own:
        try:
            app(args=arguments, prog_name="regraft", obj=own)
        finally:
            sys.stdout.flush()


def main() -> None:
    """Run the command line; turn an error into one sentence and an exit code, without a traceback."""
    streams.open_closed()
    make_streams_lenient()
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        call(arguments)
    except BrokenPipeError:
        streams.mute(sys.stdout)  # the reader left (`| head`)
        sys.exit(0)
    except Exception as error:  # every error ends in a sentence and an exit code
        known = from_os_error(error) if isinstance(error, OSError) else error
        if not isinstance(known, RegraftError):  # a fault of regraft
            known, message = None, f"unexpected {type(error).__name__}: {error}"
        else:
            message = f"{kind_of(known)}: {known}"
        prints = prints_error(error, message)
        if debug:
            raise
        if known is not None and isinstance(error, OSError) and error.filename is None:
            streams.mute(sys.stdout)
        if prints:
            streams.complain(message if known else f"{message}\nrun it again with --debug for the traceback")
        sys.exit(known.exit_code if known else 1)
    except KeyboardInterrupt:
        streams.complain("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
