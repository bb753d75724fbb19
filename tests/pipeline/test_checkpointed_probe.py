"""A probe from its checkpoint: to the bit as it was fitted, or a message that says what to remove."""

from __future__ import annotations

import pytest
import torch

from regraft.errors import UsageError
from regraft.evidence.linear_probe import Probe
from regraft.pipeline.train import load_or_fit_probe
from regraft.training.checkpoints import CheckpointManager
from regraft.training.records import Saved


def made() -> Probe:
    losses = {0.1 + 0.2: 2 / 7, 1.0: 1 / 3}
    return Probe(torch.arange(6.0).view(2, 3), torch.ones(2), 1.0, losses, "val", rows=9, of=20, passes=2)


def test_a_resumed_run_has_the_probe_that_was_fitted(tmp_path):
    first = load_or_fit_probe(CheckpointManager(tmp_path), "probe", made)
    later = CheckpointManager(tmp_path)
    later.scan()
    again = load_or_fit_probe(later, "probe", lambda: pytest.fail("it is fitted again"))
    assert torch.equal(again.weight, first.weight) and torch.equal(again.bias, first.bias)
    for name in ("strength", "losses", "chosen_by", "rows", "of", "passes"):
        assert getattr(again, name) == getattr(first, name)


@pytest.mark.parametrize("change", [{"strength": None}, {"losses": [[1.0]]}, {"rows": "9"}, {"passes": -1}])
def test_a_damaged_record_of_a_probe_is_refused(change, monkeypatch, tmp_path):
    record = {"strength": 1.0, "losses": [[1.0, 0.5]], "chosen_by": "val"}
    saved = Saved(record | change, {"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    manager = CheckpointManager(tmp_path)
    monkeypatch.setattr(manager, "done", lambda part: saved)
    with pytest.raises(UsageError, match=rf"probe.*{next(iter(change))}.*remove"):
        load_or_fit_probe(manager, "probe", made)
