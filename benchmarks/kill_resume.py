"""kill -9 at random moments of a training run, resume, and compare with one that was left alone.

    python benchmarks/kill_resume.py --kills 200

Tiny pictures and timm's test_resnet with weights drawn once: a run of a few seconds that saves after
every step (two seeds, gradual unfreezing, a moving average, accumulation), so that many kills fall into
a save. Each run is killed after a random time, resumed and killed again until it finishes by itself; its
model, history and predictions must then be those of the run that was never killed, byte for byte.
Needs a system with fork: the imports are done once.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from regraft.pipeline.run import RunOptions, run
from regraft.plan.read import check

FILES = ("model/model.safetensors", "history.jsonl", "predictions.csv")


def make_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for c, colour in enumerate([(230, 160, 30), (20, 30, 120), (90, 120, 20)]):
        for split, count in (("train", 20), ("test", 4)):
            where = folder / split / f"class{c}"
            where.mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + rng.integers(-150, 151, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(where / f"{i}.png")


def begin(plan: dict, out: Path) -> int:
    """Start a run in a process of its own and return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        run(check({**plan, "run": {**plan["run"], "out": str(out)}}), RunOptions(resume=True))
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    tmp = Path(tempfile.mkdtemp(prefix="regraft-kills-"))
    os.environ |= {"REGRAFT_STATE": str(tmp / "state"), "REGRAFT_CACHE": str(tmp / "cache")}
    try:
        make_data(tmp / "data")
        torch.manual_seed(0)
        torch.set_num_threads(1)
        save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp / "w.safetensors")
        plan = {
            "source": {"ref": "timm:test_resnet", "weights": str(tmp / "w.safetensors"), "image_size": 32},
            "data": {"path": str(tmp / "data")},
            "fit": {
                "epochs": 4,
                "batch_size": 4,
                "accumulate": 2,
                "average": 0.9,
                "start": "random",
                "lr": 5e-4,
                "head_lr": 0.01,
            },
            "freezing": {"name": "gradual"},
            "run": {"seeds": 2, "threads": 1, "workers": 0, "checkpoint_every": 1, "device": "cpu", "cache": "off"},
        }
        start = time.monotonic()
        _, status = os.waitpid(begin(plan, tmp / "alone"), 0)
        if status:
            print("the run that is left alone failed")
            return 1
        length = time.monotonic() - start
        expected = {name: (tmp / "alone" / name).read_bytes() for name in FILES}
        print(f"left alone: {length:.1f} s, {len(expected['history.jsonl'].splitlines())} lines of history")
        kills = in_save = runs = equal = failed = 0
        while kills < asked.kills or runs == 0:
            out, killed = tmp / f"run{runs}", 0
            while True:
                pid = begin(plan, out)
                deadline = time.monotonic() + draw.uniform(0, length * 0.7)
                done, status = os.waitpid(pid, os.WNOHANG)
                while not done and time.monotonic() < deadline:
                    time.sleep(0.002)
                    done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    break
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                killed += 1
                in_save += bool(list(out.glob("checkpoints/tmp-*")))
            runs, kills = runs + 1, kills + killed
            same = not status and all((out / n).read_bytes() == expected[n] for n in FILES)
            equal, failed = equal + same, failed + bool(status)
            print(f"run {runs}: killed {killed} times, {'equal' if same else 'NOT EQUAL'}", flush=True)
            shutil.rmtree(out, ignore_errors=same)
        print(
            f"{kills} kills ({in_save} in the middle of a save) in {runs} runs: {failed} resumes failed, "
            f"{equal} of {runs} runs ended byte for byte as the one that was left alone"
        )
        return 0 if equal == runs else 1
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
