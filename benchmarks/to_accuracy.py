"""Time to accuracy, from the start of a process: the wall time until val accuracy is reached.

    python benchmarks/to_accuracy.py flowers17 weights --out results.jsonl

- hf: HF Trainer tuned (two workers that stay, channels-last), 3 epochs.
- loop: the best loop by hand (see peers.by_hand), two workers, 3 epochs.
- regraft: `regraft fit` with its defaults; its history.jsonl is followed from outside, and its linear
  probe is epoch 0. It is stopped after five minutes, when every peer has long ended.

Peers take the best by val of three learning rates, tried beforehand with another seed, once; that search
is not in their time. "to its best" is the time until a peer's own best val accuracy, "in all" until its
last. "to the best peer" is the time until regraft has reached what the best peer's val accuracy is at
its end, in the same repeat (inf where it never does); the table divides it by that peer's own time to
its end. Test is not opened for the peers, and regraft chooses nothing by it.

With 5 repeats on two quiet cores: 75 min, 20 of them the search.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import race
from race import Lane, Ratio, point, since_start

RATES, EPOCHS, SEARCH_SEED = (1e-4, 3e-4, 1e-3), 3, 1000
CAP = 300.0  # seconds


def regraft(lane: Lane) -> dict[str, Any]:
    weights = lane.weights
    if weights.is_dir():
        weights = weights / "tf_efficientnet_lite0.imagenet.safetensors"
    out = lane.out / "run"
    command = [
        sys.executable,
        "-m",
        "regraft",
        "fit",
        str(lane.data),
        "--source",
        "timm:tf_efficientnet_lite0",
        "--set",
        f"source.weights={weights}",
        "--set",
        f"run.seed={lane.seed}",
        "--quiet",
        "--out",
        str(out),
    ]
    seen, last, stopped = 0, 0.0, False
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        ended = False
        while not ended:
            ended = process.poll() is not None  # one more look after the end
            history = out / "history.jsonl"
            lines = history.read_text().splitlines(keepends=True) if history.exists() else []
            for line in lines[seen:]:
                if line.endswith("\n"):
                    last = json.loads(line)["val"]["accuracy"]
                    point(last)
                    seen += 1
            if not stopped and since_start() > CAP:
                stopped = True
                process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
    if stopped:
        return {"in all": float("inf"), "val": last}
    if process.returncode:
        raise SystemExit(process.returncode)
    result = json.loads((out / "result.json").read_text())
    return {"in all": since_start(), "val": result["val"]["accuracy"]["value"]}


def hf_fit(lane: Lane, lr: float, tell: Callable[[float], None]) -> list[float]:
    import peers

    clock = peers.Clock(tell)
    peers.hf_pictures(lane, clock, tuned=True, num_train_epochs=EPOCHS, learning_rate=lr).train()
    return clock.accuracy


def loop_fit(lane: Lane, lr: float, tell: Callable[[float], None]) -> list[float]:
    import peers

    found = []
    for accuracy, _, _ in peers.by_hand(lane, epochs=EPOCHS, lr=lr, workers=2):
        tell(accuracy)
        found.append(accuracy)
    return found


Fit = Callable[[Lane, float, Callable[[float], None]], list[float]]


def searched(fit: Fit) -> race.Peer:
    """Return the best final val accuracy of three rates. It is no competitor."""

    def search(lane: Lane) -> dict[str, Any]:
        other = replace(lane, seed=SEARCH_SEED)
        final = {lr: fit(other, lr, lambda accuracy: None)[-1] for lr in RATES}
        return {"lr": max(final, key=final.__getitem__), "tried": {f"{k:g}": v for k, v in final.items()}}

    return search


def fitted(fit: Fit, name: str) -> race.Peer:
    def peer(lane: Lane) -> dict[str, Any]:
        accuracy = fit(lane, lane.found[f"{name}_search"]["lr"], point)
        return {"in all": since_start(), "val": accuracy[-1]}

    return peer


def derived(lines: list[dict[str, Any]]) -> None:
    """Add to each line the time until its own best, and to regraft's lines the time until the best peer's end."""
    for line in lines:
        best = max(v for _, v in line["points"])
        line["to its best"] = reached(line["points"], best)
        line["best val"] = best
    for mine in (x for x in lines if x["peer"] == "regraft"):
        peers = [x for x in lines if x["peer"] != "regraft" and x["repeat"] == mine["repeat"]]
        if peers:
            best_peer = max(peers, key=lambda x: (x["val"], -x["in all"]))
            mine["best peer in all"] = best_peer["in all"]
            at = reached(mine["points"], best_peer["val"])
            mine["to the best peer"] = float("inf") if at is None else at


def reached(points: list[list[float]], accuracy: float) -> float | None:
    return next((at for at, value in points if value >= accuracy), None)


PEERS = {"regraft": regraft, "hf": fitted(hf_fit, "hf"), "loop": fitted(loop_fit, "loop")}
SEARCHES = {"hf_search": searched(hf_fit), "loop_search": searched(loop_fit)}
RATIOS = [
    Ratio("regraft", ["regraft"], 0.5, figure="to the best peer", of="best peer in all"),
    Ratio("regraft", ["hf"], 0.5, figure="to the best peer", of="in all"),
    Ratio("regraft", ["loop"], 0.5, figure="to the best peer", of="in all"),
    Ratio("regraft", ["hf", "loop"], 1.0, figure="in all"),
]

if __name__ == "__main__":
    race.run(
        __doc__,
        PEERS,
        RATIOS,
        before=SEARCHES,
        derived=derived,
        figures=("to its best", "best val", "in all", "val", "to the best peer"),
    )
