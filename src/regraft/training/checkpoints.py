"""Checkpoints: complete or absent, verified when they are read; safetensors and JSON, no pickle.

RUN/checkpoints/step-00000120/   the state of the arm under way (see regraft.training.state); at the end of an
                                 epoch step-00000120-epoch-3
RUN/checkpoints/done-seed-0/     the result of a part that is finished, so that a resumed run skips the part
    tensors.safetensors  record.json  MANIFEST.sha256 (as sha256sum writes it)

A folder is written beside its place and synced file by file, the manifest last. Then it is renamed, and its
parent is synced. A kill at any moment leaves the older checkpoints intact, and at most a folder tmp-…, which
the next run removes. The last two checkpoints of the arm under way are kept; each holds the best weights so
far. A folder that does not match its manifest is skipped and reported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compute import distributed
from ..errors import DivergedError, UsageError
from ..io import guarded
from ..io.atomic import disk_errors, move_folder, write_new
from ..io.hashing import file_digest
from ..io.log import LOGGER
from ..runs import records
from ..runs.checkpoint_records import CheckpointRecord
from ..runs.tensors import save_tensors
from .records import Checkpoints, Progress, Saved
from .signals import Interrupted, Stopping

if TYPE_CHECKING:
    from torch import Tensor


MANIFEST, TENSORS, RECORD = "MANIFEST.sha256", "tensors.safetensors", "record.json"

KEPT_CHECKPOINTS = 2  # of the arm under way

MAX_SAVING_SHARE = 0.1  # of a fit's time, for saving at epochs' ends


class DamagedError(ValueError):
    """The reason why a folder is no complete checkpoint."""


def write(place: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint to ``place``, complete or not at all. Raises DiskError; other checkpoints stay intact."""
    tmp = place.with_name(f"tmp-{place.name}")
    try:
        with disk_errors(place):
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
            save_tensors(tensors, tmp / TENSORS)
            write_new(tmp / RECORD, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
            lines = [f"{file_digest(tmp / name)}  {name}\n" for name in (TENSORS, RECORD)]
            write_new(tmp / MANIFEST, "".join(lines))
            failpoint(f"written {place.name}")
            if place.exists():  # it is damaged: an intact one is not written twice
                shutil.rmtree(place)
            move_folder(tmp, place)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    failpoint(f"renamed {place.name}")


def verify(place: Path) -> dict[str, Any]:
    """Compare all files of a checkpoint with its manifest, and return its record.

    Raises DamagedError.
    """
    try:
        guarded.check_folder(place.parent, place.name)
        # not splitlines(), which splits at a newline with a flipped bit too
        manifest = guarded.text(place, MANIFEST)
        if manifest is None:
            raise DamagedError(f"{MANIFEST} is missing")
        *lines, _ = manifest.split("\n")
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        if set(expected) != {TENSORS, RECORD}:
            raise DamagedError(f"{MANIFEST} does not list {TENSORS} and {RECORD}")
        for name, digest in expected.items():
            if file_digest(place / name) != digest:
                raise DamagedError(f"{name} is not what {MANIFEST} says")
        record: dict[str, Any] = guarded.read_json(place, RECORD, finite=False)
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from error
    except DamagedError:
        raise
    except (guarded.NotReadError, OSError, ValueError) as error:
        raise DamagedError(f"it does not read: {error}") from error
    return record


def read(place: Path) -> Saved:
    """Read a checkpoint that was verified before. Raises UsageError if its tensors do not read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    record = guarded.read_json(place, RECORD, finite=False)
    try:
        return Saved(record, load_file(place / TENSORS))
    except (SafetensorError, ValueError, OSError) as error:  # its checksum is right, so it was written like this
        raise UsageError(f"{place} does not read ({error}): remove it and resume again") from error


def failpoint(name: str) -> bool:
    """Kill this process if REGRAFT_FAILPOINT is "kill NAME"; return True if it is "stop NAME".

    Tests and ``regraft verify-resume`` set it.
    """
    wanted, _, where = os.environ.get("REGRAFT_FAILPOINT", "").partition(" ")
    if where != name:
        return False
    if wanted == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return wanted == "stop"


def slug(name: str) -> str:
    """Return a name as a part of a file name."""
    return re.sub(r"[^0-9A-Za-z.+-]+", "-", name)


@dataclass
class CheckpointManager:
    """The checkpoints of a run, and the time of the next one."""

    folder: Path  # RUN/checkpoints
    steps: int = 0  # steps between checkpoints, which are also saved at every epoch's end; 0 uses ``seconds``
    seconds: float = 0.0  # between checkpoints, which are also saved at epochs' ends while that is cheap; 0 disables
    about: Callable[[], dict[str, Any]] = dict  # facts of the run, for every record
    writes: bool = True  # True on rank 0; False if every rank fits its own arms
    divided: bool = False  # weights are sharded: all ranks gather them when rank 0 decides to save
    signals: Stopping = field(default_factory=Stopping)
    parts: dict[str, Path] = field(default_factory=dict)  # finished parts, by name
    good: list[Path] = field(default_factory=list)  # checkpoints of the arm under way, oldest first
    newest: dict[str, Any] | None = None  # record of the last checkpoint
    count: int = 0  # checkpoints so far
    last: float = field(default_factory=time.monotonic)  # time of the last checkpoint, in seconds
    cost: float = 0.0  # seconds that the last checkpoint of an arm took

    def scan(self) -> None:
        """Find the checkpoints of an earlier process; skip and report folders that are no complete checkpoint."""
        if distributed.is_rank0():
            self._scan()
        self.parts, self.good, self.newest, self.count = distributed.broadcast(
            (self.parts, self.good, self.newest, self.count)
        )

    def _scan(self) -> None:
        found: list[tuple[int, dict[str, Any], Path]] = []
        for place in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            if place.name.startswith("tmp-"):
                shutil.rmtree(place, ignore_errors=True)
                continue
            try:
                record = verify(place)
                if why := records.problem(CheckpointRecord, record):
                    raise DamagedError(f"{RECORD} is no record of a checkpoint: {why}")
            except DamagedError as error:
                LOGGER.info("%s is skipped: %s", place, error)
                continue
            found.append((record["count"], record, place))
        found.sort(key=lambda f: f[0])
        for count, record, place in found:
            self.count, self.newest = count, record
            if "part" in record:
                self.parts[record["part"]] = place
        for _, record, place in found:
            if "arm" in record and record["arm"] in self.parts:  # a kill came before it was removed
                shutil.rmtree(place, ignore_errors=True)
            elif "arm" in record:
                self.good.append(place)

    def done(self, part: str) -> Saved | None:
        """Return the checkpoint of a finished part; None if the part is not finished."""
        return read(self.parts[part]) if part in self.parts else None

    def finish(self, part: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Save a finished part, and remove the checkpoints on the way to it."""
        if self.writes:
            place = self.folder / f"done-{slug(part)}"
            self._write(place, {"part": part, **record}, tensors)
            self.parts[part] = place
        self.forget()

    def forget(self) -> None:
        """Remove the checkpoints of an arm that ended, because the next arm's checkpoints have the same names."""
        if self.writes:
            for path in self.good:
                shutil.rmtree(path, ignore_errors=True)
        self.good.clear()

    def of(self, arm: str) -> ArmCheckpoints:
        """Return the checkpoints of one arm, for the loop that fits it."""
        return ArmCheckpoints(self, arm)

    def latest(self, arm: str) -> Saved | None:
        """Return the last good checkpoint of an arm."""
        for place in reversed(self.good):
            saved = read(place)
            if saved.record["arm"] == arm:
                at = saved.record["at"]
                LOGGER.info("%s: goes on from step %d (epoch %d)", arm, at["step"], at["epoch"])
                return saved
        return None

    def save(self, arm: str, progress: Progress, tensors: Callable[[], dict[str, Tensor]]) -> None:
        """Save an arm, if it is time to. Raises Interrupted if a signal asked for it."""
        asked_for = failpoint(f"step {progress.step}") or failpoint(f"{arm} step {progress.step}")
        stop = self.signals.asked or (signal.SIGTERM if asked_for else 0)
        if distributed.any_rank(bool(stop)):  # all ranks must stop together, or the others hang in a collective
            stop = stop or signal.SIGTERM
        due = bool(stop) or self._due(progress)
        if self.divided or not progress.batches:  # the next collective must be the same on all ranks
            due = distributed.broadcast(due)
        if not due:
            self.signals.patient = True
            return
        end = "" if progress.batches else f"-epoch-{progress.epoch - 1}"  # a checkpoint of the step itself may be there
        place = self.folder / f"step-{progress.step:08d}{end}"
        if (self.writes or self.divided) and place not in self.good:
            began = time.monotonic()
            state = tensors()
            if self.writes:
                self._write(place, {"arm": arm, "at": asdict(progress)}, state)
                self.cost = self.last - began
                for path in [*self.good, place][:-KEPT_CHECKPOINTS]:
                    shutil.rmtree(path, ignore_errors=True)
            self.good = [*self.good, place][-KEPT_CHECKPOINTS:]
        # a signal waits for the end of a step; at an epoch's end all progress is saved
        self.signals.patient = progress.batches > 0
        if stop:
            saved = ", which is saved" if self.writes else "; nothing of it is saved"
            raise Interrupted(stop, f"stopped at step {progress.step} of {arm}{saved}")

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Wrap the loop that calls ``save``. Raises Interrupted if a signal came after the last call."""
        self.last, stop = time.monotonic(), self.signals
        text = "stopped after an arm's last step, which is not saved"
        try:
            yield
        except DivergedError:  # it may end this arm alone
            if stop.asked:
                raise Interrupted(stop.asked, text) from None
            raise
        finally:
            stop.patient = False
        if stop.asked:
            raise Interrupted(stop.asked, text)

    def clear(self) -> None:
        """Remove all checkpoints: the run is finished, and its model is saved."""
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _due(self, progress: Progress) -> bool:
        if self.steps:
            return progress.batches == 0 or progress.step % self.steps == 0
        since = time.monotonic() - self.last
        if progress.batches == 0 and self.cost <= MAX_SAVING_SHARE * (since + self.cost):
            return True
        return bool(self.seconds) and since >= self.seconds

    def _write(self, place: Path, record: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.count += 1
        self.newest = {"count": self.count, **record, "about": self.about()}
        write(place, self.newest, tensors)
        self.last = time.monotonic()


@dataclass(frozen=True)
class ArmCheckpoints(Checkpoints):
    """The checkpoints of one arm of a run."""

    manager: CheckpointManager
    arm: str

    def load(self) -> Saved | None:
        """Return the last good checkpoint of the arm."""
        return self.manager.latest(self.arm)

    def save(self, progress: Progress, tensors: Callable[[], dict[str, Tensor]]) -> None:
        """Save the arm, if it is time to. Raises Interrupted if a signal asked for it."""
        self.manager.save(self.arm, progress, tensors)
