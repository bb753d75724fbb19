"""While batches are computed the memory that they free is kept; afterwards it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders import tiny_source
from regraft.compute.device import Compute
from regraft.compute.malloc import KEPT, USUAL
from regraft.training.objective import Objective


class Libc:
    """What regraft tells glibc."""

    def __init__(self) -> None:
        self.now, self.given_back = dict(USUAL), False
        self.kept: list[bool] = []  # whether it was, at each batch

    def mallopt(self, parameter: int, size: int) -> int:
        self.now[parameter] = size
        self.given_back = False
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.given_back = self.now == USUAL  # only what is freed by now, and not kept again
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    found = Libc()

    def watched(known: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            found.kept.append(found.now == KEPT)
            return known(*given, **options)

        return call

    monkeypatch.setattr("regraft.compute.malloc.glibc", lambda: found)
    monkeypatch.setattr("regraft.compute.malloc.set_by", lambda environment: False)
    monkeypatch.setattr(Objective, "step", watched(Objective.step))
    monkeypatch.setattr(Compute, "to_device", watched(Compute.to_device))
    return found


def quick(weights: Path) -> list[object]:
    return [*tiny_source(weights), "--set", "run.threads=1", "--set", "run.cache=off"]


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("fit", ["--epochs", 1, "--out", "run"]),
        ("plan", ["--epochs", 1]),
        ("curve", ["--epochs", 1, "--labels", 2, "--out", "curve"]),
        ("rates", ["--steps", 4]),
        ("check", []),
    ],
)
def test_what_a_batch_frees_is_kept_for_the_next(
    command: str,
    more: list[object],
    pictures: Path,
    weights: Path,
    cli: Any,
    libc: Libc,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(command, pictures, *quick(weights), *more)
    assert code == 0, err
    assert libc.kept and all(libc.kept)
    assert libc.now == USUAL and libc.given_back


def test_so_it_is_when_a_run_is_used(pictures: Path, weights: Path, cli: Any, libc: Libc, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folds = ("--set", "data.folds=2")  # the last epoch stands, so that there is a frontier
    assert cli("fit", pictures, *quick(weights), *folds, "--epochs", 1, "--out", run)[0] == 0
    picture = next(pictures.rglob("*.png"))
    for command, *more in (
        ("evaluate", run, pictures / "test"),
        ("predict", run, *[picture] * 33),
        ("frontier", run, "--out", tmp_path / "chosen"),
    ):
        libc.kept.clear()
        libc.given_back = False
        code, _, err = cli(command, *more)
        assert code == 0, err
        assert libc.kept and all(libc.kept), command
        assert libc.now == USUAL and libc.given_back, command
    libc.kept.clear()
    libc.given_back = False
    assert cli("predict", run, picture)[0] == 0
    assert libc.kept and not any(libc.kept) and not libc.given_back  # there is no next batch
