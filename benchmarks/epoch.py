"""One epoch of full fine-tuning at 224 px, warm: the second of two, its val evaluation apart.

    python benchmarks/epoch.py ants_bees weights --out results.jsonl

EfficientNet-Lite0, batches of 32, AdamW, the same crops and flips; the clock runs from the start of the
epoch to the end of its last step.

- regraft: the default plan at batches of 32, timed by a wrapper around its batches.
- loop_0, loop_2, loop_2_bf16: the best loop by hand (see peers.by_hand) with 0 and 2 workers, and in
  bf16; the best of them counts.
- hf_default: HF Trainer with its defaults but for the batch: float32, contiguous, no workers.
- hf_tuned, hf_tuned_bf16: two workers that stay, channels-last; the better of the two counts.
- lightning, fastai: as their tutorials have it, batches of 32, no workers; left out where they are not
  installed (pip install 'regraft[bench]').

With 5 repeats on two quiet cores: 35 min.
"""

from __future__ import annotations

import time
from typing import Any

import race
from race import Lane, Ratio

LR, EPOCHS = 3e-5, 2  # the rate that regraft takes for pictures


def regraft(lane: Lane) -> dict[str, Any]:
    import peers

    from regraft.pipeline.run import RunOptions, run
    from regraft.plan.read import read_plan

    plan = read_plan(
        None,
        {
            "data.path": str(lane.data),
            "source.ref": f"timm:{peers.ARCH}",
            "run.out": str(lane.out / "run"),
            "source.weights": str(peers.weights_file(lane.weights)),
            "run.seed": lane.seed,
            "fit.batch_size": peers.BATCH,
            "fit.epochs": EPOCHS,
            "fit.alpha": 1.0,
        },
    )
    clock = race.Batched()
    run(plan, RunOptions(track=clock))
    return {"seconds": clock.train[-1], **clock.val(lane.out / "run")}


def loop(lane: Lane, workers: int, bf16: bool = False) -> dict[str, Any]:
    import peers

    *_, (accuracy, train, val) = peers.by_hand(lane, epochs=EPOCHS, lr=LR, workers=workers, bf16=bf16)
    return {"seconds": train, "val seconds": val, "val": accuracy}


def hf(lane: Lane, *, tuned: bool, **settings: Any) -> dict[str, Any]:
    import peers

    clock = peers.Clock()
    peers.hf_pictures(lane, clock, tuned=tuned, num_train_epochs=EPOCHS, learning_rate=LR, **settings).train()
    return {"seconds": clock.train[-1], "val seconds": clock.val[-1], "val": clock.accuracy[-1]}


def lightning(lane: Lane) -> dict[str, Any]:
    import lightning as pl
    import peers
    import torch
    from torch.nn.functional import cross_entropy

    clock = peers.Clock()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = peers.network(lane)

        def training_step(self, batch: Any, index: int) -> Any:
            return cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            right = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("accuracy", right, batch_size=len(batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=LR)

        def on_train_epoch_start(self) -> None:
            clock.at = time.perf_counter()

        def on_train_batch_end(self, *args: Any) -> None:
            clock.last = time.perf_counter()  # type: ignore[attr-defined]

        def on_train_epoch_end(self) -> None:  # after validation
            clock.train.append(clock.last - clock.at)  # type: ignore[attr-defined]
            clock.val.append(time.perf_counter() - clock.last)  # type: ignore[attr-defined]
            clock.accuracy.append(float(self.trainer.callback_metrics["accuracy"]))

    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=str(lane.out),
    )
    trainer.fit(
        Module(),
        peers.loader(lane.split.train, train=True, workers=0, each=True),
        peers.loader(lane.split.val, train=False, workers=0, each=True),
    )
    return {"seconds": clock.train[-1], "val seconds": clock.val[-1], "val": clock.accuracy[-1]}


def fastai(lane: Lane) -> dict[str, Any]:
    import fastai.callback.progress  # noqa: F401  (it gives a learner no_bar)
    import peers
    import torch
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.metrics import accuracy

    clock = peers.Clock()

    class Stamps(Callback):  # type: ignore[misc]
        def before_train(self) -> None:
            clock.at = time.perf_counter()

        def after_train(self) -> None:
            clock.train.append(time.perf_counter() - clock.at)

        def before_validate(self) -> None:
            clock.at = time.perf_counter()

        def after_validate(self) -> None:
            clock.val.append(time.perf_counter() - clock.at)

    loaders = DataLoaders(
        peers.loader(lane.split.train, train=True, workers=0, each=True),
        peers.loader(lane.split.val, train=False, workers=0, each=True),
        device=torch.device("cpu"),
    )
    learner = Learner(
        loaders, peers.network(lane), loss_func=torch.nn.CrossEntropyLoss(), metrics=accuracy, cbs=Stamps()
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit(EPOCHS, LR)
    return {"seconds": clock.train[-1], "val seconds": clock.val[-1], "val": float(learner.recorder.values[-1][-1])}


PEERS = {
    "regraft": regraft,
    "loop_0": lambda lane: loop(lane, 0),
    "loop_2": lambda lane: loop(lane, 2),
    "loop_2_bf16": lambda lane: loop(lane, 2, bf16=True),
    "hf_default": lambda lane: hf(lane, tuned=False),
    "hf_tuned": lambda lane: hf(lane, tuned=True),
    "hf_tuned_bf16": lambda lane: hf(lane, tuned=True, bf16=True),
    "lightning": lightning,
    "fastai": fastai,
}
RATIOS = [
    Ratio("regraft", ["loop_0", "loop_2", "loop_2_bf16"], 1.10),
    Ratio("regraft", ["hf_default"], 0.6),
    Ratio("regraft", ["hf_tuned", "hf_tuned_bf16"], 0.9),
    Ratio("regraft", ["lightning"], 1.0),
    Ratio("regraft", ["fastai"], 1.0),
]

if __name__ == "__main__":
    race.run(__doc__, PEERS, RATIOS, figures=("seconds", "val seconds", "val"), optional=("lightning", "fastai"))
