"""Entry point of ``regraft`` and ``python -m regraft``; a launcher starts each rank by it too."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress

from .cli.app import main


def command() -> None:
    """Run the command line and end the process."""
    try:
        main()
    except SystemExit as end:
        leave(end)
        raise


def leave(end: SystemExit) -> None:
    """End the process at once where that loses nothing; else return.

    The interpreter's own shutdown takes torch apart, module by module, for a second and a half. A rank never
    shuts down that way. gloo's threads may still hold tensors, and a tensor freed meanwhile aborts the process
    after its work is done (pytorch/pytorch#179291).
    """
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if "WORLD_SIZE" not in os.environ:
        others = [t for t in threading.enumerate() if t is not threading.main_thread()]
        joined = any(not t.daemon for t in others)  # the interpreter waits for these
        traced = sys.gettrace() or sys.getprofile()  # a tracer writes its results at shutdown
        if "torch" not in sys.modules or joined or traced:
            return
        atexit._run_exitfuncs()  # DataLoader workers, temporary folders
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # closed, full disk, or a reader that left
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    command()
