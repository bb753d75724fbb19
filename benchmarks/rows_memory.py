"""CPU seconds and bytes a row of each stage between a table of texts and the first batch.

    python benchmarks/rows_memory.py --rows 100000 1000000

Each number of rows is measured in a child process: texts of 131 bytes, twenty classes, one row in fifty
equal to another. What is imported and set up once is done before, with 1,000 rows. "resident" is what a
stage leaves behind beside what was there before the first one, "peak" the most while it ran. Both are of
anonymous memory (RssAnon, looked at every 10 ms): pages of a mapped file belong to the kernel, which takes
them back when it wants to.
"""

from __future__ import annotations

import argparse
import csv
import gc
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTH, CLASSES, AGAIN = (131, 20, 50)  # bytes of a text; classes; one row in so many is another's twin


def write_table(path: Path, count: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(count):
            number = i - 1 if i % AGAIN == 1 else i
            text = f"{number * 2654435761 % 2**32:08x} and what somebody wrote about {number} "
            writer.writerow([(text * 4)[:LENGTH], f"class {number % CLASSES}"])


def anonymous() -> int:
    """Return the bytes of memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("this benchmark needs Linux's /proc")


class Peak:
    """The most anonymous memory inside the block."""

    def __enter__(self) -> Peak:
        self.most, self.stop = anonymous(), threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stop.wait(0.01):
            self.most = max(self.most, anonymous())

    def __exit__(self, *error: object) -> None:
        self.most = max(self.most, anonymous())
        self.stop.set()
        self.thread.join()


def stages(table: Path) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return each stage as a function of the results of those before it."""
    from regraft.checks import class_names, classes, conflicting_labels, exact_duplicates, near_duplicates, short_texts
    from regraft.data import loading as data
    from regraft.data import splitting
    from regraft.data.types import DataOptions
    from regraft.pipeline.findings import seen_of
    from regraft.tasks.classification import Classification

    options, task = DataOptions(table), Classification()

    def identify(at: dict[str, Any]) -> Any:
        return data.identify(at.pop("read"), "fail")

    def checked(check: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda at: len(list(check.check(seen_of(*at["seen"]))))

    def divide(at: dict[str, Any]) -> Any:
        return splitting.draw_splits(at.pop("identify"), options, task.make, task.strata)

    def encode(at: dict[str, Any]) -> Any:
        splits, made = at["divide"]
        at["seen"] = (splits, task)
        return made.encode([e.cells for e in splits.train])

    file = table.with_name("manifest.jsonl")
    return {
        "read": lambda at: data.read_raw(options),
        "identify": identify,
        "divide": divide,
        "encode": encode,
        "write manifest": lambda at: splitting.write_manifest(at["divide"][0], file),
        "read manifest": lambda at: sum(1 for _ in splitting.read_manifest(file)),
        "exact_duplicates": checked(exact_duplicates),
        "conflicting_labels": checked(conflicting_labels),
        "short_texts": checked(short_texts),
        "classes": checked(classes),
        "class_names": checked(class_names),
        "near_duplicates": checked(near_duplicates),
    }


def measure(table: Path, count: int, leave_out: list[str]) -> None:
    small = table.with_name("small.csv")
    write_table(small, 1000)
    at: dict[str, Any] = {}
    for name, step in stages(small).items():  # run small data first, so that imports do not count
        at[name] = step(at)
    at, steps = {}, stages(table)
    gc.collect()
    before = anonymous()
    print(f"\n| {count:,} rows | CPU seconds | resident bytes a row | peak bytes a row |\n|---|---|---|---|")
    for name, step in steps.items():
        if name in leave_out:
            continue
        began = time.process_time()
        with Peak() as peak:
            at[name] = step(at)
        seconds = time.process_time() - began
        gc.collect()
        kept, most = anonymous() - before, peak.most - before
        print(f"| {name} | {seconds:.1f} | {kept / count:,.0f} | {most / count:,.0f} |", flush=True)
    print("digest", at["divide"][0].digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--leave-out", nargs="*", default=[], help="names of stages")
    parser.add_argument("--child", type=Path)
    given = parser.parse_args()
    if given.child:
        measure(given.child, given.rows[0], given.leave_out)
        return
    for count in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "texts.csv"
            write_table(table, count)
            command = [sys.executable, __file__, "--child", str(table), "--rows", str(count)]
            subprocess.run([*command, "--leave-out", *given.leave_out], check=True)


if __name__ == "__main__":
    main()
