"""Source rows: divided once by content, labels as the source's own head numbers them."""

from pathlib import Path

import pytest
from torch import nn

from regraft.data.types import Example
from regraft.errors import DataError, PlanError
from regraft.pipeline.target_data import assemble, divide, load_source_data, source_task
from regraft.plan.read import check


def rows(n, group=None):
    return [Example(f"{i:016x}-0", (str(i),), ("00",), f"row {i}", group) for i in range(n)]


def test_rows_without_splits_are_divided_by_content_alone():
    examples = rows(2000)
    parts = divide(examples, [None] * 2000)
    assert sorted(e.id for p in parts.values() for e in p) == sorted(e.id for e in examples)
    shares = {name: len(p) / 2000 for name, p in parts.items()}
    assert shares == pytest.approx({"fit": 0.5, "select": 0.25, "report": 0.25}, abs=0.04)
    few = divide(examples[::-3], ["test"] * len(examples[::-3]))  # neither order nor others matter
    for name, part in few.items():
        assert set(part) <= set(parts[name])


def test_equal_inputs_and_groups_stay_in_one_part():
    twins = [Example(f"{i:016x}-{n}", (), ("00",), "") for i in range(200) for n in range(2)]
    for part in divide(twins, [None] * 400).values():
        contents = [e.id[:16] for e in part]
        assert all(contents.count(c) == 2 for c in contents)
    grouped = [e for g in range(50) for e in rows(10, f"g{g}")]
    parts = divide(grouped, [None] * 500)
    named = [{e.group for e in part} for part in parts.values()]
    assert all(named) and not (named[0] & named[1] | named[0] & named[2] | named[1] & named[2])


def test_what_the_source_was_trained_on_is_never_reported():
    examples = rows(600)
    three = divide(examples, ["train"] * 200 + ["val"] * 200 + ["test"] * 200)
    assert three == {k: tuple(examples[i : i + 200]) for k, i in (("fit", 0), ("select", 200), ("report", 400))}
    two = divide(examples, [None] * 300 + ["test"] * 300)
    assert two["fit"] == tuple(examples[:300])
    assert sorted(e.id for e in two["select"] + two["report"]) == [e.id for e in examples[300:]]
    assert len(two["select"]) == pytest.approx(150, abs=30)


def test_too_few_rows_for_a_part_are_refused(numbers_source):
    source = numbers_source()
    task = source_task(source, names(source))
    with pytest.raises(DataError, match=r"x .*2 fit, 0 select, 0 report"):
        assemble(source, task, {"fit": tuple(rows(2)), "select": (), "report": ()}, "x")


def names(source):
    return [f"{i:02d}" for i in range(source.head.weight.shape[0])]


def test_the_heads_outputs_need_names(numbers_source):
    source = numbers_source()
    with pytest.raises(PlanError, match=r"source_data\.classes"):
        source_task(source, [])
    with pytest.raises(PlanError, match=r"source_data\.classes: 2 names for the \d+ outputs"):
        source_task(source, ["a", "b"])
    source.labels = tuple(names(source))
    assert source_task(source, []).classes == source.labels
    assert source_task(source, names(source)[::-1]).classes == source.labels[::-1]


def plan(**data):
    return check({"source": {"ref": "x"}, "data": {"path": "x"}, "source_data": data})


def test_without_head_or_source_data_nothing_is_measured(numbers_source):
    source = numbers_source()
    assert load_source_data(plan(), source) == (None, [])  # it is no run
    assert load_source_data(plan(path="none"), source) == (None, [])
    source.head = None
    with pytest.raises(PlanError, match="has no head to measure with"):
        load_source_data(plan(path="somewhere"), source)


def test_labels_that_the_head_does_not_know_are_refused(numbers_source, tmp_path: Path):
    source = numbers_source()
    source.labels = tuple(names(source))
    table = tmp_path / "rows.csv"
    table.write_text("text,label\n1 2 3 4,00\n5 6 7 8,cat\n")
    source.backbone.kind = nn.Identity()
    from dataclasses import replace

    source = replace(source, preprocess=replace(source.preprocess, kind="text"))
    with pytest.raises(DataError, match=r'rows\.csv row 3.*"cat" is not a class'):
        load_source_data(plan(path=str(table), text=["text"], label=["label"]), source)
