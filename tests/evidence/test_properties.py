"""Properties that hold for any input: plans, manifests, the order of rows, draws of classes."""

from __future__ import annotations

import tomllib
from collections import Counter
from typing import Annotated, Any, get_args

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from builders import make_batches
from regraft.data.ordering import balanced, order
from regraft.data.preprocessing import build
from regraft.data.splitting import digest_of, read_manifest, write_manifest
from regraft.data.types import CallableSpec, Example, Splits
from regraft.errors import RegraftError
from regraft.plan.read import check, read_plan
from regraft.plan.schema import Plan, keys_of
from regraft.plan.write import write_plan
from regraft.runs.side_files import ManifestRow
from regraft.training import checkpoints

quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
characters = st.characters(exclude_categories=["Cs"])  # a lone surrogate is no text of TOML or UTF-8
texts = st.text(characters)


# ---------------------------------------------------------------- plans


def values_of(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Any value that a key of a plan takes, by its annotation."""
    return values(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)


def values(kind: Any) -> st.SearchStrategy[Any]:
    arguments = get_args(kind)
    if kind is str:
        return texts
    if kind is bool:
        return st.booleans()
    if kind in (float, int):
        return st.floats(allow_nan=False, allow_infinity=False) if kind is float else st.integers(-9, 9)
    if hasattr(kind, "__metadata__"):
        inner, *limits = arguments
        limits = [m for limit in limits for m in (getattr(limit, "metadata", None) or [limit])]
        if any(hasattr(m, "pattern") for m in limits):
            return st.integers(1, 99).map("{} min".format)
        low = [getattr(m, "ge", getattr(m, "gt", None)) for m in limits]
        high = [getattr(m, "le", getattr(m, "lt", None)) for m in limits]
        low, high = ([v for v in values if v is not None] for values in (low, high))
        if inner is int:
            return st.integers(int(max(low, default=0)), int(min(high, default=99)))
        if inner is float:
            above = [m for m in limits if getattr(m, "gt", None) is not None]
            below = [m for m in limits if getattr(m, "lt", None) is not None]
            return st.floats(
                max(low, default=0.0), min(high, default=1e6), exclude_min=bool(above), exclude_max=bool(below and high)
            )
        size = max((getattr(m, "min_length", 0) or 0 for m in limits), default=0)
        return st.lists(values(get_args(inner)[0]), min_size=size, max_size=4) if size else values(inner)
    origin = getattr(kind, "__origin__", None)
    if origin in (list, tuple):
        return st.lists(values(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(texts.filter(bool), values(arguments[1]), max_size=3)
    if str(origin) == "typing.Literal":
        return st.sampled_from(arguments)
    return st.one_of([values(a) for a in arguments if a is not type(None)])


def sections() -> st.SearchStrategy[dict[str, Any]]:
    """Plans with any of their keys set to anything that the key takes."""
    found: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in Plan.model_fields.items():
        if (known := keys_of(field.annotation)) and name != "augment":
            keys = {k: values_of(f) for k, f in known.items() if k != "recipe"}  # no plan that is read has one
            needed = {k: v for k, v in keys.items() if known[k].is_required()}
            optional = {k: v for k, v in keys.items() if k not in needed}
            found[name] = st.fixed_dictionaries(needed, optional=optional)
    return st.fixed_dictionaries(found).map(allowed)


def allowed(tree: dict[str, Any]) -> dict[str, Any]:
    """Give a plan that leaves the number of seeds open what that goes with."""
    if tree["run"].get("seeds") == "auto":
        tree["evaluate"]["controls"] = ["scratch"]
        tree["run"]["spread"] = "rows"
    return tree


@quick
@given(sections())
def test_any_plan_is_written_and_reads_back_as_it_was(tmp_path, tree):
    plan = check(tree)
    text = write_plan(plan)
    assert check(tomllib.loads(text)) == plan
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8", newline="\n")
    assert read_plan(path, {}) == plan
    assert write_plan(read_plan(path, {})) == text  # and again


@quick
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=12,
    )
)
def test_whatever_stands_in_a_plan_is_a_plan_or_refused_in_words(anything):
    for name in Plan.model_fields:
        tree = {"source": {"ref": "a"}, "data": {"path": "b"}, name: anything}
        try:
            check(tree)
        except RegraftError as error:
            assert str(error).strip()


# ---------------------------------------------------------------- manifests


examples = st.lists(
    st.builds(
        Example,
        id=st.integers(0, 2**64 - 1).map("{:016x}-0".format),
        inputs=st.just(("",)),
        cells=st.lists(texts, max_size=3).map(tuple),
        where=st.text(),  # names of files may be no UTF-8: surrogates
        group=st.none() | texts,
    ),
    unique_by=lambda e: e.id,
    max_size=8,
)


@quick
@given(examples, examples, examples)
def test_a_manifest_reads_back_every_row_in_its_order(tmp_path, train, val, test):
    parts = {"train": train, "val": val, "test": test}
    splits = Splits("text", tuple(train), tuple(val), tuple(test), digest_of(parts), "")
    write_manifest(splits, tmp_path / "manifest.jsonl")
    expected = [
        ManifestRow(id=e.id, hash=e.id[:16], split=s, cells=list(e.cells), where=e.where, group=e.group)
        for s, part in parts.items()
        for e in part
    ]
    assert list(read_manifest(tmp_path / "manifest.jsonl")) == expected
    shuffled = {s: part[::-1] for s, part in parts.items()}
    assert digest_of(shuffled) == splits.digest


numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


@quick
@given(
    st.dictionaries(texts, st.none() | st.booleans() | numbers | texts | st.lists(numbers)),
    st.dictionaries(st.text(characters, min_size=1), st.lists(st.floats(width=32), max_size=5), max_size=3),
)
def test_a_checkpoint_reads_back_and_any_changed_byte_is_seen(tmp_path, record, tensors):
    place = tmp_path / "step-00000001"
    tensors = {n: torch.tensor(v) for n, v in tensors.items() if n != "__metadata__"}
    checkpoints.write(place, record, tensors)
    assert checkpoints.verify(place) == record
    found = checkpoints.read(place)
    assert found.record == record and found.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found.tensors[name].numpy().tobytes() == value.numpy().tobytes()
    for name in (checkpoints.TENSORS, checkpoints.RECORD):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        try:
            checkpoints.verify(place)
            raise AssertionError(f"a changed {name} was taken")
        except checkpoints.DamagedError as error:
            assert name in str(error)
        (place / name).write_bytes(whole)


# ---------------------------------------------------------------- samplers


ids = st.lists(st.text(min_size=1), unique=True, min_size=1, max_size=60)


@quick
@given(ids, st.integers(0, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_an_order_has_every_row_once_whatever_order_they_came_in(names, seed, epoch, rng):
    found = [names[i] for i in order(names, seed, epoch)]
    assert sorted(found) == sorted(names)
    rng.shuffle(names)
    assert [names[i] for i in order(names, seed, epoch)] == found


@quick
@given(ids, st.integers(1, 5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_balanced_epoch_draws_classes_and_rows_equally_often(names, classes, seed, rng):
    strata = {name: f"c{rng.randrange(classes)}" for name in names}
    drawn = balanced(names, [strata[n] for n in names], seed, 1)
    n = len(names)
    assert len(drawn) == n and len(set(drawn)) == n  # a draw has a key of its own
    rows = Counter(names[d % n] for d in drawn)
    by_class = Counter(strata[names[d % n]] for d in drawn)
    assert set(by_class) <= set(strata.values())
    counts = [by_class[c] for c in set(strata.values())]
    assert max(counts) - min(counts) <= 1
    for c in by_class:  # no row is drawn again before all of its class are
        of_class = [rows[name] for name in names if strata[name] == c]
        assert max(of_class) - min(of_class) <= 1
    shuffled = rng.sample(names, n)
    again = balanced(shuffled, [strata[x] for x in shuffled], seed, 1)
    assert [(shuffled[d % n], d // n) for d in again] == [(names[d % n], d // n) for d in drawn]


@quick
@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2), st.booleans())
def test_batches_of_several_processes_are_those_of_one(rows, batch, processes, epoch, even):
    """Every row once, with its target, no batch too large, sizes within one of another."""
    given_rows = [Example(f"i{i}-0", (str(i),), (), str(i)) for i in range(rows)]
    spec = build(CallableSpec(lambda inputs: torch.tensor([float(inputs[0])])))
    strata = [str(i % 3) for i in range(rows)] if even else None

    def read(share):
        batches = make_batches(given_rows, torch.arange(rows), spec, batch, strata=strata, share=share)
        return [
            [(i, float(x), int(t)) for i, x, t in zip(names, inputs[:, 0], targets, strict=False)]
            for names, inputs, targets in batches.epoch(epoch + 1)
        ]

    whole = read((0, 1))
    sizes = [len(b) for b in whole]
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1 and sum(sizes) == rows
    assert all(i == f"i{t}-0" and x == t for b in whole for i, x, t in b)
    if not even:
        assert sorted(t for b in whole for _, _, t in b) == list(range(rows))
    parts = [read((rank, processes)) for rank in range(processes)]
    for k, b in enumerate(whole):
        dealt = [row for p in parts for row in p[k]]
        assert sorted(dealt) == sorted(b) and [p[k] for p in parts] == [b[r::processes] for r in range(processes)]
