"""Peers side by side: every measurement in a process of its own, peers in an order that rotates with
the repeats, a JSON line each, and a table of figures and ratios.

A benchmark is a table of peers, functions from a :class:`Lane` to figures, and a list of ratios:

    race.run(__doc__, {"regraft": regraft, "loop": loop}, [Ratio("regraft", ["loop"], 1.1)])

The parent runs its own script again with ``--peer NAME`` for each measurement, so what a library
leaves behind (threads, caches, allocators) meets no other. Ratios are paired by repeat. A line that is
there already is not measured again: a run that was cut off goes on where it stopped. `load` in a line is
the machine's load average after it: figures from a machine that did other things are no figures. Runs of
regraft count in the test ledger as any others do, but for those on generated data.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MARK = "race: "  # before a child's lines of figures
PACKAGES = ("torch", "torchvision", "timm", "transformers", "scikit-learn", "lightning", "fastai")
BEGAN = float(os.environ.get("RACE_BEGAN", time.monotonic()))  # the child's start, by the parent


@dataclass(frozen=True)
class Split:
    """regraft's own split, as lists of files or texts."""

    classes: list[str]
    train: list[tuple[str, int]]  # (path or text, class number)
    val: list[tuple[str, int]]
    test: list[tuple[str, int]]


@dataclass(frozen=True)
class Lane:
    """Inputs of a peer."""

    data: Path
    weights: Path
    split: Split
    seed: int  # the repeat's number
    out: Path  # a folder of its own, removed afterwards
    shared: Path  # a folder of all measurements of a run
    found: Mapping[str, Any] = field(default_factory=dict)  # figures measured before, by name


Figures = dict[str, Any]
Line = dict[str, Any]  # of a results file
Peer = Callable[[Lane], Figures]


@dataclass(frozen=True)
class Ratio:
    """A figure of one peer over that of another, or of the one with the best median of several."""

    over: str
    under: Sequence[str]
    want: float  # the target: at most this, or at least this with ``faster``
    figure: str = "seconds"
    of: str = ""  # the lower one's figure, where it is another
    faster: bool = False  # under ÷ over, at least ``want``


def since_start() -> float:
    """Return seconds since the parent started this process, including the interpreter's start."""
    return time.monotonic() - BEGAN


def point(value: float, **more: Any) -> None:
    """Record a figure, such as val accuracy after an epoch, with the seconds since the start."""
    print(MARK + json.dumps({"point": [since_start(), value], **more}), flush=True)


class Batched:
    """Seconds of each epoch of regraft, as a wrapper around its training batches: from the first asking
    for a batch to the end of the last step, which is when one more is asked for."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.rows = 0
        self.ended = 0.0  # by the clock on the wall, to be compared with a file's

    def __call__(self, rows: int, label: str) -> Callable[[Any], Any]:
        self.rows = rows  # of all epochs
        return self.around

    def step(self, label: str, at: Any, steps: int) -> None:
        """Ignore a step."""

    def around(self, batches: Any) -> Any:
        clock = self

        class Timed:
            def epoch(self, n: int, skip: int = 0) -> Iterator[Any]:
                began = time.perf_counter()
                yield from batches.epoch(n, skip)
                clock.train.append(time.perf_counter() - began)
                clock.ended = time.time()

        return Timed()

    def val(self, run_folder: Path) -> Figures:
        """Return val accuracy of the last epoch, and the seconds until its line in history.jsonl."""
        history = run_folder / "history.jsonl"
        last = json.loads(history.read_text(encoding="utf-8").splitlines()[-1])
        return {"val seconds": history.stat().st_mtime - self.ended, "val": last["val"]["accuracy"]}


# ---------------------------------------------------------------- the parent


def run(
    doc: str | None,
    peers: Mapping[str, Peer],
    ratios: Sequence[Ratio],
    *,
    figures: Sequence[str] = ("seconds",),
    before: Mapping[str, Peer] | None = None,
    setup: Callable[[Path], None] = lambda shared: None,
    derived: Callable[[list[Line]], None] = lambda lines: None,
    splits: bool = True,
    optional: Sequence[str] = (),
) -> None:
    """Run the command line of a benchmark, or one peer in a child process.

    ``before``: measured once, ahead of the peers, which find it in ``Lane.found``. ``setup`` fills
    ``Lane.shared``. ``derived`` adds figures to finished lines. Without ``splits`` there are no data.
    ``optional``: peers that are packages' names, left out where those are not installed.
    """
    before = before or {}
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?", help="a file, or the folder that holds it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, default=0, help="rows of each split; 0: all")
    parser.add_argument("--peers", default=",".join(peers), help="a choice of: %(default)s")
    parser.add_argument("--out", type=Path, help="JSON lines, appended; kept ones are not repeated")
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.weights = args.weights or Path()
    if args.peer:
        given = json.loads((args.work / "given.json").read_text())
        lane = Lane(
            args.data or Path(),
            args.weights,
            Split(**given["split"]),
            args.seed,
            args.work / "lane",
            args.work / "shared",
            given["found"],
        )
        print(MARK + json.dumps({**before, **peers}[args.peer](lane)), flush=True)
        return
    if splits and args.data is None and not args.table:
        parser.error("say where the data lie")
    chosen = args.peers.split(",")
    if unknown := set(chosen) - set(peers):
        raise SystemExit(f"no peer {sorted(unknown)[0]}; there are: {', '.join(peers)}")
    for peer in [p for p in chosen if p in optional and not installed(p)]:
        print(f"{peer}: not installed, left out (pip install 'regraft[bench]')", flush=True)
        chosen.remove(peer)
    lines = read(args.out)
    if not args.table:
        with tempfile.TemporaryDirectory(prefix="race-") as folder:
            work = Path(folder)
            (work / "shared").mkdir()
            setup(work / "shared")
            measure(args, chosen, list(before), work, lines, splits)
    mine = [x for x in lines if x["benchmark"] == Path(sys.argv[0]).stem and x["repeat"] >= 0]
    derived(mine)
    for about in dict.fromkeys(json.dumps(x["about"]) for x in mine):
        print(f"\n{' '.join(f'{k}={v}' for k, v in json.loads(about).items())}")
        table([x for x in mine if json.dumps(x["about"]) == about], figures, ratios)


def measure(
    args: argparse.Namespace, peers: Sequence[str], before: Sequence[str], work: Path, lines: list[Line], splits: bool
) -> None:
    """Add the missing lines to ``lines`` and to --out."""
    about = {"data": args.data.name if args.data else "", "limit": args.limit}
    data, split = args.data, Split([], [], [], [])
    if splits:
        data = limited(data, args.limit, work / "data") if args.limit else data
        split = split_of(data)
    name = Path(sys.argv[0]).stem
    orders = [peers[r % len(peers) :] + peers[: r % len(peers)] for r in range(args.repeats)]
    todo = [(peer, -1) for peer in before]
    todo += [(peer, repeat) for repeat, order in enumerate(orders) for peer in order]
    for peer, repeat in todo:
        there = [x for x in lines if (x["benchmark"], x["about"]) == (name, about)]
        if any((x["peer"], x["repeat"]) == (peer, repeat) for x in there):
            continue
        found = {x["peer"]: x for x in there if x["repeat"] < 0}
        (work / "given.json").write_text(json.dumps({"split": asdict(split), "found": found}))
        figures, failure = child(args, peer, repeat, data, work)
        if failure:
            print(f"{peer}, repeat {repeat}: failed\n{failure}", flush=True)
            continue
        line = {
            "benchmark": name,
            "about": about,
            "peer": peer,
            "repeat": repeat,
            **figures,
            "load": os.getloadavg()[0],
            "cores": os.cpu_count(),
            "versions": versions(),
        }
        lines.append(line)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        short = {k: v for k, v in figures.items() if isinstance(v, int | float | str)}
        print(f"{repeat} {peer}: {', '.join(f'{k} {shown(v)}' for k, v in short.items())}", flush=True)


def child(args: argparse.Namespace, peer: str, seed: int, data: Path | None, work: Path) -> tuple[Figures, str]:
    """Measure once in a fresh process. Return (figures, "") or ({}, the end of its output)."""
    lane = work / "lane"
    shutil.rmtree(lane, ignore_errors=True)
    lane.mkdir()
    where = [str(data), str(args.weights)] if data else []
    command = [sys.executable, sys.argv[0], *where, "--peer", peer, "--seed", str(seed)]
    command += ["--work", str(work)]
    environment = {
        **os.environ,
        "REGRAFT_CACHE": str(lane / "cache"),  # cold every time
        **({} if data else {"REGRAFT_STATE": str(lane / "state")}),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",  # else it warns as loaders fork
    }
    found: Figures = {}
    points: list[list[float]] = []
    with (lane / "stderr").open("w") as said:
        environment["RACE_BEGAN"] = repr(time.monotonic())
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as process:
            assert process.stdout is not None
            memory = Memory(process.pid)
            memory.start()
            for line in process.stdout:
                if line.startswith(MARK):
                    figures = json.loads(line.removeprefix(MARK))
                    points += [figures.pop("point")] if "point" in figures else []
                    found |= figures
        memory.join()
    failure = "" if process.returncode == 0 else (lane / "stderr").read_text()[-2000:]
    shutil.rmtree(lane, ignore_errors=True)
    return {**found, "peak MB": memory.peak, **({"points": points} if points else {})}, failure


class Memory(threading.Thread):
    """The most anonymous memory (RssAnon: mapped files do not count) of a process and its descendants
    together, looked at 20 times a second. Pages that a forked worker shares with its parent count
    twice. None where there is no /proc."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak = pid, None if not Path("/proc/self/status").exists() else 0.0

    def run(self) -> None:
        while self.peak is not None and (now := anonymous(self.pid)) > 0:
            self.peak = max(self.peak, now)
            time.sleep(0.05)


def anonymous(pid: int) -> float:
    """Return anonymous MB of a process and its descendants, 0 for a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")]
    return sum(own) + sum(anonymous(int(c)) for c in children)


def read(out: Path | None) -> list[Line]:
    if out is None or not out.exists():
        return []
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def versions() -> dict[str, str]:
    return {n: v for n in PACKAGES if (v := installed(n))}


# ---------------------------------------------------------------- data


def split_of(data: Path) -> Split:
    """Return the split that ``regraft fit DATA`` trains on."""
    from regraft.data.loading import load_data
    from regraft.plan.read import read_plan

    plan = read_plan(None, {"data.path": str(data), "source.ref": "none"})
    options = plan.plugins.task
    splits, task = load_data(plan.data, options.make, options.strata)
    classes = list(task.classes)

    def rows(split: str) -> list[tuple[str, int]]:
        return [(e.inputs[0], classes.index(e.cells[0])) for e in getattr(splits, split)]

    return Split(classes, rows("train"), rows("val"), rows("test"))


def limited(data: Path, rows: int, to: Path) -> Path:
    """Return about ``rows`` rows of each split, for a trial.

    Pictures of each class are chosen by a hash of their names, tables by their first lines.
    """
    for table_ in data.glob("*.csv"):
        to.mkdir(exist_ok=True)
        with table_.open(newline="", encoding="utf-8") as file:
            kept = [line for line, _ in zip(csv.reader(file), range(rows + 1), strict=False)]
        with (to / table_.name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(kept)
    for split in (p for p in data.iterdir() if p.is_dir()):
        classes = sorted(split.iterdir())
        for folder in classes:
            pictures = sorted(folder.iterdir(), key=lambda p: sha256(p.name.encode()).digest())
            (to / split.name / folder.name).mkdir(parents=True)
            for picture in pictures[: max(2, rows // len(classes))]:
                shutil.copy(picture, to / split.name / folder.name)
    return to


# ---------------------------------------------------------------- the table


def table(lines: Sequence[Line], figures: Sequence[str], ratios: Sequence[Ratio]) -> None:
    """Return medians with range and n by peer, then the ratios."""
    peers = list(dict.fromkeys(x["peer"] for x in lines))
    rows = [["peer", *figures, "n"]]
    for peer in peers:
        mine = [x for x in lines if x["peer"] == peer]
        cells = [spread([x[f] for x in mine if isinstance(x.get(f), int | float)]) for f in figures]
        rows.append([peer, *cells, str(len(mine))])
    aligned(rows)
    rows = [["ratio", "median [range]", "n", "wanted"]]
    for r in ratios:
        over = by_repeat(lines, r.over, r.figure)
        sides = {p: by_repeat(lines, p, r.of or r.figure) for p in r.under}
        sides = {p: s for p, s in sides.items() if s}
        if not over or not sides:
            continue
        best = min(sides, key=lambda p: statistics.median(sides[p].values()))
        both = sorted(over.keys() & sides[best].keys())
        found = [over[i] / sides[best][i] for i in both]
        above, below = f"{r.over} {r.figure}", f"{best} {r.of or r.figure}"
        names, sign = f"{above} ÷ {below}", "≤"
        if r.faster:
            found, names, sign = [1 / x for x in found], f"{below} ÷ {above}", "≥"
        if found:
            rows.append([names, spread(found), str(len(found)), f"{sign} {r.want:g}"])
    if len(rows) > 1:
        aligned(rows)


def by_repeat(lines: Sequence[Line], peer: str, figure: str) -> dict[int, float]:
    return {x["repeat"]: x[figure] for x in lines if x["peer"] == peer and isinstance(x.get(figure), int | float)}


def spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle, low, high = shown(statistics.median(values)), shown(min(values)), shown(max(values))
    return middle if low == high else f"{middle} [{low}, {high}]"


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def aligned(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
