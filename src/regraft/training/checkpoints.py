"""Checkpoints: complete or absent, checked when they are read; safetensors and JSON, no pickle.

RUN/checkpoints/step-00000120/   where the arm that is being fitted stands (see regraft.training.state); at the
                                 end of an epoch step-00000120-epoch-3
RUN/checkpoints/done-seed-0/     what is left of a part that is finished, so that it is not done again
    tensors.safetensors  record.json  MANIFEST.sha256 (as sha256sum writes it)

A folder is written beside its place, each file synced, the manifest last, then renamed, then its
parent is synced: a kill at any moment leaves the old ones as they were, and at most a folder tmp-…,
which the next run removes. Of the arm that is being fitted the last two are kept; each holds the best
weights so far. Whatever does not match its manifest is skipped and named.
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
from ..runs import records
from ..runs.checkpoint_records import CheckpointRecord
from ..runs.tensors import save_tensors
from .records import Checkpoints, Progress, Saved
from .signals import Interrupted, Stopping

if TYPE_CHECKING:
    from torch import Tensor


MANIFEST, TENSORS, RECORD = "MANIFEST.sha256", "tensors.safetensors", "record.json"

KEPT = 2  # of the arm that is being fitted

SHARE = 0.1  # of the time of a fit, that saving epochs' ends may take


class DamagedError(ValueError):
    """A folder that is no complete checkpoint, and why."""


def write(place: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A checkpoint at ``place``, whole or not at all. Raises DiskError, after which the others are as
    they were."""
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
            if place.exists():  # a damaged one: good ones are not written twice
                shutil.rmtree(place)
            move_folder(tmp, place)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    failpoint(f"renamed {place.name}")


def checked(place: Path) -> dict[str, Any]:
    """A checkpoint's record, after all its files were compared with the manifest.

    Raises DamagedError, saying what is wrong.
    """
    try:
        guarded.check_folder(place.parent, place.name)
        # not splitlines(), which takes a newline with a flipped bit for one
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


def stands(record: Any) -> bool:
    """Whether a record says of what it is: of a part that is finished, or of an arm and where it was."""
    return records.problem(CheckpointRecord, record) is None


def read(place: Path) -> Saved:
    """A checkpoint that was checked before. Raises UsageError where its tensors do not read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    record = guarded.read_json(place, RECORD, finite=False)
    try:
        return Saved(record, load_file(place / TENSORS))
    except (SafetensorError, ValueError, OSError) as error:  # its sum is right: written so
        raise UsageError(f"{place} does not read ({error}): remove it and resume again") from error


def failpoint(name: str) -> bool:
    """For tests and ``verify-resume``: REGRAFT_FAILPOINT="kill NAME" dies here without a word; "stop
    NAME" → True."""
    wanted, _, where = os.environ.get("REGRAFT_FAILPOINT", "").partition(" ")
    if where != name:
        return False
    if wanted == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return wanted == "stop"


def slug(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z.+-]+", "-", name)


@dataclass
class CheckpointManager:
    """What a run has saved, and when it saves again."""

    folder: Path  # RUN/checkpoints
    steps: int = 0  # between two checkpoints, with every epoch's end; 0: by time
    seconds: float = 0.0  # likewise, with ends of epochs while that takes SHARE; 0: these alone
    about: Callable[[], dict[str, Any]] = dict  # of the run as a whole, into every record
    say: Callable[[str], None] = lambda line: None
    writes: bool = True  # of several processes the first one; none where each fits arms of its own
    divided: bool = False  # weights are: all processes put them together, when the first says so
    signals: Stopping = field(default_factory=Stopping)
    parts: dict[str, Path] = field(default_factory=dict)  # that are finished
    good: list[Path] = field(default_factory=list)  # checkpoints of the arm being fitted, oldest first
    newest: dict[str, Any] | None = None  # the record of what was saved last
    count: int = 0
    last: float = field(default_factory=time.monotonic)
    cost: float = 0.0  # seconds that the last one of an arm took

    def scan(self) -> None:
        """Find what an earlier process left; what is no complete checkpoint is skipped and named."""
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
                record = checked(place)
                if not stands(record):
                    raise DamagedError(f"{RECORD} is no record of a checkpoint")
            except DamagedError as error:
                self.say(f"{place} is skipped: {error}")
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
        """What a finished part left."""
        return read(self.parts[part]) if part in self.parts else None

    def finish(self, part: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """A part is done; the checkpoints on the way to it are removed."""
        if self.writes:
            place = self.folder / f"done-{slug(part)}"
            self._write(place, {"part": part, **record}, tensors)
            self.parts[part] = place
        self.forget()

    def forget(self) -> None:
        """Drop the checkpoints of an arm that is done or came to nothing: the next one's have their names."""
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
                self.say(f"{arm}: goes on from step {at['step']} (epoch {at['epoch']})")
                return saved
        return None

    def save(self, arm: str, at: Progress, tensors: Callable[[], dict[str, Tensor]]) -> None:
        """Save where an arm stands, if it is time to. Raises Interrupted where a signal asked for it."""
        asked_for = failpoint(f"step {at.step}") or failpoint(f"{arm} step {at.step}")
        stop = self.signals.asked or (signal.SIGTERM if asked_for else 0)
        if distributed.any_rank(bool(stop)):  # else one would wait for another that is gone
            stop = stop or signal.SIGTERM
        due = bool(stop) or self._due(at)
        if self.divided or not at.batches:  # what a signal waits for is the same in all
            due = distributed.broadcast(due)
        if not due:
            self.signals.patient = True
            return
        end = "" if at.batches else f"-epoch-{at.epoch - 1}"  # it may follow on a step's own
        place = self.folder / f"step-{at.step:08d}{end}"
        if (self.writes or self.divided) and place not in self.good:
            began = time.monotonic()
            state = tensors()
            if self.writes:
                self._write(place, {"arm": arm, "at": asdict(at)}, state)
                self.cost = self.last - began
                for path in [*self.good, place][:-KEPT]:
                    shutil.rmtree(path, ignore_errors=True)
            self.good = [*self.good, place][-KEPT:]
        # a signal waits for a step's end, but at an epoch's end there is nothing that is not saved
        self.signals.patient = at.batches > 0
        if stop:
            saved = ", which is saved" if self.writes else "; nothing of it is saved"
            raise Interrupted(stop, f"stopped at step {at.step} of {arm}{saved}")

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Around the loop that calls ``save``. Raises Interrupted where a signal came after its last call."""
        self.last, stop = time.monotonic(), self.signals
        text = "stopped after an arm's last step, which is not saved"
        try:
            yield
        except DivergedError:  # which may end this arm alone
            if stop.asked:
                raise Interrupted(stop.asked, text) from None
            raise
        finally:
            stop.patient = False
        if stop.asked:
            raise Interrupted(stop.asked, text)

    def clear(self) -> None:
        """Remove all of it: the run is finished, and its model is saved."""
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _due(self, at: Progress) -> bool:
        if self.steps:
            return at.batches == 0 or at.step % self.steps == 0
        since = time.monotonic() - self.last
        if at.batches == 0 and self.cost <= SHARE * (since + self.cost):
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
