"""``make fuzz SECONDS=120``: regraft's readers on input that is damaged at random.

python tools/fuzz.py --seconds 120 [--seed 0] [--out FOLDER] [--only plan,csv]
python tools/fuzz.py --replay plan FOLDER    read a saved input again and show the traceback

The fuzzer damages valid files, by bits and by structure, and reads them. A reader must give a result or
one of regraft's own errors. Anything else is a crash: another exception, a hang, a dead process, more than
MEMORY_BYTES, a file written outside the work folder, a new process or connection, a question to a person,
or a file of the input that is run or imported. FOLDER/crashes gets the input of each crash. FOLDER/counts.json
gets the counts, every two seconds. The same seed gives each reader the same inputs.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fuzz_foreign import foreign_readers
from fuzz_readers import Passing, Reader, readers
from regraft.errors import RegraftError

INPUT_TIMEOUT_S = 20  # for one input
CHILD_TIMEOUT_S = 90  # without a new input, as where a process ignores the alarm
MEMORY_BYTES = 4_000_000_000  # of address space, beyond that of the start
MAX_KEPT = 5  # inputs for one crash


class Hang(BaseException):
    """An input that takes too long. It is no Exception, so that no reader takes it for a bad file."""


class Escape(BaseException):
    """An input that reached beyond the work folder, or that was run."""


escapes: list[str] = []  # of the current input; recorded, because a library may catch Escape
FORBIDDEN_EVENTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pty.spawn",
    "socket.bind",
    "socket.connect",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "builtins.input",
    "ctypes.dlopen",
)


@dataclass
class Count:
    """Outcomes of one reader's inputs."""

    inputs: int = 0
    results: int = 0
    refused: int = 0
    seconds: float = 0.0
    crashes: dict[str, int] = field(default_factory=dict)  # error and place → count


def guard(work: Path) -> None:
    """Raise Escape for any later access beyond ``work``.

    Escapes are files written outside ``work``, new processes, connections, questions to a person, and files in
    ``work`` that are run or imported.
    """
    sys.dont_write_bytecode = True
    inside = str(work.resolve())
    allowed = (inside, "/dev/null")

    def escape(what: str) -> None:
        escapes.append(what)
        raise Escape(what)

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int):
            if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not isinstance(args[0], int):
                path = os.path.realpath(os.fsdecode(args[0]))  # follow links
                if not path.startswith(allowed):
                    escape(f"{path} opened for writing")
        elif event in FORBIDDEN_EVENTS:
            if event != "ctypes.dlopen" or str(args[0]).startswith(inside):
                escape(f"{event} {args}")
        elif event in ("exec", "compile", "import"):
            file = args[1] if event != "exec" else getattr(args[0], "co_filename", None)
            if isinstance(file, str | bytes) and os.fsdecode(file).startswith(inside):
                escape(f"{event} of {os.fsdecode(file)}")

    sys.addaudithook(look)


def alarm(*_: Any) -> None:
    """Raise Hang, as a signal handler."""
    raise Hang(f"no end after {INPUT_TIMEOUT_S} s")


def one(reader: Reader, folder: Path) -> tuple[str, str, str]:
    """Return ("result" | "refused" | "crash", error and place, traceback) of one input."""
    escapes.clear()
    signal.setitimer(signal.ITIMER_REAL, INPUT_TIMEOUT_S)
    try:
        outcome, what = "result", ""
        try:
            reader.read(folder)
        except RegraftError as error:
            outcome, what = "refused", type(error).__name__
        if escapes:  # a library caught Escape and continued
            raise Escape(escapes[0])
        return outcome, what, ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        signal.setitimer(signal.ITIMER_REAL, 0)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "regraft" in f.filename]
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return "crash", f"{type(error).__name__} at {at}", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def keep(out: Path, name: str, what: str, count: int, folder: Path, text: str) -> None:
    """Copy the input of a crash to ``out``, at most MAX_KEPT times for one crash."""
    if count <= MAX_KEPT:
        words = "".join(c if c.isalnum() else "-" for c in f"{name}-{what}-{count}")
        place = out / "crashes" / words
        shutil.rmtree(place, ignore_errors=True)
        if folder.is_dir():  # absent if the process stopped before the first input
            shutil.copytree(folder, place, symlinks=True, ignore=pipes)
        place.mkdir(parents=True, exist_ok=True)
        (place / "traceback.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def pipes(folder: str, names: list[str]) -> list[str]:
    """Return the names that are pipes, for shutil.copytree."""
    return [n for n in names if (Path(folder) / n).is_fifo()]


def emptied(folder: Path) -> Path:
    """Return the folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def work_through(out: Path, work: Path, by_name: dict[str, Reader], seed: int, end: float) -> None:
    """Read inputs until ``end`` in a child process, and write counts meanwhile."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, alarm)
    import matplotlib.font_manager  # noqa: F401  (it may run fc-list, which the guard would forbid)

    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    guard(out)
    counts = read_counts(out)
    for name in by_name:
        counts.setdefault(name, Count())
    saved = 0.0
    while time.monotonic() < end:
        name = min(by_name, key=lambda n: counts[n].seconds)  # give readers equal time
        count, folder = counts[name], emptied(work / "input")
        begun = time.monotonic()
        try:
            by_name[name].make(folder, random.Random(f"{seed} {name} {count.inputs}"))
        except (ValueError, UnicodeError, RecursionError, OSError, OverflowError, TypeError, AttributeError, KeyError):
            count.inputs += 1  # damaging the seed failed, so there is no input
            continue
        (out / "now.txt").write_text(f"{name}\n{count.inputs}\n", encoding="utf-8")
        count.inputs += 1
        outcome, what, text = one(by_name[name], folder)
        count.seconds += time.monotonic() - begun
        if outcome == "crash":
            count.crashes[what] = count.crashes.get(what, 0) + 1
            keep(out, name, what, count.crashes[what], folder, text)
        else:
            count.results += outcome == "result"
            count.refused += outcome == "refused"
        if outcome == "crash" or time.monotonic() - saved > 2:
            write_counts(out, counts)
            saved = time.monotonic()
    write_counts(out, counts)


def write_counts(out: Path, counts: dict[str, Count]) -> None:
    part = out / "counts.part"
    part.write_text(json.dumps({n: asdict(c) for n, c in counts.items()}, indent=1), encoding="utf-8")
    part.replace(out / "counts.json")


def read_counts(out: Path) -> dict[str, Count]:
    path = out / "counts.json"
    return {n: Count(**c) for n, c in json.loads(path.read_text()).items()} if path.exists() else {}


def table(counts: dict[str, Count]) -> str:
    lines = [f"{'reader':<14} {'inputs':>9} {'results':>9} {'refused':>9} {'crashes':>8} {'seconds':>8}"]
    total = Count()
    for name, c in counts.items():
        crashes = sum(c.crashes.values())
        lines.append(f"{name:<14} {c.inputs:>9,} {c.results:>9,} {c.refused:>9,} {crashes:>8,} {c.seconds:>8,.0f}")
        lines += [f"    {n} × {what}" for what, n in c.crashes.items()]
        total.inputs += c.inputs
        total.results += c.results
        total.refused += c.refused
        total.seconds += c.seconds
        total.crashes[name] = crashes
    crashes = sum(total.crashes.values())
    lines.append(
        f"{'all':<14} {total.inputs:>9,} {total.results:>9,} {total.refused:>9,} {crashes:>8,} {total.seconds:>8,.0f}"
    )
    return "\n".join(lines)


def watch(out: Path, work: Path, by_name: dict[str, Reader], seed: int, seconds: float) -> None:
    """Run child processes until the time is up. A child that dies or ignores its alarm is a crash of its input."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        child = os.fork()
        if not child:
            code = 1
            try:
                work_through(out, work, by_name, seed, end)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = None
        while status is None:
            time.sleep(0.2)
            ended, wait_status = os.waitpid(child, os.WNOHANG)
            now = out / "now.txt"
            if ended:
                status = wait_status
            elif now.exists() and time.time() - now.stat().st_mtime > CHILD_TIMEOUT_S:
                os.kill(child, signal.SIGKILL)
        if status:
            if not (out / "now.txt").exists():
                raise SystemExit("the fuzzer failed before its first input")
            name, _, number = (out / "now.txt").read_text().partition("\n")
            counts = read_counts(out)
            count = counts.setdefault(name, Count())
            what = f"process ended with status {status}"
            count.inputs = max(count.inputs, int(number) + 1)
            count.crashes[what] = count.crashes.get(what, 0) + 1
            keep(out, name, what, count.crashes[what], work / "input", what)
            write_counts(out, counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="new folder for counts and crashes")
    parser.add_argument("--only", help="names of readers, separated by commas")
    parser.add_argument("--replay", nargs=2, metavar=("READER", "FOLDER"))
    given = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch) / "out"
        work = out / "work"
        for name in ("STATE", "CACHE"):
            os.environ[f"REGRAFT_{name}"] = str(work / name.lower())
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        by_name = readers(work) | foreign_readers(work)
        if given.replay:
            with Passing():
                by_name[given.replay[0]].read(Path(given.replay[1]))
            return 0
        chosen = given.only.split(",") if given.only else list(by_name)
        watch(out, work, {n: by_name[n] for n in chosen}, given.seed, given.seconds)
        counts = read_counts(out)
        print(table(counts))
        crashed = any(c.crashes for c in counts.values())
        if crashed and given.out is None:
            saved = Path(tempfile.mkdtemp(prefix="fuzz-"))
            shutil.copytree(out / "crashes", saved / "crashes", symlinks=True)
            print(f"the inputs of the crashes are in {saved}")
        shutil.rmtree(work, ignore_errors=True)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
