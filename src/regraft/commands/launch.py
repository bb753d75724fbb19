"""Launcher of ``regraft fit --nproc N``: it starts the ranks on this machine and watches them.

Ranks meet through a file in a folder that only this user may read, and send tensors over the loopback
interface. Nothing listens on another address, and the launcher listens on none.

The launcher names a killed or stopped rank with its signal, on the screen and in result.json. The other ranks
then end: by themselves at the next collective, else by SIGTERM, else by SIGKILL. A rank whose launcher is
gone reads the end of a pipe; it saves and ends as after a signal.
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

LOOK_INTERVAL_S = 0.1  # between two looks at the ranks

MAX_STOPPED_LOOKS = 150  # in a row; a stopped launcher takes none, so they do not count then

END_TIMEOUT_S = 10.0  # for ranks to end by themselves, and again after SIGTERM

SAVE_TIMEOUT_S = 300.0  # for ranks to save after a signal to the launcher, or to one of them

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")


def shell_code(code: int) -> int:
    """Return a process's exit code as a shell's: 128 + the signal that ended it."""
    return code if code >= 0 else 128 - code


def launch(count: int, arguments: Sequence[str], out: Path) -> int:
    """Run ``regraft`` with these arguments in ``count`` ranks; return the exit code of the run ``out``."""
    with temporary_folder("regraft-ranks") as folder:
        pipe, ours = os.pipe()
        launcher = Launcher([], out, folder)
        try:
            with launcher.signals():
                for rank in range(count):
                    launcher.ranks.append(start_rank(rank, count, arguments, folder, pipe))
                return launcher.watch()
        finally:
            launcher.send(signal.SIGKILL)  # no rank may outlive the launcher, even after an error here
            for process in launcher.ranks:
                process.wait()
            os.close(pipe)
            os.close(ours)


def start_rank(rank: int, count: int, arguments: Sequence[str], folder: Path, pipe: int) -> subprocess.Popen[bytes]:
    """Start the process of a rank, which inherits one end of the pipe."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    loopback = loopback_name()
    environment = (
        {"OMP_NUM_THREADS": threads}
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

    names = (
        name for name, addresses in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in addresses)
    )
    return next(names, "lo")


class Launcher:
    """A launcher of ranks, from their start to their end."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]], out: Path, folder: Path) -> None:
        self.ranks, self.out, self.folder = ranks, out, folder
        self.signal = 0  # the first signal to the launcher; 0: none
        self.stopped_looks = Counter[int]()  # rank → looks in a row that found it stopped

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Pass signals on to the ranks inside the block."""

        def on_signal(signum: int, frame: FrameType | None) -> None:
            # a rank ignores a second SIGTERM, because the launcher sends one after a terminal's SIGINT
            again = bool(self.signal) and signum == signal.SIGTERM
            self.signal = self.signal or signum
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
        """Wait for all ranks; return the exit code."""
        while True:
            ended = None not in self.codes()  # asked before the last look for a failed rank
            if (failed := self.failed()) is not None:
                return self.end(failed)
            if ended:
                return 0
            time.sleep(LOOK_INTERVAL_S)

    def codes(self) -> list[int | None]:
        """Return the exit code of each rank; None for one that runs."""
        return [rank.poll() for rank in self.ranks]

    def failed(self) -> int | None:
        """Return the rank that failed; None where none did.

        A rank that a signal ended or stopped comes before one that exited, because the others exit when it
        is gone.
        """
        codes = self.codes()
        killed = [i for i, code in enumerate(codes) if code is not None and code < 0]
        killed.sort(key=lambda i: codes[i] != -signal.SIGKILL)  # others may abort when a rank is gone
        exited = [i for i, code in enumerate(codes) if code is not None and code > 0]
        return next(iter([*killed, *self.stopped(), *exited]), None)

    def stopped(self) -> list[int]:
        """Return the ranks that a signal keeps stopped; a debugger's stop does not count."""
        import psutil

        for i, rank in enumerate(self.ranks):
            status = ""
            with suppress(psutil.Error):
                status = psutil.Process(rank.pid).status() if rank.poll() is None else ""
            self.stopped_looks[i] = self.stopped_looks[i] + 1 if status == psutil.STATUS_STOPPED else 0
        return [i for i, looks in self.stopped_looks.items() if looks > MAX_STOPPED_LOOKS]

    def end(self, failed: int) -> int:
        """Name the failed rank and end the others; return the exit code."""
        code = self.ranks[failed].poll()
        if self.signal and code not in (None, -signal.SIGKILL):  # the rank ended by the launcher's signal
            self.wait(SAVE_TIMEOUT_S, END_TIMEOUT_S)
            return 128 + self.signal
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # it ended by a signal of its own, with the others
            self.wait(END_TIMEOUT_S, SAVE_TIMEOUT_S)
            return code
        if code is not None and code > 0:
            return self.end_as(failed, code)
        sentence = self.sentence(failed, code)
        complain(f"{RankError.__name__}: {sentence}")
        if code is None:
            self.ranks[failed].kill()  # a stopped process handles no other signal
        self.wait(END_TIMEOUT_S, END_TIMEOUT_S)
        self.note(sentence)
        return shell_code(-signal.SIGSTOP if code is None else code)

    def end_as(self, failed: int, code: int) -> int:
        """End the ranks after one that exited; print its error, unless rank 0 has printed its own."""
        self.wait(END_TIMEOUT_S, END_TIMEOUT_S)
        first = self.ranks[0].poll() or 0
        if first > 0 and self.error_of(0):
            return first
        sentence = self.sentence(failed, code)
        what, why = self.error_of(failed) or (f"{RankError.__name__}: {sentence}", sentence)
        complain(what)
        self.note(why)
        return code

    def sentence(self, failed: int, code: int | None) -> str:
        """Return the message for a failed rank: its number, its end, and the remedy."""
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

    def error_of(self, rank: int) -> tuple[str, str] | None:
        """Return (line to print, error alone) that a rank wrote before it failed; None where it wrote none."""
        with suppress(OSError, ValueError):
            what, why = json.loads(error_file(self.folder, rank).read_text(encoding="utf-8"))
            return what, why
        return None

    def wait(self, *seconds: float) -> None:
        """Wait for all ranks. After the first of ``seconds`` send SIGTERM, and after the second SIGKILL."""
        for number, limit in zip((signal.SIGTERM, signal.SIGKILL), seconds, strict=True):
            until = time.monotonic() + limit
            while None in self.codes() and time.monotonic() < until:
                time.sleep(LOOK_INTERVAL_S)
            self.send(number)
        for rank in self.ranks:
            rank.wait()

    def note(self, sentence: str) -> None:
        """Write the failure into result.json, because rank 0 knew of a lost connection at most."""
        from ..runs.folder import LOCK, RunFolder, status_of

        created = (self.out / "log.txt").is_file()  # else the ranks had not created the run yet
        if not created or status_of(self.out) == "finished" or find_holder(self.out / LOCK):
            return
        with suppress(RegraftError, OSError), RunFolder(self.out, resume=True):
            raise RankError(sentence)
