"""Fits by one process or by several, for tests/compute/test_processes.py: python fit_worker.py OPTIONS.json.

Each process notes the ids that it was given; the first one writes weights, losses and figures.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import builders
from builders import CPU, FLOATS, NO_AUGMENT, Recorder, class_task, make_batches, spell_rows
from regraft.compute import distributed as processes
from regraft.data.batches import Batches
from regraft.freezing.everything import Everything
from regraft.freezing.gradual import Gradual
from regraft.model.forward import outputs
from regraft.model.grafting import graft
from regraft.model.sharded import sharded
from regraft.model.types import Source
from regraft.regularizers.l2_sp import L2SP
from regraft.regularizers.lwf import LwF
from regraft.training.settings import Settings
from workers import run


def rows(n, batch_size, share=(0, 1)):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    targets = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return make_batches(spell_rows(x, ["a"] * n, f"{n:03d}"), targets, FLOATS, batch_size, share=share)


class Noting(Batches):
    """Batches that note which ids each step was given."""

    def __init__(self, of):
        super().__init__(of.rows, of.reader, of.order, of.compute)
        self.seen = []

    def epoch(self, n, skip=0):
        for batch in super().epoch(n, skip):
            self.seen.append(batch[0])
            yield batch


def main(options):
    torch.set_num_threads(1)
    processes.join(options.get("processes"), cpu=True)
    for one in options.get("cases", [options]):
        fit(one)
    processes.leave()


def fit(options):
    torch.manual_seed(0)
    net = nn.Sequential()
    net.low = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Tanh())
    net.high = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
    net.fc = nn.Linear(8, 4)
    source = Source.from_module(net, head="fc", preprocess=FLOATS, example=torch.randn(4, 5), name="net")
    source = replace(source, labels=("p", "q", "r", "s"))
    task = class_task("a", "b", "c")
    target = graft(source, 3, seed=0)
    share = (processes.rank(), processes.world_size())
    train = Noting(rows(options["n"], options["batch_size"], share))
    val = rows(21, 8)
    settings = Settings(
        epochs=3,
        rates=dict.fromkeys([b.name for b in target.blocks], 0.01),
        optimizer=options.get("optimizer", "AdamW"),
        weight_decay=0.01,
        warmup=0.1,
        accumulate=options.get("accumulate", 1),
        sharpness=options.get("sharpness", 0.0),
        clip_norm=options.get("clip", 1.0),
        average=options.get("average", 0.0),
        augment=NO_AUGMENT,
    )
    penalties = {
        "l2_sp": L2SP(alpha=0.1).prepare(target, None, None),
        "lwf": LwF(strength=0.5).prepare(target, None, None),
    }
    if options.get("free"):  # of penalties
        penalties = {}
    if options.get("poison") and processes.rank() == options["poison"] - 1:
        train.examples[0] = replace(train.examples[0], inputs=("nan nan nan nan nan",))
    recorder = Recorder()
    freezing = Gradual() if options.get("gradual") else Everything()
    with sharded(target, CPU.device) if options.get("shard") else nullcontext(target) as fitted:
        shares = sum(p.to_local().numel() for p in fitted.model.parameters()) if options.get("shard") else 0
        done = builders.fit(
            fitted, train, task, settings, val=val, monitor=recorder, freezing=freezing, penalties=penalties
        )
    given = processes.gather_objects([train.seen])
    logits = outputs(target.model, val, CPU)
    if processes.is_rank0():
        out = Path(options["out"])
        save_file(target.model.state_dict(), out / "model.safetensors")
        record = {
            "history": [[e.terms, e.val] for e in recorder.epochs],
            "best": done.best_epoch,
            "given": given,
            "ids": logits.ids,
            "logits": logits.values.tolist(),
            "size": processes.world_size(),
            "shares": shares,
            "weights": sum(p.numel() for p in target.model.parameters()),
        }
        (out / "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    # what a launcher sets, so that the test needs none
    if "RANK" in os.environ:
        os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    run(main)
