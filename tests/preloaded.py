"""Processes that begin with torch and its kin loaded, for tests in which the start of one proves nothing.

A server imports the large libraries, nothing of regraft, and forks. Inside ``Server.redirected`` a command of
this interpreter that subprocess starts is such a fork: a child of this process with its own arguments,
environment, folder and streams, so that its status, its signals and its pipes are those of any process. Ranks
that a launcher starts fork from the launcher. What is not understood is started as usual.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn
from unittest import mock

PATHS: list[str] = []  # of the server's interpreter, without the folder of this file
LIBRARIES = """
numpy torch torch._dynamo torch.distributed.fsdp torch.export torchvision timm transformers accelerate peft
sklearn.linear_model sklearn.model_selection scipy.stats safetensors.torch pydantic typer rich.progress jinja2
pyarrow.parquet transformers.models.auto.modeling_auto transformers.models.bert.modeling_bert
transformers.models.vit.modeling_vit
"""
UNDERSTOOD = {"PYTHONPATH", "PYTHONWARNINGS", "PYTHONIOENCODING", "PYTHONUNBUFFERED"}
UNDERSTOOD |= {"PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED"}  # of all forks alike
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <sys/prctl.h>
MAX_REQUEST_BYTES = 1 << 20
HIGH_FD = 200  # received streams are moved there, out of the way of the numbers that they shall have
REAL = subprocess.__dict__.get("_fork_exec")  # what Popen calls; a private name
HERE = REAL is not None and sys.platform == "linux"  # else everything starts as usual
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({place!r})
os.umask(mask := os.umask(0))
words = [{python!r}, "-m", "regraft", *sys.argv[1:]]
request = dict(words=words, environment=dict(os.environ), folder=os.getcwd(), streams=[0, 1, 2], new_session=False)
socket.send_fds(server, [json.dumps(request | dict(mask=mask, shim=True)).encode()], [0, 1, 2])
child = int(server.recv(100))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(child, number))
code = os.waitstatus_to_exitcode(int(server.recv(100)))
sys.exit(code if code >= 0 else 128 - code)
"""


class Command(NamedTuple):
    """What a fork is to become."""

    kind: str  # "-m", "-c" or "file"
    name: str  # module, code or path
    arguments: list[str]
    safe_path: bool
    quiet: bool  # warnings are ignored


def understood(words: list[str], environment: dict[str, str]) -> Command | None:
    """Return the command of this interpreter, or None for another program or for options that need a fresh start."""
    if not words or words[0] != sys.executable:
        return None
    python = {name for name in environment if name.startswith("PYTHON")}
    if not python <= UNDERSTOOD or environment.get("PYTHONWARNINGS", "ignore") != "ignore":
        return None
    rest, safe, quiet = words[1:], False, "PYTHONWARNINGS" in environment
    while rest[:1] == ["-P"] or rest[:2] == ["-W", "ignore"]:
        safe, quiet = safe or rest[0] == "-P", quiet or rest[0] == "-W"
        rest = rest[1 if rest[0] == "-P" else 2 :]
    if len(rest) > 1 and rest[0] in ("-m", "-c"):
        return Command(rest[0], rest[1], rest[2:], safe, quiet)
    if rest and rest[0].endswith(".py"):
        return Command("file", rest[0], rest[1:], safe, quiet)
    return None


class Start(NamedTuple):
    """The arguments of subprocess._fork_exec that matter here."""

    words: list[str]
    environment: dict[str, str]
    folder: str
    streams: dict[int, int]  # number in the new process → number in this one
    new_session: bool

    @classmethod
    def of(cls, given: tuple[Any, ...]) -> Start | None:
        words, _, close_fds, keep, cwd, env, stdin, _, _, stdout, _, stderr, _, error_pipe, _, session = given[:16]
        if not close_fds or any(callable(value) for value in given[16:]):
            return None
        pairs = os.environb.items() if env is None else (item.split(b"=", 1) for item in env)
        streams = {n: n if fd == -1 else fd for n, fd in enumerate((stdin, stdout, stderr))}
        streams |= {fd: fd for fd in keep if fd != error_pipe}
        return cls(
            [os.fsdecode(word) for word in words],
            {os.fsdecode(name): os.fsdecode(value) for name, value in pairs},
            str(Path.cwd() / os.fsdecode(cwd or "")),  # as the caller sees it, whose folder may be another
            streams,
            bool(session),
        )


class Server:
    """The process that holds the libraries, started when it is first needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.channel: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = os.getpid()
        self.place = ""  # the socket of shims

    @contextmanager
    def redirected(self) -> Iterator[None]:
        """Inside the block, subprocess starts commands of this interpreter here."""
        if not HERE:
            yield
            return
        with mock.patch.object(subprocess, "_fork_exec", self.fork_exec):
            yield

    def fork_exec(self, *given: Any) -> int:
        """Start what subprocess asks for; return its process id."""
        start = Start.of(given)
        if start is None or os.getpid() != self.owner or understood(start.words, start.environment) is None:
            pid: int = REAL(*given)  # type: ignore[misc]
            return pid
        with self.lock:
            return self.fork(start)

    def fork(self, start: Start) -> int:
        channel, libc = self.ready(), ctypes.CDLL(None)
        mask = os.umask(0)
        os.umask(mask)
        request = start._asdict() | {"streams": list(start.streams), "mask": mask, "shim": False}
        # the fork's parent ends at once, so that the fork becomes a child of this process
        libc.prctl(SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(channel, [json.dumps(request).encode()], list(start.streams.values()))
            answer = channel.recv(100)
        finally:
            libc.prctl(SUBREAPER, 0, 0, 0, 0)  # orphans of tests are not ours
        if not answer:
            raise OSError("the server of preloaded processes has ended")
        return int(answer)

    def shim(self, folder: Path) -> Path:
        """Write a program ``regraft`` that runs here what a shell asks of it; return its folder, empty elsewhere."""
        folder.mkdir()
        if not HERE:
            return folder
        self.ready()
        file = folder / "regraft"
        file.write_text(SHIM.format(python=sys.executable, place=self.place))
        file.chmod(0o755)
        return folder

    def ready(self) -> socket.socket:
        """Start the server, unless it runs; return the way to it."""
        if self.channel is None:
            self.place = str(Path(tempfile.mkdtemp(prefix="preloaded-")) / "socket")
            self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            shims = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            shims.bind(self.place)
            shims.listen()
            given = [theirs.fileno(), shims.fileno()]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            with theirs, shims, mock.patch.object(subprocess, "_fork_exec", REAL):
                self.process = subprocess.Popen(
                    [sys.executable, "-W", "ignore", __file__, *map(str, given)],
                    env=environment,
                    pass_fds=given,
                    stdin=subprocess.DEVNULL,
                )
        return self.channel

    def close(self) -> None:
        """End the server. Its children go on."""
        if self.channel is not None and self.process is not None:
            self.channel.close()
            self.process.wait(timeout=60)
            shutil.rmtree(Path(self.place).parent)


# ---------------------------------------------------------------- in the server and its children


def serve(channel: socket.socket, shims: socket.socket) -> dict[str, Any]:
    """Answer requests with process ids, a shim's with the status too; return, in each child, the request."""
    while True:
        ready, _, _ = select.select([channel, shims], [], [])
        asking = channel if channel in ready else shims.accept()[0]
        message, fds, _, _ = socket.recv_fds(asking, MAX_REQUEST_BYTES, 64)
        if not message and asking is channel:
            os._exit(0)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # what served a shim
                pass
        if not message:
            continue
        request: dict[str, Any] = json.loads(message)
        reader, writer = os.pipe()
        between = os.fork()
        if not between:
            between = os.getpid()
            own = os.fork()
            if own:
                os.write(writer, str(own).encode())
                if request["shim"]:
                    asking.send(str(own).encode())
                    asking.send(str(os.waitpid(own, 0)[1]).encode())
                os._exit(0)
            while not request["shim"] and os.getppid() == between:
                time.sleep(0.001)
            return request | {"streams": dict(zip(request["streams"], fds, strict=True))}
        started = os.read(reader, 100)
        if request["shim"]:
            asking.close()
        else:
            os.waitpid(between, 0)
            channel.send(started)
        for fd in (reader, writer, *fds):
            os.close(fd)


def become(start: Start, mask: int | None = None) -> Command:
    """Take the streams, the environment and the folder of a start; return what is to run."""
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for number, fd in start.streams.items()}
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd not in moved.values():
            with suppress(OSError):
                os.close(fd)
    for number, fd in moved.items():
        os.dup2(fd, number)
        os.close(fd)
    if start.new_session:
        os.setsid()
    if mask is not None:
        os.umask(mask)
    os.environ.clear()
    os.environ.update(start.environment)
    os.chdir(start.folder)
    signal.set_wakeup_fd(-1)
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGPIPE: signal.SIG_IGN}.get(number, signal.SIG_DFL)
        with suppress(OSError, ValueError):
            signal.signal(number, usual)
    command = understood(start.words, start.environment)
    assert command is not None
    if command.quiet:
        warnings.simplefilter("ignore")
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = opened(1, start.environment, "strict")
    sys.stderr = opened(2, start.environment, "backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    first = {"-m": str(Path.cwd()), "-c": "", "file": str(Path(command.name).resolve().parent)}[command.kind]
    paths = [path for path in start.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*([] if command.safe_path else [first]), *paths, *PATHS]
    sys.orig_argv[:] = start.words
    sys.argv[:] = [command.name if command.kind == "file" else command.kind, *command.arguments]
    return command


def opened(fd: int, environment: dict[str, str], errors: str) -> io.TextIOWrapper:
    """Return a standard stream as the interpreter opens it."""
    named, _, handling = environment.get("PYTHONIOENCODING", "").partition(":")
    at_once = bool(environment.get("PYTHONUNBUFFERED"))
    binary = open(fd, "wb", buffering=0 if at_once else -1, closefd=False)  # noqa: SIM115
    how: Any = {"line_buffering": fd == 2 or os.isatty(fd), "write_through": at_once}
    return io.TextIOWrapper(binary, named or "utf-8", handling or errors, newline="\n", **how)


def run(command: Command) -> None:
    """Run the module, the code or the file as __main__."""
    if command.kind == "-m":
        runpy.run_module(command.name, run_name="__main__", alter_sys=True)
    elif command.kind == "-c":
        module = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(command.name, "<string>", "exec"), vars(module))
    else:
        runpy.run_path(command.name, run_name="__main__")


def fork_rank(*given: Any) -> int:
    """In a launcher: start a rank as a fork of this process, anything else as usual."""
    start = Start.of(given)
    command = start and understood(start.words, start.environment)
    if start is None or command is None or command.name != "regraft" or "WORLD_SIZE" not in start.environment:
        pid: int = REAL(*given)  # type: ignore[misc]
        return pid
    rank = os.fork()
    if rank:
        return rank
    atexit._clear()  # what the launcher would do at its end is not the rank's to do
    try:
        for name in [n for n in sys.modules if n.partition(".")[0] == "regraft"]:
            del sys.modules[name]
        command = become(start)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    return run_to_the_end(command)


def run_to_the_end(command: Command) -> NoReturn:
    """Run the command and end the process, without taking torch apart module by module, which takes two seconds."""
    code = 0
    try:
        run(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        code = 1
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    import importlib

    PATHS = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for library in LIBRARIES.split():
        with suppress(ImportError):
            importlib.import_module(library)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for the tests
    asked = serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
    wanted = become(Start(**{name: asked[name] for name in Start._fields}), asked["mask"])
    subprocess._fork_exec = fork_rank  # type: ignore[attr-defined]
    run_to_the_end(wanted)
