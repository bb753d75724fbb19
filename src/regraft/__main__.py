"""``regraft`` and ``python -m regraft``, which is also what a launcher of several processes starts."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress

from .cli.app import main


def command() -> None:
    try:
        main()
    except SystemExit as end:
        leave(end)
        raise


def leave(end: SystemExit) -> None:
    """End the process at once where nothing is lost by it; else return.

    The interpreter's own way takes torch and its kin apart, module by module, for a second and a half. Of
    several processes none goes that way: gloo's threads may still hold tensors, and one that is let go of
    meanwhile aborts the process after its work is done (pytorch/pytorch#179291).
    """
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if "WORLD_SIZE" not in os.environ:
        others = [t for t in threading.enumerate() if t is not threading.main_thread()]
        waited_for = any(not t.daemon for t in others)
        watched = sys.gettrace() or sys.getprofile()  # by what writes its findings at the end
        if "torch" not in sys.modules or waited_for or watched:
            return
        atexit._run_exitfuncs()  # loader processes, temporary folders
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # the reader has gone, the disk is full, it is closed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    command()
