"""``regraft doctor``: what a run depends on, and the remedy where something is wrong."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..compute.versions import __version__, installed, misfit, remedy_for_torch
from ..errors import printable, shorten
from ..io import locks
from ..io.command_lines import command
from ..io.work_folders import OWNER, abandoned, is_old, sweep, unproven
from ..plan.schema import RunPlan
from ..runs.folder import LOCK, can_resume, status_of
from ..runs.ledger import ledger_path

LIBRARIES = (
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "numpy",
    "scikit-learn",
    "scipy",
    "Pillow",
    "pyarrow",
)

LOW = 2e9  # bytes


@dataclass(frozen=True)
class Finding:
    what: str
    says: str
    remedy: str = ""  # where something is wrong


def examine(runs: Path) -> list[Finding]:
    """Everything that is looked at, in the order that it is shown in."""
    found: list[Finding] = []
    for look in (versions, devices, caches, disk):
        found += look()
    found += [*locks_in(runs), *leftovers(runs), *surroundings()]
    return found


def in_words(found: list[Finding]) -> str:
    lines = []
    for f in found:
        lines.append(f"{'!' if f.remedy else ' '} {f.what:<14} {printable(f.says)}")
        lines += [f"{'':<17}→ {f.remedy}"] if f.remedy else []
    wrong = sum(bool(f.remedy) for f in found)
    end = "nothing is wrong" if not wrong else f"{wrong} of {len(found)} need attention"
    return "\n".join([*lines, end])


def versions() -> Iterator[Finding]:
    yield Finding("regraft", f"{__version__}, Python {platform.python_version()}")
    torch = installed("torch")
    yield Finding("torch", torch or "missing", remedy_for_torch(torch))
    yield Finding("torchvision", installed("torchvision") or "missing", misfit())
    missing = [name for name in LIBRARIES if not installed(name)]
    have = ", ".join(f"{name} {installed(name)}" for name in LIBRARIES if name not in missing)
    remedy = f"pip install {' '.join(missing)}" if missing else ""
    yield Finding("libraries", have, remedy)


def devices() -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    yield Finding("cpu", f"{platform.machine()}, {cores} cores")
    try:
        import torch
    except Exception as error:  # whatever a broken installation throws
        yield Finding("devices", f"torch does not import: {error}", "pip install -U torch torchvision")
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield Finding(f"cuda:{i}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    if torch.backends.mps.is_available():
        yield Finding("mps", "Apple GPU")
    built = torch.version.cuda
    if built and not torch.cuda.is_available() and Path("/proc/driver/nvidia").exists():
        remedy = "see nvidia-smi, and take a torch that is built for your driver"
        yield Finding("cuda", f"torch is built for CUDA {built}, which it cannot use", remedy)


def caches() -> Iterator[Finding]:
    try:
        from ..data.store import cache_in
    except ImportError:  # torch is broken, which is said already
        return
    kept = cache_in("shared")
    entries = kept.entries()
    size, limit = sum(n for _, n, _ in entries), RunPlan.model_fields["cache_gb"].default * 1e9
    says = f"{kept.root}: {len(entries)} entries, {size / 1e9:.2f} of {limit / 1e9:.0f} GB"
    remedy = "" if size <= limit else "regraft cache --clear"
    yield Finding("feature cache", says, remedy or cannot_write(kept.root, "REGRAFT_CACHE"))
    ledger = ledger_path()
    yield Finding("ledger", f"{ledger}, of opened test sets", cannot_write(ledger, "REGRAFT_STATE"))


def cannot_write(path: Path, variable: str) -> str:
    """What to do where a path cannot be written; or ""."""
    there = next(d for d in (path, *path.absolute().parents) if d.exists())
    try:
        if there.is_dir():
            with tempfile.TemporaryFile(dir=there):
                return ""
        with there.open("ab"):
            return ""
    except OSError as error:
        return f"{there} cannot be written ({error.strerror}): set {variable} to another folder"


def disk() -> Iterator[Finding]:
    for name, place in (("here", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        remedy = f"make room on the disk of {place}" if free < LOW else ""
        yield Finding(f"disk, {name}", f"{free / 1e9:.1f} GB free at {place}", remedy)


def locks_in(runs: Path) -> Iterator[Finding]:
    """Runs that are being written, whose writer is gone, or that were left."""
    folders = sorted(p for p in runs.glob("*") if p.is_dir())
    busy = left = 0
    for run in folders:
        lock = run / LOCK
        if (who := locks.find_holder(lock)) is not None:
            busy += 1
            gone = shlex.join(["rm", str(lock)])
            remedy = "" if who.here() else f"if that run is gone: {gone}"
            yield Finding("lock", f"{run} is being written by {who}", remedy)
        elif lock.exists():
            who = locks.read_holder(lock)
            remove = shlex.join(["rm", str(lock)])
            go_on = command("fit", "--resume", run) if can_resume(run) else remove
            yield Finding("lock", f"{run} is locked by {who or 'nobody'}, which is gone", go_on)
        elif can_resume(run):
            left += 1
    finished = sum(status_of(run) == "finished" for run in folders)
    more = f", {left} unfinished (regraft fit --resume)" if left else ""
    yield Finding("runs", f"{runs}: {finished} finished, {busy} running{more}")


def leftovers(runs: Path) -> Iterator[Finding]:
    """Remove what killed processes left, and name what may be left by processes of another machine."""
    places = {Path(tempfile.gettempdir()), Path.cwd(), runs, *runs.glob("*/exports")}
    with suppress(ImportError):  # torch is broken, which is said already
        from ..data.store import cache_in

        places |= {cache_in("shared").root, cache_in("shared").root.parent}
    unique = sorted({place.resolve() for place in places})
    size = sum(bytes_in(folder) for place in unique for folder in abandoned(place))
    gone = [folder for place in unique for folder in sweep(place)]
    gone += [file for run in sorted(runs.glob("*")) for file in unfinished_files(run) if removed(file)]
    if gone:
        says = f"{len(gone)} left by killed processes, {size / 1e6:.1f} MB, removed: "
        yield Finding("left behind", says + shorten([str(path) for path in gone]))
    for folder in (f for place in unique for f in unproven(place)):
        who = locks.read_holder(folder / OWNER)
        yield Finding("left behind", f"{folder} is a day old, of {who}", f"if that process is gone: rm -r {folder}")


def unfinished_files(run: Path) -> list[Path]:
    """Return files that a killed process had begun to write beside their place, in a run that nobody
    writes."""
    if not (run / "plan.toml").is_file() or locks.find_holder(run / LOCK):
        return []
    found = [p for folder in (run, *run.glob("*/")) for p in folder.glob(".*.part")]
    return [p for p in found if p.is_file() and not p.is_symlink() and is_old(p)]


def removed(file: Path) -> bool:
    with suppress(OSError):
        file.unlink()
        return True
    return False


def bytes_in(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_symlink())


def surroundings() -> Iterator[Finding]:
    encoding = sys.getfilesystemencoding()
    remedy = "" if encoding == "utf-8" else "set PYTHONUTF8=1: names of files are read as UTF-8"
    yield Finding("file names", encoding, remedy)
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    yield Finding("network", "HF_HUB_OFFLINE is set" if offline else "may be used to fetch sources")
