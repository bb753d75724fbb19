"""``regraft fit --nproc N``: start the ranks on this machine, watch them, and name one that fails.

Ranks meet through a file in a folder that this user alone may read, and send their tensors over the
loopback interface alone. Nothing listens on another address, and the launcher itself not at all.

A rank that is killed or stopped is named with its signal, here and in result.json. The others then end:
by themselves, since they notice at the next collective, else by SIGTERM, else by SIGKILL. A rank whose
launcher is gone sees the end of a pipe, and saves and ends as at a signal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ..compute.launched import FOLDER, PIPE, error_file
from ..errors import RankError, RegraftError
from ..io.command_lines import command, python
from ..io.locks import find_holder
from ..io.streams import complain
from ..io.work_folders import temporary_folder

LOOK_S = 0.1  # between two looks at the ranks

STOPPED_LOOKS = 150  # that may find a rank stopped; none is taken while the launcher is stopped too

PATIENCE_S = 10.0  # for ranks to end by themselves, and again after SIGTERM

SAVING_S = 300.0  # for ranks to save after a signal to the launcher, or to one of them

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")


def shell_code(code: int) -> int:
    """Return a process's exit code; where a signal ended it 128 + that, as a shell says it."""
    return code if code >= 0 else 128 - code


def launch(count: int, arguments: Sequence[str], out: Path) -> int:
    """Run ``regraft`` with these arguments in so many ranks; → the exit code of the run ``out``."""
    with temporary_folder("regraft-ranks") as folder:
        pipe, ours = os.pipe()
        launcher = Launcher([], out, folder)
        try:
            with launcher.signals():
                for rank in range(count):
                    launcher.ranks.append(started(rank, count, arguments, folder, pipe))
                return launcher.watch()
        finally:
            launcher.send(signal.SIGKILL)  # none is left, whatever happened here
            for process in launcher.ranks:
                process.wait()
            os.close(pipe)
            os.close(ours)


def started(rank: int, count: int, arguments: Sequence[str], folder: Path, pipe: int) -> subprocess.Popen[bytes]:
    each = str(max(1, (os.cpu_count() or 1) // count))
    loopback = loopback_name()
    environment = (
        {"OMP_NUM_THREADS": each}
        | os.environ
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            FOLDER: str(folder),
            PIPE: str(pipe),
            "GLOO_SOCKET_IFNAME": loopback,
            "NCCL_SOCKET_IFNAME": f"={loopback}",
        }
    )
    words = [*python(), "-m", "regraft", *arguments]
    return subprocess.Popen(words, env=environment, pass_fds=[pipe], stdin=subprocess.DEVNULL)


def loopback_name() -> str:
    """Return the name of the loopback interface: lo, or lo0 on macOS."""
    import psutil

    found = (
        name for name, addresses in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in addresses)
    )
    return next(found, "lo")


class Launcher:
    """The ranks of a run, from their start to their end."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]], out: Path, folder: Path) -> None:
        self.ranks, self.out, self.folder = ranks, out, folder
        self.asked = 0  # the signal that came to the launcher
        self.looks = Counter[int]()  # rank → how often in a row it was found stopped

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Pass signals on to the ranks inside the block."""

        def on_signal(signum: int, frame: FrameType | None) -> None:
            # a rank ignores a second SIGTERM, since the launcher sends one after a terminal's SIGINT
            again = bool(self.asked) and signum == signal.SIGTERM
            self.asked = self.asked or signum
            self.send(signal.SIGINT if again else signal.SIGTERM)

        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in FORWARDED if hasattr(signal, name)]
            for number in numbers:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                    before[number] = signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def send(self, number: int) -> None:
        """Send a signal to every rank that runs."""
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def watch(self) -> int:
        """Wait for all ranks; → the exit code."""
        while True:
            over = None not in self.codes()  # before the last look for one that failed
            if (failed := self.failed()) is not None:
                return self.end(failed)
            if over:
                return 0
            time.sleep(LOOK_S)

    def codes(self) -> list[int | None]:
        return [rank.poll() for rank in self.ranks]

    def failed(self) -> int | None:
        """Return the rank that failed first: one that a signal ended or stopped before one that exited,
        since the others exit at once when it is gone."""
        codes = self.codes()
        killed = [i for i, code in enumerate(codes) if code is not None and code < 0]
        killed.sort(key=lambda i: codes[i] != -signal.SIGKILL)  # others may abort when it is gone
        exited = [i for i, code in enumerate(codes) if code is not None and code > 0]
        return next(iter([*killed, *self.stopped(), *exited]), None)

    def stopped(self) -> list[int]:
        """Return the ranks that stay stopped; a debugger's stop is not one."""
        import psutil

        for i, rank in enumerate(self.ranks):
            status = ""
            with suppress(psutil.Error):
                status = psutil.Process(rank.pid).status() if rank.poll() is None else ""
            self.looks[i] = self.looks[i] + 1 if status == psutil.STATUS_STOPPED else 0
        return [i for i, looks in self.looks.items() if looks > STOPPED_LOOKS]

    def end(self, failed: int) -> int:
        """Name the rank that failed and end the others; → the exit code."""
        code = self.ranks[failed].poll()
        if self.asked and code not in (None, -signal.SIGKILL):  # it ended since it was asked to
            self.wait(SAVING_S, PATIENCE_S)
            return 128 + self.asked
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # likewise, and it told the others
            self.wait(PATIENCE_S, SAVING_S)
            return code
        if code is not None and code > 0:
            return self.end_as(failed, code)
        sentence = self.sentence(failed, code)
        complain(f"{RankError.__name__}: {sentence}")
        if code is None:
            self.ranks[failed].kill()  # it would not see another signal
        self.wait(PATIENCE_S, PATIENCE_S)
        self.note(sentence)
        return shell_code(-signal.SIGSTOP if code is None else code)

    def end_as(self, failed: int, code: int) -> int:
        """End the ranks after one that failed by itself; say its error, unless rank 0 has said its own."""
        self.wait(PATIENCE_S, PATIENCE_S)
        first = self.ranks[0].poll() or 0
        if first > 0 and self.told(0):
            return first
        sentence = self.sentence(failed, code)
        what, why = self.told(failed) or (f"{RankError.__name__}: {sentence}", sentence)
        complain(what)
        self.note(why)
        return code

    def sentence(self, failed: int, code: int | None) -> str:
        name = f"rank {failed} of {len(self.ranks)}"
        again = f"go on with `{command('fit', '--resume', self.out)}`"
        again = again if (self.out / "plan.toml").is_file() else "start it again"
        if code is not None and code > 0:
            return f"{name} ended with exit code {code} and gave no reason: {again}"
        number = signal.SIGSTOP if code is None else -code
        what = f"{name} was {'stopped' if code is None else 'killed'} (signal {int(number)}"
        with suppress(ValueError):
            what += f", {signal.Signals(number).name}"
        what += "; perhaps out of memory)" if number == signal.SIGKILL else ")"
        return f"{what}: {again}"

    def told(self, rank: int) -> tuple[str, str] | None:
        """Return (what to print, the error alone) of a rank that has told why it fails."""
        with suppress(OSError, ValueError):
            what, why = json.loads(error_file(self.folder, rank).read_text(encoding="utf-8"))
            return what, why
        return None

    def wait(self, *seconds: float) -> None:
        """Wait for all ranks; those that do not end in time get SIGTERM, and then SIGKILL."""
        for number, limit in zip((signal.SIGTERM, signal.SIGKILL), seconds, strict=True):
            until = time.monotonic() + limit
            while None in self.codes() and time.monotonic() < until:
                time.sleep(LOOK_S)
            self.send(number)
        for rank in self.ranks:
            rank.wait()

    def note(self, sentence: str) -> None:
        """Write into result.json why the run failed; rank 0 knew of a lost connection at most."""
        from ..runs.folder import LOCK, RunFolder, status_of

        made = (self.out / "log.txt").is_file()  # else they had not come so far
        if not made or status_of(self.out) == "finished" or find_holder(self.out / LOCK):
            return
        with suppress(RegraftError, OSError), RunFolder(self.out, resume=True):
            raise RankError(sentence)
