"""What the fits of a run share, and what a rank that computes alone must forget."""

from __future__ import annotations

import pytest

from regraft.pipeline.target_data import Memo


def test_a_value_is_computed_once():
    memo, calls = Memo(), []
    for _ in range(2):
        assert memo.once("key", lambda: calls.append(1) or len(calls)) == 1
        assert memo.features("val", "float32", lambda: calls.append(2) or "rows") == "rows"
    assert calls == [1, 2]


def test_a_local_scope_drops_what_is_added_inside():
    memo = Memo()
    memo.once("kept", lambda: 1)
    with pytest.raises(ValueError, match="diverged"), memo.local_scope():
        memo.once("alone", lambda: 2)
        memo.images["train", True] = None
        memo.decisions["key"] = "live"
        memo.reported.add("why")
        raise ValueError("diverged")
    assert memo == Memo(values={"kept": 1})
