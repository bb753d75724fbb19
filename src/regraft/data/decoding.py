"""Decoding of images in worker processes with limits of time and memory.

A process cannot stop a decoder of its own: it is C code, or a loop of Pillow's. So an image that may cost
much is decoded in a worker. The kernel ends the worker after its processor time (ITIMER_PROF on Linux and
macOS), and the parent ends it after a wall-clock time. RLIMIT_AS bounds its memory on Linux; elsewhere the
limit of pixels does. A worker imports Pillow and numpy but not torch, so a new one starts in 0.2 s.

A worker reads requests from its standard input and answers on its standard output: a line of JSON, then
bytes, in both directions. The parent unpickles nothing that a worker sends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, RegraftError
from .image_costs import LARGE_BYTES, bounded, excess
from .images import MAX_PIXELS, UNREADABLE, TooCostlyError, TooManyPixelsError, facts_of, picture_of, resized
from .types import PictureFacts

LOOK_CPU_S = 30.0  # processor time for an image of a data folder

LOOK_WALL_S = 300.0  # wall-clock time for it

QUICK_CPU_S = 0.5  # processor time for an image of a request, which other workers decode beside

SLOW_CPU_S = 10.0  # processor time for one that takes longer; one worker decodes these in turn

SMALL_FILE_BYTES = 1_000_000  # files up to this size have workers of their own

QUICK_PIXELS = 12_500_000  # an image of a phone; larger ones go to the worker for slow images

BYTES_PER_PIXEL = 16  # coefficients of a progressive JPEG, its pixels and a copy of them

BASE_BYTES = 400_000_000  # address space of a worker that decodes nothing

MAX_REPLY_BYTES = 4 * MAX_PIXELS

SLOW_NICENESS = 10  # of the worker for slow images

ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000",  # glibc then returns an image's memory to the system
}

KINDS: dict[str, type[DataError]] = {"pixels": TooManyPixelsError, "cost": TooCostlyError, "data": DataError}


class SlowError(TooCostlyError):
    """An image whose decoding took more than its time."""


class StoppedError(RegraftError):
    """A worker that was closed, or that did not start."""


# ---------------------------------------------------------------- a worker, seen from its parent


class Worker:
    """A process that decodes one image at a time. It starts at the first request."""

    def __init__(self, pixels: int = MAX_PIXELS, niceness: int = 0) -> None:
        self._arguments = [str(BASE_BYTES + BYTES_PER_PIXEL * pixels), str(niceness)]
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process, if it does not run; return it. Raises StoppedError where it does not start."""
        with self._lock:
            if self._closed:
                raise StoppedError("the picture is not decoded: its worker was stopped")
            if self._process is not None and self._process.poll() is not None:
                _release(self._process)  # it was killed between two requests
                self._process = None
            if self._process is None:
                self._process = _started(self._arguments)
            return self._process

    def ask(self, request: dict[str, Any], content: bytes, seconds: float, wall: float) -> tuple[dict[str, Any], bytes]:
        """Send a request; return the reply: a record and bytes.

        ``seconds`` of processor time and ``wall`` seconds end the worker. Raises SlowError then, and
        TooCostlyError where the worker ended otherwise.
        """
        process, late = self.start(), threading.Event()
        assert process.stdin is not None and process.stdout is not None

        def end() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(wall, end)
        clock.daemon = True
        clock.start()
        head: dict[str, Any] = {}
        body = b""
        try:
            with suppress(OSError, ValueError, KeyError):  # the worker ended
                asked = request | {"bytes": len(content), "seconds": seconds}
                process.stdin.write(json.dumps(asked).encode() + b"\n")
                process.stdin.write(content)
                process.stdin.flush()
                head = json.loads(process.stdout.readline(MAX_REPLY_BYTES))
                body = process.stdout.read(min(head["bytes"], MAX_REPLY_BYTES))
        finally:
            clock.cancel()
        if head and len(body) == head["bytes"]:
            return head, body
        code = self._end(process)
        if self._closed:
            raise StoppedError("the picture is not decoded: its worker was stopped")
        if late.is_set() or code == -getattr(signal, "SIGPROF", 0):
            raise SlowError(f"decoding takes more than {wall if late.is_set() else seconds:g} s")
        raise TooCostlyError(f"decoding ended the process that did it (exit code {code})")

    def close(self) -> None:
        """Kill the process, and refuse to start another."""
        with self._lock:
            self._closed, process = True, self._process
        if process is not None:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        process.kill()
        code = process.wait()
        _release(process)
        with self._lock:
            self._process = None
        return code


def _release(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # bytes that were not written
            pipe.close()


def _started(arguments: list[str]) -> subprocess.Popen[bytes]:
    code = "import sys; sys.path.insert(0, sys.argv[1]); from regraft.data.decoding import work; work()"
    package = str(Path(__file__).parents[2])
    own: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}  # Ctrl-C must not reach it
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, package, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ENVIRONMENT,
            **own,
        )
    except OSError as error:
        raise StoppedError(f"no process to decode pictures could be started: {error}") from error


def _checked(head: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a reply's record. Raises DataError for the error that it holds."""
    if "error" in head:
        raise KINDS[head["kind"]](f"{name} {UNREADABLE}{head['error']}")
    return head


# ---------------------------------------------------------------- images of requests


@dataclass(frozen=True)
class Wanted:
    """Format of a decoded image."""

    channels: int
    resize: int | tuple[int, int]  # pixels of the shorter side, or (height, width)
    resample: int  # number of Pillow's filter
    max_pixels: int = MAX_PIXELS  # of the file; more are refused


@dataclass(order=True)
class _Job:
    size: int  # bytes of the file; small files come first
    number: int  # in order of arrival
    content: bytes = field(compare=False, default=b"")
    wanted: Wanted | None = field(compare=False, default=None)  # None ends the thread
    answer: Future[Image.Image] = field(compare=False, default_factory=Future)

    def forget(self, answer: Future[Image.Image]) -> None:
        """Drop the file of a job that is done or cancelled, because it may still be in a queue."""
        self.content = b""


class Decoders:
    """Workers for the images of requests: they decode quick images side by side and slow ones in turn.

    A large image, or one that takes longer than QUICK_CPU_S, goes to the one worker for slow images. So
    costly images wait for each other alone, and only one of them takes memory. Small files take little time
    whatever they hold, and have workers of their own.
    """

    def __init__(self, workers: int | None = None, wall: float = 30.0) -> None:
        count = workers or min(8, max(2, os.cpu_count() or 1))
        self._wall = wall
        self._small: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._quick: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._slow: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._last = Worker(niceness=SLOW_NICENESS)
        self._workers = [
            *((Worker(QUICK_PIXELS), self._small) for _ in range(count)),
            *((Worker(QUICK_PIXELS), self._quick) for _ in range(count)),
            (self._last, self._slow),
        ]
        self._number, self._closed, self._lock = 0, False, threading.Lock()
        for worker in self._workers:
            threading.Thread(target=self._work, args=worker, daemon=True).start()

    def warm_up(self) -> None:
        """Start the workers for small files before the first request."""
        for worker, jobs in self._workers:
            if jobs is self._small:
                worker.start()

    def submit(self, content: bytes, wanted: Wanted) -> Future[Image.Image]:
        """Return a future of the image, resized. It raises DataError or StoppedError."""
        with self._lock:
            if self._closed:
                raise StoppedError("the server is stopping")
            self._number += 1
            job = _Job(len(content), self._number, content, wanted)
        job.answer.add_done_callback(job.forget)
        (self._small if job.size <= SMALL_FILE_BYTES else self._quick).put(job)
        return job.answer

    def close(self) -> None:
        """Kill all workers."""
        with self._lock:
            self._closed = True
        for worker, jobs in self._workers:
            worker.close()
            jobs.put(_Job(sys.maxsize, 0))  # last in the queue; the jobs before it fail at once

    def _work(self, worker: Worker, jobs: queue.PriorityQueue[_Job]) -> None:
        slow = worker is self._last
        while (job := jobs.get()).wanted is not None:
            if job.answer.done():  # cancelled
                continue
            try:
                picture = self._decoded(worker, job.content, job.wanted, slow)
            except (SlowError, TooManyPixelsError) as error:
                within = isinstance(error, SlowError) or job.wanted.max_pixels > QUICK_PIXELS
                if within and not slow:
                    self._slow.put(job)
                else:
                    _fail(job, error)
            except Exception as error:  # the caller gets the error, and the thread goes on
                _fail(job, error)
            else:
                with suppress(InvalidStateError):  # cancelled meanwhile
                    job.answer.set_result(picture)

    def _decoded(self, worker: Worker, content: bytes, wanted: Wanted, slow: bool) -> Image.Image:
        request = asdict(wanted)
        if not slow:
            request["max_pixels"] = min(wanted.max_pixels, QUICK_PIXELS)
        try:
            head, body = worker.ask(request, content, SLOW_CPU_S if slow else QUICK_CPU_S, self._wall)
        except TooCostlyError as error:
            raise type(error)(f"the upload {UNREADABLE}{error}") from error
        head = _checked(head, "the upload")
        return Image.frombytes(head["mode"], tuple(head["size"]), body)


def _fail(job: _Job, error: Exception) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        job.answer.set_exception(error)


# ---------------------------------------------------------------- images of a data folder


class Lookers:
    """Readers of images' facts. A file that may take a decoder long is read in a worker.

    Many threads may look at once, and each uses a worker of its own. Leaving the block ends the workers.
    """

    def __init__(self) -> None:
        self._free: list[Worker] = []
        self._all: list[Worker] = []

    def __enter__(self) -> Lookers:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._all:
            worker.close()

    def look(self, path: Path) -> PictureFacts:
        """Return an image's facts. Raises DataError for a file that does not read or costs too much."""
        if bounded(path):
            return facts_of(path)
        try:
            worker = self._free.pop()
        except IndexError:
            worker = Worker()
            self._all.append(worker)
        try:
            head, _ = worker.ask({"path": str(path)}, b"", LOOK_CPU_S, LOOK_WALL_S)
        except TooCostlyError as error:
            raise DataError(f"{path} {UNREADABLE}{error}") from error
        finally:
            self._free.append(worker)
        facts = _checked(head, str(path))["facts"]
        facts |= {"size": tuple(facts["size"]), "thumb": bytes.fromhex(facts["thumb"])}
        return PictureFacts(**facts)


def vet(paths: Iterable[str]) -> None:
    """Raise DataError for the first image that would take this process too long."""
    with Lookers() as lookers:
        for path in paths:
            if not bounded(Path(path)):
                lookers.look(Path(path))


# ---------------------------------------------------------------- in the worker


def work() -> None:
    """Answer requests until the parent closes their pipe. Only a worker process calls this."""
    memory, niceness = int(sys.argv[2]), int(sys.argv[3])
    _limit(memory, niceness)
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the parent would take a library's print for an answer
    while line := incoming.readline():
        request = json.loads(line)
        content = incoming.read(request["bytes"])
        _allow(request["seconds"])
        head, body = _answer(request, content)
        _allow(0)
        del content
        outgoing.write(json.dumps(head | {"bytes": len(body)}).encode() + b"\n")
        outgoing.write(body)
        outgoing.flush()


def _limit(memory: int, niceness: int) -> None:
    """Limit this process's address space, in bytes where the system can, and raise its niceness."""
    try:
        import resource
    except ImportError:  # Windows
        return
    os.nice(niceness)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _allow(seconds: float) -> None:
    """Let the process compute for so many seconds; 0 removes the limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        if "path" in request:
            return {"facts": _facts(Path(request["path"]))}, b""
        picture = picture_of(content, request["channels"], request["max_pixels"])
        wanted = request["resize"]
        size = wanted if isinstance(wanted, int) else (wanted[0], wanted[1])
        picture = resized(picture, size, request["resample"])
        return {"mode": picture.mode, "size": picture.size}, picture.tobytes()
    except (DataError, MemoryError) as error:
        kind = next((k for k, of in KINDS.items() if isinstance(error, of)), "cost")
        return {"error": str(error).partition(UNREADABLE)[2] or "out of memory", "kind": kind}, b""


def _facts(path: Path) -> dict[str, Any]:
    if path.stat().st_size <= LARGE_BYTES and (why := excess(path.read_bytes())):
        raise TooCostlyError(UNREADABLE + why)
    facts = asdict(facts_of(path))
    return facts | {"thumb": facts["thumb"].hex()}
