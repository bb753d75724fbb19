"""A worker of a search, for tests/end_to_end/test_tune_workers.py: python tune_worker.py OPTIONS.json.

With ``hang`` = 2 it stops for ever within the second trial that it takes, after an epoch, and leaves a file then.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from regraft.commands.search import tune
from regraft.commands.search.leaderboard import record
from regraft.commands.search.options import TuneOptions
from regraft.io.log import lines_to
from regraft.plan.read import read_plan
from workers import run


def main(options: dict[str, Any]) -> None:
    warnings.simplefilter("error", RuntimeWarning)
    if "hang" in options:
        report, taken = tune.Search.report, set[int]()

        def hang(self: tune.Search, trial: Any, step: int, figures: dict[str, float]) -> None:
            taken.add(trial.number)
            if len(taken) == options["hang"] and step == 1:
                Path(options["marker"]).write_text("inside")
                time.sleep(600)
            report(self, trial, step, figures)

        tune.Search.report = hang
    if "pause_s" in options:  # so that two workers share the trials
        score = tune.Search.score

        def pause(self: tune.Search, *words: Any) -> Any:
            time.sleep(options["pause_s"])
            return score(self, *words)

        tune.Search.score = pause
    plan = read_plan(Path(options["plan"]), {"run.out": options["out"]})
    chosen = TuneOptions(options["database"], "shared", f"{options['wait_s']}s", heartbeat=1)
    with lines_to(lambda line: print(line, file=sys.stderr, flush=True)):
        board = tune.tune(plan, chosen)
    (Path(options["out"]) / "board.json").write_text(json.dumps(record(board)))


if __name__ == "__main__":
    run(main)
