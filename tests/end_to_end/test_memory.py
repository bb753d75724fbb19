"""While steps are made the memory that they free is kept; afterwards it is not."""

from pathlib import Path
from typing import Any

import pytest

from regraft.heap import KEPT, USUAL
from regraft.objective import Objective


class Libc:
    """What regraft tells glibc."""

    def __init__(self) -> None:
        self.now, self.trims = dict(USUAL), 0

    def mallopt(self, parameter: int, size: int) -> int:
        self.now[parameter] = size
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trims += 1
        return 1


@pytest.mark.parametrize(
    ("command", "more"),
    [("fit", ["--out"]), ("plan", []), ("curve", ["--labels", 2, "--out"])],
)
def test_what_a_step_frees_is_kept_for_the_next(
    command: str, more: list[object], pictures: Path, weights: Path, cli: Any,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    libc, kept, step = Libc(), [], Objective.step

    def watched(*given: Any, **options: Any) -> Any:
        kept.append(libc.now == KEPT)
        return step(*given, **options)

    monkeypatch.setattr("regraft.heap.glibc", lambda: libc)
    monkeypatch.setattr("regraft.heap.set_by", lambda environment: False)
    monkeypatch.setattr(Objective, "step", watched)
    out = [tmp_path / "out"] if more else []
    code, _, err = cli(
        command, pictures, "--source", "timm:test_resnet", "--weights", weights, "--epochs", 1,
        "--set", "source.image_size=32", "--set", "run.threads=1", *more, *out,
    )  # fmt: skip
    assert code == 0, err
    assert kept and all(kept)
    assert libc.now == USUAL and libc.trims == 1
