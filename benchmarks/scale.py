"""Cost of each stage as rows or classes grow: CPU seconds, peak memory, and the exponent of growth.

    python benchmarks/scale.py                                   small sizes of every stage
    python benchmarks/scale.py near_pictures --rows 20000 200000 1300000
    python benchmarks/scale.py auc macro_f1 --rows 50000 --classes 1000 2000 10000

Data are drawn, from seed 0. Each line is a process of its own with one thread; memory is its VmHWM, of which
imports are the 0.1 to 0.5 GB that the smallest sizes show. A bootstrap's seconds are those of what is
computed once, and of 16 resamples times as many as a run makes of so many rows. The exponent is the slope of
log seconds over log size, of the sizes that took 0.05 s or more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Work = Callable[[], float | None]  # the timed function; it may return seconds of its own
RNG = np.random.default_rng(0)


def bootstrap(name: str) -> Callable[[int, int], Work]:
    def ready(rows: int, classes: int) -> Work:
        from regraft import plugins
        from regraft.evidence.intervals import at_weights, resample
        from regraft.evidence.scoring import resample_count

        truth = RNG.integers(0, classes, rows)
        scores = RNG.random((rows, classes))
        scores[np.arange(rows), truth] += 0.7
        scores /= scores.sum(1, keepdims=True)

        def work() -> float:
            began = time.process_time()
            function = at_weights(plugins.module("metrics", name), truth, scores)
            once = time.process_time()
            resample(function, rows, resamples=16)
            return once - began + (time.process_time() - once) / 16 * resample_count(rows)

        return work

    return ready


def confusion(rows: int, classes: int) -> Work:
    """Write the record as JSON, read it back, and make the report's section of it."""
    from types import SimpleNamespace

    from pydantic import TypeAdapter

    from regraft.report.sections.classes import context
    from regraft.runs.confusion import Confusion, confusion_of

    truth, predicted = RNG.integers(0, classes, (2, rows))
    names = [f"class {i}" for i in range(classes)]

    def work() -> None:
        schema = TypeAdapter(Confusion)
        text = schema.dump_json(confusion_of(truth.tolist(), predicted.tolist(), classes), indent=2)
        result = SimpleNamespace(confusion=schema.validate_json(text), classes=names, task="classification")
        context(SimpleNamespace(result=result))  # type: ignore[arg-type]
        print(f"  {len(text) / 1e6:.2f} MB of JSON", file=sys.stderr)

    return work


def balanced(rows: int, classes: int) -> Work:
    from regraft.data.ordering import balanced

    ids = [f"{i:016x}" for i in range(rows)]
    strata = [f"class {i}" for i in RNG.integers(0, classes, rows)]
    return lambda: balanced(ids, strata, 0, 1) and None


def problem(rows: int, classes: int) -> Work:
    from regraft.tasks.classification import Classification

    names = [(f"class {i}",) for i in range(classes)]
    task = Classification().make(names, ("label",))
    cells = [names[i] for i in RNG.integers(0, classes, rows)]
    return lambda: [task.problem(row) for row in cells] and None


def multilabel(rows: int, classes: int) -> Work:
    import torch  # noqa: F401, not timed

    from regraft.tasks.multilabel import MultiLabel

    task = MultiLabel().make([(f"label {i}",) for i in range(classes)], ("labels",))
    cells = [(";".join(f"label {i}" for i in row),) for row in RNG.integers(0, classes, (rows, 3))]

    def work() -> None:
        task.encode(cells)
        for row in cells:
            task.given(row)

    return work


def near_pictures(rows: int, classes: int) -> Work:
    """Return a near-duplicate search on hashes; one in a hundred is close to another. ``classes`` is unused."""
    from regraft.checks._near import close_hashes

    values = RNG.integers(0, 2**63, 2 * rows, np.uint64) << np.uint64(1)
    some = rows // 100
    values[rows : rows + some] = values[:some] ^ np.uint64(1 << 20)
    return lambda: close_hashes(values, 8, rows) and None


def near_texts(rows: int, classes: int) -> Work:
    from regraft.checks._near import find_text_pairs
    from regraft.data.types import Example

    words = [f"w{i:x}" for i in range(5_000)]
    drawn = RNG.integers(0, 5_000, (rows, 20))
    examples = [Example(str(i), (" ".join(words[k] for k in row),), ("x",), "") for i, row in enumerate(drawn)]
    return lambda: find_text_pairs(examples, None) and None


def probe(rows: int, classes: int) -> Work:
    """Fit one λ = 0.01 on 256 features, of as many rows as a fit may have."""
    import torch

    from regraft.evidence.linear_probe import fit_probe
    from regraft.model.forward import Outputs
    from regraft.tasks.classification import Classification

    torch.set_num_threads(1)
    truth = RNG.integers(0, classes, rows)
    values = RNG.standard_normal((classes, 256), np.float32)[truth] * 0.3
    values += RNG.standard_normal((rows, 256), np.float32)
    ids = tuple(f"{i:08x}" for i in range(rows))
    train = Outputs(ids, torch.from_numpy(values), torch.from_numpy(truth))
    task = Classification().make([(f"{i:06d}",) for i in range(classes)], ("label",))

    def work() -> None:
        found = fit_probe(train, task, [0.01])
        print(f"  {found.rows:,} of {found.of:,} rows", file=sys.stderr)

    return work


def outputs(rows: int, classes: int) -> Work:
    """Collect as many features as classes from a module without work: what is left is to hold them."""
    import torch

    from regraft.compute.device import Compute
    from regraft.data.batches import Batches, LabelledRows
    from regraft.data.ordering import EpochOrder
    from regraft.data.preprocessing import build
    from regraft.data.readers import make_reader
    from regraft.data.types import CallableSpec, Example
    from regraft.model.forward import outputs

    examples = [Example(f"{i:08x}", (str(i),), ("x",), "") for i in range(rows)]
    spec = CallableSpec(lambda inputs: torch.zeros(1))
    labelled = LabelledRows(examples, torch.zeros(rows))
    batches = Batches(labelled, make_reader(build(spec), examples), EpochOrder(1024))

    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(len(x), classes)

    return lambda: outputs(Wide(), batches, Compute()) and None


def predictions(rows: int, classes: int) -> Work:
    """Return a task that writes scores as the run does and reads them as a comparison does."""
    from regraft.evidence.comparison import LABELS, read_scores
    from regraft.runs.folder import RunFolder

    scores = RNG.random((rows, classes))
    names = [f"p(class {i})" for i in range(classes)]

    def work() -> None:
        with tempfile.TemporaryDirectory() as place:
            lines = ([str(i), "x.jpg", "a", "a", *row.tolist()] for i, row in enumerate(scores))
            RunFolder(Path(place)).csv("predictions.csv", [*LABELS, *names], lines)
            read_scores(Path(place), classes)

    return work


STAGES: dict[str, Callable[[int, int], Work]] = {
    "macro_f1": bootstrap("macro_f1"),
    "balanced_accuracy": bootstrap("balanced_accuracy"),
    "auc": bootstrap("auc"),
    "ece": bootstrap("ece"),
    "confusion": confusion,
    "balanced": balanced,
    "problem": problem,
    "multilabel": multilabel,
    "near_pictures": near_pictures,
    "near_texts": near_texts,
    "probe": probe,
    "outputs": outputs,
    "predictions": predictions,
}


def child(name: str, rows: int, classes: int) -> None:
    from regraft.compute.malloc import freed_memory_kept

    work = STAGES[name](rows, classes)
    with freed_memory_kept():
        began = time.process_time()
        own = work()
    seconds = time.process_time() - began if own is None else own
    status = Path("/proc/self/status").read_text().split()
    print(json.dumps([seconds, int(status[status.index("VmHWM:") + 1]) / 1e6]))


def measured(name: str, rows: int, classes: int) -> tuple[float, float, str]:
    """Return CPU seconds, gigabytes and the output of a process."""
    done = subprocess.run(
        [sys.executable, __file__, name, "--child", "--rows", str(rows), "--classes", str(classes)],
        capture_output=True,
        text=True,
        check=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    seconds, memory = json.loads(done.stdout)
    return seconds, memory, done.stderr.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 20_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[100])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.stages[0], chosen.rows[0], chosen.classes[0])
        return
    print("stage                 rows  classes   CPU s   peak GB", flush=True)
    for name in chosen.stages or STAGES:
        taken: dict[tuple[int, int], float] = {}
        for rows in chosen.rows:
            for classes in chosen.classes:
                taken[rows, classes], memory, said = measured(name, rows, classes)
                line = f"{name:<18}{rows:>8,} {classes:>8,}{taken[rows, classes]:>8.2f}{memory:>10.2f}   {said}"
                print(line, flush=True)
        for axis, what in enumerate(("rows", "classes")):
            sizes = {k[axis]: v for k, v in taken.items() if v >= 0.05}
            if len(sizes) > 1:
                slope = np.polyfit(np.log(list(sizes)), np.log(list(sizes.values())), 1)[0]
                print(f"{name:<18}grows as {what} to the power of {slope:.2f}", flush=True)


if __name__ == "__main__":
    main()
