"""Rows as columns are what rows as objects were, to the bit, in a fraction of the memory."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import tempfile
import tracemalloc
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import make_batches
from regraft.checks import classes, conflicting_labels, exact_duplicates, near_duplicates, short_texts
from regraft.data import columns
from regraft.data import loading as data
from regraft.data.columns import Examples, stored
from regraft.data.loading import load_data, read_rows
from regraft.data.preprocessing import build
from regraft.data.splitting import draw_splits, splits_as_given, write_manifest
from regraft.data.types import CallableSpec, DataOptions, Example, PictureFacts, Row
from regraft.errors import DataError, DiskError
from regraft.formats import table
from regraft.pipeline.findings import seen_of
from regraft.tasks.classification import Classification

task = Classification()
words = st.sampled_from(["", "a", "a ", "é", "a,b", 'say "a"', "two\nlines", *"bcdefghij"])
names = st.sampled_from(["x", "y", "z"])
splits = st.sampled_from(["", "train", "val", "test"])
rows = st.lists(st.tuples(words, words, names, splits, st.sampled_from(["", "", "g", "h", "ü"])), max_size=70)
sure = [(f"sure {i}", "", "xyz"[i % 3], "train", "") for i in range(60)]


@pytest.fixture
def small(monkeypatch):
    """Batches and blocks of a few rows, in a file."""
    for name, value in {"BATCH_ROWS": 7, "BLOCK_ROWS": 5, "MAX_BYTES_IN_MEMORY": 1, "MAX_SHARED_VALUES": 2}.items():
        monkeypatch.setattr(columns, name, value)


def write(path, found):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b", "label", "split", "group"], *found])


# ---------------------------------------------------------------- the rules, an object a row


def plain_identify(found):
    """The rules of identity: a number for each row of a content, in the order of all that a row says."""
    texts = [(row, hashlib.sha256(json.dumps(row.inputs).encode()).hexdigest()) for row in found]
    texts = [(row, key) for row, key in texts if any(t.strip() for t in row.inputs)]
    texts.sort(key=lambda r: (r[1], r[0].cells, r[0].split or "", r[0].group or "", r[0].where))
    seen = Counter()
    examples = []
    for row, key in texts:
        number, seen[key] = seen[key], seen[key] + 1
        examples.append(Example(f"{key[:16]}-{number}", row.inputs, row.cells, row.where, row.group))
    return examples, [row.split for row, _ in texts]


def plain_settle(parts, how):
    order = {"drop": ("test", "val", "train"), "move": ("train", "val", "test")}.get(how, ())
    owner = {}
    for split in order:
        for e in parts[split]:
            owner.setdefault(e.content, split)
    after, settled = {split: [] for split in order}, []
    for split in order:
        for e in parts[split]:
            there = owner[e.content]
            if split == there or how == "move":
                after[there].append(e)
            if split != there:
                verb = "left out of {}: it is in {} too" if how == "drop" else "moved from {} to {}: it is there too"
                settled.append((e.where, verb.format(split, there)))
    for split in order:
        after[split].sort(key=lambda e: (e.content, int(e.id.partition("-")[2])))
    return (after or parts), tuple(sorted(settled))


def plain_draw(train, fraction, seed):
    owner = list(range(len(train)))

    def root(i):
        return i if owner[i] == i else root(owner[i])

    first = {}
    for i, e in enumerate(train):
        for tie in [e.content, *([("group", e.group)] if e.group is not None else [])]:
            owner[root(i)] = root(first.setdefault(tie, i))
    units = defaultdict(list)
    for i in range(len(train)):
        units[root(i)].append(i)
    left = Counter(e.cells[0] for e in train)
    wanted = {s: max(1, round(fraction * n)) if n > 1 else 0 for s, n in left.items()}
    taken = set()

    def rank(unit):
        least = min(train[i].content for i in unit)
        return hashlib.sha256(f"{seed}:{least}".encode()).hexdigest()

    for unit in sorted(units.values(), key=rank):
        counts = Counter(train[i].cells[0] for i in unit)
        nearer = sum(abs(wanted[s]) - abs(wanted[s] - n) for s, n in counts.items()) > 0
        if nearer and all(left[s] > n for s, n in counts.items()):
            taken.update(unit)
            for s, n in counts.items():
                wanted[s] -= n
                left[s] -= n
    return [e for i, e in enumerate(train) if i in taken], [e for i, e in enumerate(train) if i not in taken]


def plain_digest(parts):
    found = sorted((e.id, split, e.cells) for split, part in parts.items() for e in part)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def plain_load(found, options):
    examples, named = plain_identify(found)
    parts = {
        s: [e for e, n in zip(examples, named, strict=True) if (n or "train") == s] for s in ("train", "val", "test")
    }
    parts, settled = plain_settle(parts, options.leaks)
    for name, fraction in (("test", 0.2), ("val", options.val)):
        if not parts[name] and (
            name == "test"
            or (min(Counter(e.cells[0] for e in parts["train"]).values()) >= 5 and len(parts["train"]) >= 50)
        ):
            parts[name], parts["train"] = plain_draw(parts["train"], fraction, options.split_seed)
    return parts, settled


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.fault(43)
@given(rows, st.booleans(), st.booleans(), st.integers(0, 3), st.sampled_from(["keep", "drop", "move"]))
def test_ids_splits_and_digests_are_those_of_the_plain_rules(tmp_path, small, found, named, grouped, seed, leaks):
    found = [(*r[:3], r[3] if named else "train", r[4] if grouped else "") for r in [*found, *sure]]
    write(tmp_path / "t.csv", [(*r[:3], r[3] or "train", r[4]) for r in found])
    options = DataOptions(
        tmp_path / "t.csv",
        text=("a", "b"),
        group="group" if grouped else None,
        split_seed=seed,
        leaks=leaks,
        leak_limit=1.0,
        on_bad="skip",
    )
    parts, settled = plain_load(table.read(tmp_path / "t.csv", options).rows, options)
    splits, _ = load_data(options, task.make, task.strata)
    for name, part in parts.items():
        assert getattr(splits, name) == part, name
        assert list(columns.ids_of(getattr(splits, name))) == [e.id for e in part]
        assert columns.cells_of(getattr(splits, name)) == [e.cells for e in part]
        assert columns.groups_of(getattr(splits, name)) == [e.group for e in part]
    assert splits.settled == settled
    assert splits.digest == plain_digest(parts)
    assert splits.test_digest == plain_digest({"test": parts["test"]})
    write_manifest(splits, tmp_path / "columns.jsonl")
    write_manifest(replace(splits, **{s: tuple(p) for s, p in parts.items()}), tmp_path / "plain.jsonl")
    assert (tmp_path / "columns.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_a_content_of_more_than_ten_rows_is_sorted_as_text_is(tmp_path, small):
    write(tmp_path / "t.csv", [("same", "", "xyz"[i % 3], "train", "") for i in range(25)])
    found = read_rows(DataOptions(tmp_path / "t.csv", text=("a", "b")))
    plain, _ = plain_identify(table.read(tmp_path / "t.csv", DataOptions(tmp_path / "t.csv", text=("a", "b"))).rows)
    assert found.examples == plain and plain[10].id.endswith("-10")
    assert splits_as_given(found).digest == plain_digest({"train": plain, "val": [], "test": []})


# ---------------------------------------------------------------- checks


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows)
def test_checks_find_the_same_in_columns_as_in_objects(tmp_path, small, found):
    found = [
        *found,
        *sure,
        ("twin", "", "x", "train", ""),
        ("twin", "", "y", "test", ""),
        ("pair", "", "x", "val", ""),
        ("pair", "", "x", "val", ""),
        ("a longer text that comes twice", "", "x", "test", ""),
        ("a longer text that comes  twice!", "", "y", "val", ""),
    ]
    write(tmp_path / "t.csv", [(*r[:3], r[3] or "train", r[4]) for r in found])
    options = DataOptions(tmp_path / "t.csv", text=("a", "b"), leak_limit=1.0, on_bad="skip")
    splits = splits_as_given(read_rows(options))
    plain = replace(splits, **{s: tuple(getattr(splits, s)) for s in ("train", "val", "test")})
    assert isinstance(splits.train, Examples)
    for check in (exact_duplicates, conflicting_labels, near_duplicates, short_texts, classes):
        one, two = (list(check.check(seen_of(s, Classification()))) for s in (splits, plain))
        assert one == two, check.__name__


# ---------------------------------------------------------------- memory and files


def test_rows_of_text_take_less_than_300_bytes_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "BATCH_ROWS", 64)
    monkeypatch.setattr(columns, "BLOCK_ROWS", 64)
    monkeypatch.setattr(columns, "MAX_BYTES_IN_MEMORY", 1)
    monkeypatch.setattr(table, "CHUNK_BYTES", 4096)
    path, n = tmp_path / "t.csv", 3000
    write(path, [(f"{i:06d} {'x' * 124}", "", f"class {i % 20}", "train", "") for i in range(100)])
    options = DataOptions(path, text=("a",))
    load_data(options, task.make, task.strata)  # what is imported once
    write(path, [(f"{i:06d} {'x' * 124}", "", f"class {i % 20}", "train", "") for i in range(n)])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        splits, _ = load_data(options, task.make, task.strata)
        kept, most = (size - before for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert len(splits.train) + len(splits.val) + len(splits.test) == n
    assert kept < 100 * n and most < 300 * n  # as objects: 1,700 and 2,400


def test_the_file_of_the_columns_has_no_name(tmp_path, small, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    write(tmp_path / "t.csv", sure)
    found = read_rows(DataOptions(tmp_path / "t.csv", text=("a", "b")))
    assert len(found.examples) == 60 and not list((tmp_path / "temporary").iterdir())


def test_long_texts_are_made_into_objects_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(columns, "MAX_BATCH_BYTES", 10_000)
    found = stored(Row(("x" * 3000,), ("a",), f"row {i}") for i in range(50))
    assert max(map(len, found.table.batches)) == 4 and found.table.block_rows == 3
    assert [r.where for r in found] == [f"row {i}" for i in range(50)]


def test_a_full_disk_is_said_with_the_remedy(tmp_path, small):
    class Full(tempfile.SpooledTemporaryFile):
        def write(self, data):
            raise OSError(28, "No space left on device")

    write(tmp_path / "t.csv", sure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "SpooledTemporaryFile", Full)
        with pytest.raises(DiskError, match=r"No space left on device.*TMPDIR"):
            read_rows(DataOptions(tmp_path / "t.csv", text=("a", "b")))


def test_a_format_that_cannot_open_a_file_is_no_full_disk(small):
    def rows():
        yield Row(("a",), ("x",), "row 1")
        raise PermissionError(13, "Permission denied", "t.csv")

    with pytest.raises(PermissionError):
        stored(rows())


def test_few_pictures_are_begun_ahead_of_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(data, "look_at_row", lambda kind, row, look: data.RowContent("0" * 64))
    monkeypatch.setattr(data.os, "cpu_count", lambda: 2)
    begun = count()
    found = data.look_at_rows("image", (Row((f"{next(begun)}",), (), "") for _ in range(10_000)))
    assert next(found)[0].inputs == ("0",)
    assert next(begun) == 2 * data.PENDING_PER_THREAD
    assert [row.inputs[0] for row, _ in found] == [str(i) for i in range(1, 10_001) if i != 32]


# ---------------------------------------------------------------- the sequence


def test_rows_with_any_names_come_back_as_they_were(small):
    given = [
        Row((f"in \udcff{i}", "two"), ("x",) * (i % 3), f"\udc80 row {i}", [None, "val"][i % 2], [None, "", "g"][i % 3])
        for i in range(20)
    ]
    found = stored(iter(given))
    assert list(found) == given and len(found) == 20
    assert found[3] == given[3] and found[-1] == given[-1] and found[2:9:3] == given[2:9:3]
    assert list(stored([])) == []


@pytest.fixture
def examples(tmp_path, small):
    write(tmp_path / "t.csv", sure)
    return read_rows(DataOptions(tmp_path / "t.csv", text=("a", "b"))).examples


def test_a_part_is_what_a_part_of_a_tuple_is(examples):
    plain = tuple(examples)
    assert len(plain) == 60 and examples == plain and plain[3] in examples
    for part in (slice(3, 9), slice(None, None, -1), slice(50, 99), slice(0, 0)):
        assert examples[part] == plain[part] and tuple(examples[part]) == plain[part]
    assert [examples[i] for i in (0, -1, 59)] == [plain[i] for i in (0, -1, 59)]
    with pytest.raises(IndexError):
        examples[60]
    assert examples != plain[:-1] and examples != "text" and examples[:0] == ()
    assert examples[:9] + examples[30:] == plain[:9] + plain[30:]
    assert pickle.loads(pickle.dumps(examples[5:7])) == plain[5:7]
    places = sorted(plain, key=lambda e: (len(e.where), e.where))
    assert examples.by_place() == places and examples[::-1].sorted() == plain


def test_batches_of_columns_are_those_of_objects(examples):
    import torch

    preprocessor = build(CallableSpec(lambda inputs: torch.tensor(float(len(inputs[0])))))
    both = [
        make_batches(some, torch.arange(60), preprocessor, 8, seed=1, strata=[e.cells[0] for e in some])
        for some in (examples, tuple(examples))
    ]
    for epoch in (1, 2):
        one, two = (list(b.epoch(epoch)) for b in both)
        assert [ids for ids, _, _ in one] == [ids for ids, _, _ in two]
        assert all(torch.equal(a, b) for (_, a, _), (_, b, _) in zip(one, two, strict=True))


def test_what_was_seen_of_a_picture_comes_back(small):
    given = [
        PictureFacts("PNG", "RGB", (3, 4), True, False, 1, 2**64 - 1, None, b"\0" * 256),
        None,
        PictureFacts("GIF", "P", (1, 1), False, True, 8, None, 7, b"\xff" * 256),
    ]
    found = [Row((f"{i}",), ("x",), f"row {i}") for i in range(3)]
    digests = np.arange(96, dtype=np.uint8).reshape(3, 32)[::-1]
    kept = columns.identified(
        stored(found), digests, np.array([f is not None for f in given]), columns.stored_facts(given)
    )
    assert [e.facts for e in kept] == [given[2], given[0]] and kept[0].facts == given[2]


def test_equal_keys_are_sorted_by_the_whole_content_hash(small):
    digests = np.zeros((3, 32), np.uint8)
    digests[:, 31] = [9, 1, 5]
    found = [Row((f"{i}",), ("x",), f"row {i}") for i in range(3)]
    kept = columns.identified(stored(found), digests, np.ones(3, bool), None)
    assert [e.inputs[0] for e in kept] == ["1", "2", "0"]
    assert [e.id for e in kept] == [f"{'0' * 16}-{i}" for i in range(3)]


@pytest.mark.parametrize(("most", "size", "left"), [(2, 99, 2), (9, 7, 1), (9, 99, 3)])
def test_rows_that_were_asked_for_stay_within_bounds_and_in_their_process(monkeypatch, most, size, left):
    monkeypatch.setattr(columns, "MAX_KEPT_ROWS", most)
    monkeypatch.setattr(columns, "MAX_KEPT_SIZE", size)
    found = [Row(("12345",), ("x",), f"row {i}") for i in range(3)]
    rows = columns.identified(stored(found), np.zeros((3, 32), np.uint8), np.ones(3, bool), None)
    assert [rows[i] for i in range(3)] == list(rows) == [rows[i] for i in range(3)]
    assert len(rows.content.kept) == left and (rows[0] is rows[0])
    there = pickle.loads(pickle.dumps(rows))
    assert not there.content.kept and list(there) == list(rows) and there[1] == rows[1]


# ---------------------------------------------------------------- text files as streams


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=12)
    | st.text(max_size=9).map(str.encode)
    | st.lists(st.sampled_from([b"\n", b"\r", b" ", b"a", b"\xef\xbb\xbf", b"\xe2\x82", b"\xac"]), max_size=7).map(
        b"".join
    ),
    st.booleans(),
)
def test_a_file_of_lines_is_judged_as_its_whole_text_is(tmp_path, content, marked):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" * marked + content)
    try:
        text = content.decode()
        if content.startswith(b"\xef\xbb\xbf") and not marked:
            text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.start + 3 * marked
        row = content.count(b"\n", 0, error.start) + 1
        with pytest.raises(DataError, match=rf"byte {byte} \(row {row}\) is 0x{content[error.start]:02x};"):
            table._check_text(path)
        return
    if text.strip():
        table._check_text(path)
    else:
        with pytest.raises(DataError, match="is empty"):
            table._check_text(path)


def test_a_column_of_the_last_json_row_is_a_column(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('\ufeff{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y", "group": "g"}')
    found = table.read(path, DataOptions(path, group="group")).rows
    assert [(r.inputs, r.group, r.where) for r in found] == [
        (("a",), None, "t.jsonl row 1"),
        (("b",), "g", "t.jsonl row 3"),
    ]


def test_dividing_found_rows_again_gives_the_same(examples, tmp_path):
    options = DataOptions(tmp_path / "t.csv", text=("a", "b"))
    found = read_rows(options)
    one, two = (draw_splits(found, options, task.make, task.strata)[0] for _ in range(2))
    assert one == two and one.digest == two.digest
