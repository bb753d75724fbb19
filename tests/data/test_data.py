from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regraft.data import loading as data
from regraft.data.loading import load_data
from regraft.data.splitting import read_manifest, write_manifest
from regraft.data.types import DataOptions
from regraft.errors import DataError
from regraft.runs.side_files import ManifestRow


def make_task(cells, columns):
    classes = {c[0] for c in cells}
    if len(classes) < 2:
        raise DataError("needs at least 2 classes")
    return SimpleNamespace(problem=lambda c: None if c[0] in classes else f'class "{c[0]}" is not in train')


def strata(cells):
    return [c[0] for c in cells]


def load(path, rows, header="text,label,group", **options):
    path.write_text("\n".join([header, *(",".join(r) for r in rows)]) + "\n")
    group = "group" if "group" in header else None
    return load_data(DataOptions(path, group=group, **options), make_task, strata)[0]


def rows(n, classes=3):
    return [(f"text {i}", f"c{i % classes}", "") for i in range(n)]


def split_of(splits):
    """{(id, text, label): split}"""
    return {(e.id, e.inputs, e.cells): name for name in ("train", "val", "test") for e in getattr(splits, name)}


table_rows = st.lists(
    st.tuples(
        st.sampled_from([f"t{i}" for i in range(40)]),
        st.sampled_from(["x", "y"]),
        st.sampled_from(["", "", "g1", "g2", "g3", "g4", "g5"]),
    ),
    min_size=8,
    max_size=90,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.fault(43)
@pytest.mark.fault(44)
@given(table_rows, st.integers(0, 3), st.randoms(use_true_random=False))
def test_splits_ignore_row_order_and_keep_groups_whole(tmp_path, found, seed, rng):
    found += [(f"sure {i}", "xy"[i % 2], "") for i in range(8)]
    first = load(tmp_path / "t.csv", found, split_seed=seed)
    rng.shuffle(found)
    again = load(tmp_path / "t.csv", found, split_seed=seed)
    assert split_of(first) == split_of(again)
    assert first.digest == again.digest and first.test_digest == again.test_digest
    assert len(split_of(first)) == len(found)  # every row once, with an id of its own

    places = defaultdict(set)
    for name in ("train", "val", "test"):
        for e in getattr(first, name):
            places[e.inputs].add(name)
            if e.group:
                places[e.group].add(name)
    assert all(len(p) == 1 for p in places.values())
    assert {e.cells for e in first.train} == {("x",), ("y",)}


def test_draws_are_stratified_to_the_row(tmp_path):
    splits = load(tmp_path / "t.csv", rows(300))
    assert Counter(e.cells[0] for e in splits.test) == {"c0": 20, "c1": 20, "c2": 20}
    assert Counter(e.cells[0] for e in splits.val) == {"c0": 16, "c1": 16, "c2": 16}
    assert any("bring no test: 60 rows" in n for n in splits.notes)


def test_a_seed_makes_its_split_and_another_seed_another(tmp_path):
    one, two = (load(tmp_path / "t.csv", rows(100), split_seed=s) for s in (0, 1))
    assert one.digest != two.digest
    assert one.digest == load(tmp_path / "t.csv", rows(100)).digest


def test_a_new_label_is_a_new_digest(tmp_path):
    found = [(*r[:2], "train") for r in rows(20)] + [("x", "c0", "test"), ("y", "c1", "test")]
    header = "text,label,split"
    first = load(tmp_path / "t.csv", found, header)
    found[-1] = ("y", "c0", "test")
    second = load(tmp_path / "t.csv", found, header)
    assert first.digest != second.digest and first.test_digest != second.test_digest


def test_brought_splits_are_kept(tmp_path):
    found = [(*r[:2], "train") for r in rows(60)]
    found += [("x", "c0", "test"), ("y", "c1", "val")]
    splits = load(tmp_path / "t.csv", found, "text,label,split")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (60, 1, 1)
    assert not splits.notes


@pytest.mark.parametrize(
    ("found", "options", "why"),
    [
        (rows(50), {}, "train has 41 rows, fewer than 50"),
        ([*rows(100, 2), *[(f"rare {i}", "rare", "") for i in range(5)]], {}, 'train has 4 rows of "rare"'),
        (rows(100), {"val": 0.0}, "val = 0"),
    ],
)
def test_small_data_have_no_val_and_say_so(tmp_path, found, options, why):
    splits = load(tmp_path / "t.csv", found, **options)
    assert splits.val == () and f"there is no val: {why}" in splits.notes[-1]
    assert splits.test


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("leaks", "expected", "said"),
    [
        ("keep", {"train": 61, "val": 2, "test": 3}, None),
        ("drop", {"train": 58, "val": 1, "test": 3}, "t.csv row 2 left out of train: it is in test"),
        ("move", {"train": 64, "val": 1, "test": 1}, "t.csv row 63 moved from test to train"),
    ],
)
def test_leaks_are_settled_only_where_the_plan_says_so(tmp_path, leaks, expected, said):
    found = [(*r[:2], "train") for r in rows(60)] + [("text 0", "c1", "train")]
    found += [("text 0", "c1", "test"), ("text 5", "c0", "test"), ("only test", "c0", "test")]
    found += [("text 5", "c0", "val"), ("only val", "c1", "val")]
    limit = 1.0 if leaks == "keep" else 0.0  # which holds for those that nothing settles
    splits = load(tmp_path / "t.csv", found, "text,label,split", leaks=leaks, leak_limit=limit)
    assert {s: len(getattr(splits, s)) for s in expected} == expected
    assert bool(splits.settled) == (said is not None)
    contents = {s: {e.inputs for e in getattr(splits, s)} for s in expected}
    shared = any(contents[a] & contents[b] for a, b in [("train", "val"), ("train", "test"), ("val", "test")])
    assert shared == (leaks == "keep")
    if said:
        assert any(f"{where} {what}".startswith(said) for where, what in splits.settled)
        assert any(f'leaks = "{leaks}": {len(splits.settled)} rows' in n for n in splits.notes)
        assert len({e.id for s in expected for e in getattr(splits, s)}) == sum(expected.values())


@pytest.mark.fault(40)
@pytest.mark.parametrize(("later", "earlier"), [("test", "train"), ("val", "train"), ("test", "val")])
def test_more_leaks_than_the_limit_stop_a_fit_and_name_rows(tmp_path, later, earlier):
    found = [(*r[:2], "train") for r in rows(60)] + [(f"val {i}", "c0", "val") for i in range(4)]
    found += [(f"test {i}", "c0", "test") for i in range(4)]
    for count in range(5):
        again = [("text", "val 0" if earlier == "val" else f"text {i}") for i in range(count)]
        leaked = found + [(text, "c0", later) for _, text in again]
        share = count / (4 + count)
        for limit, stops in ((share, False), (share - 0.01, True)):
            if count == 0:
                continue

            def read(limit=limit, leaked=leaked):
                return load(tmp_path / "t.csv", leaked, "text,label,split", leak_limit=limit)

            if not stops:
                assert len(split_of(read())) == len(leaked)
                continue
            words = f"{count} of {4 + count} rows of {later} are in {earlier} too, more than data.leak_limit"
            with pytest.raises(DataError, match=f"{words}.*t.csv row 70.*data.leaks") as caught:
                read()
            assert caught.value.exit_code == 3


@pytest.mark.fault(40)
def test_a_test_that_is_all_in_train_stops_a_fit_unless_allowed(tmp_path):
    found = [(*r[:2], "train") for r in rows(60)] + [(*r[:2], "test") for r in rows(20)]
    with pytest.raises(DataError, match="20 of 20 rows of test are in train too"):
        load(tmp_path / "t.csv", found, "text,label,split")
    assert len(load(tmp_path / "t.csv", found, "text,label,split", leak_limit=1.0).test) == 20


@pytest.mark.fault(34)
def test_every_bad_label_is_counted_in_one_error(tmp_path):
    found = [(*r[:2], "train") for r in rows(10)]
    found += [("x", "zebra", "test"), ("y", "yak", "test")]
    with pytest.raises(DataError, match=r'2 labels .*t.csv row 12: class "zebra" is not in train'):
        load(tmp_path / "t.csv", found, "text,label,split")


@pytest.mark.fault(64)
def test_an_empty_text_stops_or_is_left_out(tmp_path):
    found = [*rows(20), ("  ", "c0", "")]
    with pytest.raises(DataError, match=r"1 of 21 texts .*t.csv row 22 .*--on-bad skip"):
        load(tmp_path / "t.csv", found)
    splits = load(tmp_path / "t.csv", found, on_bad="skip")
    assert len(split_of(splits)) == 20 and any("left out: 1 of 21" in n for n in splits.notes)


@pytest.mark.fault(47)
def test_an_unreadable_picture_stops_or_is_left_out(tmp_path):
    for i in range(6):
        path = tmp_path / "flowers" / f"c{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(path)
    (tmp_path / "flowers/c0/bad.jpg").write_text("x")
    options = DataOptions(tmp_path / "flowers")
    with pytest.raises(DataError, match=r"1 of 7 pictures .*c0/bad.jpg \(it is not a JPEG"):
        load_data(options, make_task, strata)
    splits, _ = load_data(DataOptions(tmp_path / "flowers", on_bad="skip"), make_task, strata)
    assert len(split_of(splits)) == 6
    # an id is the content's: a renamed file keeps it
    before = {e for e, *_ in split_of(splits)}
    (tmp_path / "flowers/c0/0.png").rename(tmp_path / "flowers/c0/renamed.png")
    splits, _ = load_data(DataOptions(tmp_path / "flowers", on_bad="skip"), make_task, strata)
    assert {e for e, *_ in split_of(splits)} == before


def test_a_pair_of_texts_is_not_one_text_with_a_separator(tmp_path):
    (tmp_path / "p.csv").write_text("a,b,label\nx,y\x1fz,1\nx\x1fy,z,2\n")
    raw = data.read_raw(DataOptions(tmp_path / "p.csv", text=("a", "b")))
    assert len({data.look_at_row("text", r).digest for r in raw.rows}) == 2


def test_one_group_cannot_be_split(tmp_path):
    found = [(f"t{i}", f"c{i % 2}", "me") for i in range(20)]
    with pytest.raises(DataError, match="brings no test rows and none can be set aside"):
        load(tmp_path / "t.csv", found)


def test_groups_too_large_to_draw_give_no_val(tmp_path):
    found = [(f"t{i}", f"c{i % 2}", "me", "train") for i in range(80)]
    found += [("x", "c0", "you", "test"), ("y", "c1", "you", "test")]
    splits = load(tmp_path / "t.csv", found, "text,label,group,split")
    assert splits.val == () and splits.notes == ("there is no val: the groups are too few",)


def test_missing_paths_and_formats_get_the_nearest_name(tmp_path):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(DataError, match='does not exist; did you mean "flowers"'):
        data.read_raw(DataOptions(tmp_path / "flower"))
    with pytest.raises(DataError, match='did you mean "table"'):
        data.read_raw(DataOptions(tmp_path / "flowers", format="tabel"))
    with pytest.raises(DataError, match="is none of"):
        data.read_raw(DataOptions(tmp_path / "flowers"))


def test_a_fraction_outside_its_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match="less than 1"):
        DataOptions(tmp_path, val=1.0)


def test_the_manifest_reads_back(tmp_path):
    splits = load(tmp_path / "t.csv", rows(60))
    write_manifest(splits, tmp_path / "manifest.jsonl")
    found = list(read_manifest(tmp_path / "manifest.jsonl"))
    assert len(found) == 60
    first = splits.train[0]
    digest = first.id.split("-")[0]
    assert found[0] == ManifestRow(id=first.id, hash=digest, split="train", cells=list(first.cells), where=first.where)


def test_a_group_with_all_rows_of_a_class_stays_in_train(tmp_path):
    for seed in range(5):
        found = [(f"a{i}", "x", f"g{i % 5}") for i in range(100)]
        found += [(f"b{i}", "y", "g0") for i in range(2)]
        splits = load(tmp_path / "t.csv", found, split_seed=seed)
        assert sum(e.cells == ("y",) for e in splits.train) == 2
