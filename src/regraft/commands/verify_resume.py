"""``regraft verify-resume``: does a run that was killed end where an uninterrupted one does?

One run is stopped after 2K steps. Another is killed with signal 9 in step K, K/2 steps after its last
checkpoint, resumed, and stopped after 2K steps as well. All that is saved there is compared bit for
bit: weights, the optimiser's state, averages, the generator, the position. A fit that has fewer steps
is compared at its end. Everything happens in a temporary folder, with a ledger and a feature cache of
its own.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RegraftError, UsageError
from ..io.command_lines import python
from ..io.log import LOGGER
from ..io.work_folders import temporary_folder
from ..plan.schema import Plan
from ..plan.write import write_plan
from ..runs.folder import status_of
from ..runs.result import finished
from .launch import shell_code

if TYPE_CHECKING:
    from ..training.records import Saved


KILLED, STOPPED = 137, 143  # exit codes of a shell after SIGKILL and SIGTERM


@dataclass(frozen=True)
class Verified:
    """The comparison of the two runs."""

    killed: int  # the step that was never finished
    compared: int  # after how many steps; 0: at the end of the fit
    tensors: int
    differ: tuple[str, ...]  # names, with how far they are apart

    def __str__(self) -> str:
        where = f"after step {self.compared}" if self.compared else "at the end of the fit"
        what = f"killed with signal 9 in step {self.killed}, resumed, compared {where}"
        if not self.differ:
            return (
                f"resume is exact here: {what}: all {self.tensors} tensors (weights, optimiser, averages, "
                f"generator) are bit for bit those of the uninterrupted run"
            )
        return "\n".join(
            [
                f"resume is NOT exact here: {what}: {len(self.differ)} of {self.tensors} tensors differ",
                *(f"  {name}" for name in self.differ[:10]),
            ]
        )


def verify(plan: Plan, steps: int) -> Verified:
    """Compare a run that was killed and resumed with an uninterrupted one.

    Raises UsageError for fewer than 2 steps, RegraftError where a run fails.
    """
    if steps < 2:
        raise UsageError(f"--steps takes 2 or more, not {steps}")
    with temporary_folder("regraft-verify") as tmp:
        LOGGER.info("a run without interruption …")
        alone = Runs(plan, tmp, steps)
        if alone.fit("alone", f"stop step {2 * steps}") == 0:
            steps = finished(tmp / "alone").fit.steps // 2
            if steps < 1:
                raise UsageError("this fit has no two steps, so nothing can be compared")
        runs = Runs(plan, tmp, steps)
        LOGGER.info("a run that is killed in step %d …", steps)
        if runs.fit("killed", f"kill step {steps}") != KILLED:
            raise RegraftError(f"the run was not killed in step {steps}: it ended by itself")
        LOGGER.info("the killed run, resumed …")
        runs.fit("killed", f"stop step {2 * steps}", "--resume")
        one, other = end_of(tmp / "alone", 2 * steps), end_of(tmp / "killed", 2 * steps)
        compared = 2 * steps if status_of(tmp / "alone") != "finished" else 0
        return Verified(steps, compared, len(one.tensors), differences(one, other))


@dataclass(frozen=True)
class Runs:
    """Short runs of a plan in a folder, in processes of their own."""

    plan: Plan
    tmp: Path
    steps: int

    def fit(self, name: str, failpoint: str, *more: str) -> int:
        """Run ``regraft fit``, and return its exit code. Raises RegraftError with its message if it failed."""
        every = max(1, self.steps // 2)
        update = {"checkpoint_every": every, "cache": str(self.tmp / "cache")}
        run = self.plan.run.model_copy(update=update)
        file = self.tmp / "plan.toml"
        file.write_text(write_plan(self.plan.model_copy(update={"run": run})), encoding="utf-8")
        code = ["--allow-code"] if self.plan.allow_code else []
        command = [*python(), "-m", "regraft", "fit", str(file), "--out", str(self.tmp / name), "-q", *more, *code]
        env = os.environ | {"REGRAFT_FAILPOINT": failpoint, "REGRAFT_STATE": str(self.tmp / "state")}
        done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", errors="replace", check=False)
        ended = shell_code(done.returncode)
        if ended not in (0, KILLED, STOPPED):
            raise RegraftError(f"the run failed: {done.stderr.strip() or ended}")
        return ended


def end_of(run: Path, step: int) -> Saved:
    """Return the checkpoint after a step; of a finished run its model."""
    from ..training.checkpoints import read
    from ..training.records import Saved

    if status_of(run) == "finished":
        from safetensors.torch import load_file

        return Saved({"at": {}}, load_file(run / "model" / "model.safetensors"))
    places = sorted((run / "checkpoints").glob(f"step-{step:08d}*"))
    if not places:
        raise RegraftError(f"the run saved nothing after step {step}")
    return read(places[-1])


def differences(one: Saved, other: Saved) -> tuple[str, ...]:
    """Return the names of tensors that are not equal bit for bit, with their distance."""
    import torch

    found: list[str] = []
    a: dict[str, Any] = one.tensors
    b: dict[str, Any] = other.tensors
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            found.append(f"{name} is in one of the two alone")
        elif a[name].shape != b[name].shape or a[name].dtype != b[name].dtype:
            found.append(f"{name} has another shape or type")
        elif not torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a[name], b[name]))):
            apart = float((a[name].double() - b[name].double()).abs().max())
            found.append(f"{name} is {apart:.3g} apart at most")
    if one.record["at"] != other.record["at"]:
        found.append("the position, sums or figures")
    return tuple(found)
