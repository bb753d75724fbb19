"""Examination of an installation by ``regraft doctor``: each thing that a run needs, with a remedy."""

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

MIN_FREE_BYTES = 2e9  # of a disk


@dataclass(frozen=True)
class Finding:
    """A thing that was examined, its state, and a remedy."""

    what: str
    says: str
    remedy: str = ""  # "" where nothing is wrong


def examine(runs: Path) -> list[Finding]:
    """Look at the installation and at a folder of runs; return the findings in their order on the screen."""
    findings: list[Finding] = []
    for look in (versions, devices, caches, disk):
        findings += look()
    findings += [*locks_in(runs), *leftovers(runs), *surroundings()]
    return findings


def format_findings(findings: list[Finding]) -> str:
    """Return the text that ``regraft doctor`` prints."""
    lines = []
    for finding in findings:
        lines.append(f"{'!' if finding.remedy else ' '} {finding.what:<14} {printable(finding.says)}")
        lines += [f"{'':<17}→ {finding.remedy}"] if finding.remedy else []
    wrong = sum(bool(finding.remedy) for finding in findings)
    end = "nothing is wrong" if not wrong else f"{wrong} of {len(findings)} need attention"
    return "\n".join([*lines, end])


def versions() -> Iterator[Finding]:
    """Yield the versions of regraft and of the libraries that it computes with."""
    yield Finding("regraft", f"{__version__}, Python {platform.python_version()}")
    torch = installed("torch")
    yield Finding("torch", torch or "missing", remedy_for_torch(torch))
    yield Finding("torchvision", installed("torchvision") or "missing", misfit())
    missing = [name for name in LIBRARIES if not installed(name)]
    have = ", ".join(f"{name} {installed(name)}" for name in LIBRARIES if name not in missing)
    remedy = f"pip install {' '.join(missing)}" if missing else ""
    yield Finding("libraries", have, remedy)


def devices() -> Iterator[Finding]:
    """Yield the processor and the accelerators that torch can use."""
    cores = os.cpu_count() or 1
    yield Finding("cpu", f"{platform.machine()}, {cores} cores")
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
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
    """Yield the feature cache and the ledger of test sets."""
    try:
        from ..data.store import cache_in
    except ImportError:  # torch is broken, which ``devices`` reports
        return
    cache = cache_in("shared")
    entries = cache.entries()
    size, limit = sum(n for _, n, _ in entries), RunPlan.model_fields["cache_gb"].default * 1e9
    says = f"{cache.root}: {len(entries)} entries, {size / 1e9:.2f} of {limit / 1e9:.0f} GB"
    remedy = "" if size <= limit else "regraft cache --clear"
    yield Finding("feature cache", says, remedy or remedy_to_write(cache.root, "REGRAFT_CACHE"))
    ledger = ledger_path()
    yield Finding("ledger", f"{ledger}, of opened test sets", remedy_to_write(ledger, "REGRAFT_STATE"))


def remedy_to_write(path: Path, variable: str) -> str:
    """Return the remedy for a path that cannot be written; "" where it can be."""
    existing = next(d for d in (path, *path.absolute().parents) if d.exists())
    try:
        if existing.is_dir():
            with tempfile.TemporaryFile(dir=existing):
                return ""
        with existing.open("ab"):
            return ""
    except OSError as error:
        return f"{existing} cannot be written ({error.strerror}): set {variable} to another folder"


def disk() -> Iterator[Finding]:
    """Yield the free space of the working folder and of the temporary folder."""
    for name, place in (("here", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        remedy = f"make room on the disk of {place}" if free < MIN_FREE_BYTES else ""
        yield Finding(f"disk, {name}", f"{free / 1e9:.1f} GB free at {place}", remedy)


def locks_in(runs: Path) -> Iterator[Finding]:
    """Yield the locked runs in a folder, and the number of finished, running and unfinished runs."""
    folders = sorted(p for p in runs.glob("*") if p.is_dir())
    running = unfinished = 0
    for run in folders:
        lock = run / LOCK
        remove = shlex.join(["rm", str(lock)])
        if (holder := locks.find_holder(lock)) is not None:
            running += 1
            remedy = "" if holder.here() else f"if that run is gone: {remove}"
            yield Finding("lock", f"{run} is being written by {holder}", remedy)
        elif lock.exists():
            before = locks.read_holder(lock)
            resume = command("fit", "--resume", run) if can_resume(run) else remove
            yield Finding("lock", f"{run} is locked by {before or 'nobody'}, which is gone", resume)
        elif can_resume(run):
            unfinished += 1
    finished = sum(status_of(run) == "finished" for run in folders)
    more = f", {unfinished} unfinished (regraft fit --resume)" if unfinished else ""
    yield Finding("runs", f"{runs}: {finished} finished, {running} running{more}")


def leftovers(runs: Path) -> Iterator[Finding]:
    """Remove the work folders and files of killed processes; yield them, and old ones that are not proven so."""
    places = {Path(tempfile.gettempdir()), Path.cwd(), runs, *runs.glob("*/exports")}
    with suppress(ImportError):  # torch is broken, which ``devices`` reports
        from ..data.store import cache_in

        places |= {cache_in("shared").root, cache_in("shared").root.parent}
    unique = sorted({place.resolve() for place in places})
    size = sum(bytes_in(folder) for place in unique for folder in abandoned(place))
    removed = [folder for place in unique for folder in sweep(place)]
    for file in (file for run in sorted(runs.glob("*")) for file in unfinished_files(run)):
        with suppress(OSError):
            file.unlink()
            removed.append(file)
    if removed:
        says = f"{len(removed)} left by killed processes, {size / 1e6:.1f} MB, removed: "
        yield Finding("left behind", says + shorten([str(path) for path in removed]))
    for folder in (f for place in unique for f in unproven(place)):
        holder = locks.read_holder(folder / OWNER)
        yield Finding("left behind", f"{folder} is a day old, of {holder}", f"if that process is gone: rm -r {folder}")


def unfinished_files(run: Path) -> list[Path]:
    """Return the old files that were begun beside their place, in a run that no process writes."""
    if not (run / "plan.toml").is_file() or locks.find_holder(run / LOCK):
        return []
    parts = [p for folder in (run, *run.glob("*/")) for p in folder.glob(".*.part")]
    return [p for p in parts if p.is_file() and not p.is_symlink() and is_old(p)]


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_symlink())


def surroundings() -> Iterator[Finding]:
    """Yield the encoding of file names and whether the network may be used."""
    encoding = sys.getfilesystemencoding()
    remedy = "" if encoding == "utf-8" else "set PYTHONUTF8=1: names of files are read as UTF-8"
    yield Finding("file names", encoding, remedy)
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    yield Finding("network", "HF_HUB_OFFLINE is set" if offline else "may be used to fetch sources")
