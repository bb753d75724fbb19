"""Each check by the property that it looks for, on data that are written, read and split as in a fit."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regraft import plugins
from regraft.checks import CheckContext, Finding, class_names, source_classes
from regraft.checks.label_errors import rank_suspects
from regraft.data.loading import load_data, read_rows
from regraft.data.splitting import splits_as_given
from regraft.data.types import DataOptions, Example
from regraft.errors import DataError
from regraft.pipeline.findings import CheckReport, cheap, in_words, run_checks, seen_of
from regraft.tasks.classification import Classification


def noise(path, seed: int, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(path, **how)
    return path


@pytest.fixture
def flowers(tmp_path):
    """Noise that no check objects to: two classes with 8, 2 and 2 pictures in train, val and test."""
    root, seed = tmp_path / "flowers", 0
    for split, n in (("train", 8), ("val", 2), ("test", 2)):
        for label in ("iris", "tulip"):
            for i in range(n):
                noise(root / split / label / f"{i}.png", seed)
                seed += 1
    return root


def findings(path, task="classification", **options):
    """Of the cheap checks, as ``regraft check`` sees the data."""
    splits = splits_as_given(read_rows(DataOptions(path, on_bad="skip", **options)))
    return run_checks(seen_of(splits, plugins.options_class("tasks", task)()))[0]


def of(check, path, **options):
    return [f for f in findings(path, **options) if f.check == check]


def only(check, path, **options):
    (finding,) = of(check, path, **options)
    return finding


def table(path, rows, header="text,label,split"):
    path.write_text("\n".join([header, *(",".join(r) for r in rows)]) + "\n", encoding="utf-8")
    return path


def test_nothing_is_found_where_nothing_is_wrong(flowers):
    assert findings(flowers) == []


# ---------------------------------------------------------------- files


BAD = {
    "empty.jpg": (b"", "it is empty"),
    "text.jpg": (b"not a picture", "not a JPEG"),
    "page.jpg": (b"<html><body>404</body></html>", "not a JPEG"),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG"),
    "bomb.ppm": (b"P6 60000 60000 255\n", "megapixels"),
    "fits.jpg": (b"SIMPLE  =                    T" + b" " * 2850, "not a JPEG"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
    "paper.jpg": (b"%PDF-1.4\n", "not a JPEG"),
}


@pytest.mark.fault(47)
@pytest.mark.fault(53)
@pytest.mark.fault(54)
def test_files_that_do_not_read_are_listed_each_with_its_reason(flowers):
    for name, (content, _) in BAD.items():
        (flowers / "train/iris" / name).write_bytes(content)
    whole = noise(flowers / "train/iris/cut.jpg", 99).read_bytes()
    (flowers / "train/iris/cut.jpg").write_bytes(whole[: len(whole) * 9 // 10])
    found = only("unreadable", flowers)
    assert found.severity == "problem" and (found.count, found.of) == (len(BAD) + 1, 24 + len(BAD) + 1)
    for name, (_, why) in (BAD | {"cut.jpg": (b"", "truncated")}).items():
        assert any(e.startswith(f"train/iris/{name} (") and why in e for e in found.examples), name


@pytest.mark.fault(48)
@pytest.mark.fault(49)
@pytest.mark.fault(50)
@pytest.mark.fault(52)
def test_pictures_that_are_read_in_another_way_are_noted_by_kind(flowers):
    where = flowers / "train/iris"
    Image.open(where / "0.png").convert("CMYK").rotate(90).save(where / "cmyk.jpg")
    deep = np.random.default_rng(7).integers(0, 65535, (24, 24), dtype=np.uint16)
    Image.fromarray(deep).save(where / "deep.png")
    frames = [Image.fromarray(deep.astype(np.uint8)).rotate(a) for a in (30, 60)]
    frames[0].save(where / "moving.gif", save_all=True, append_images=frames[1:])
    noise(where / "really.png", 98).rename(where / "really.jpg")
    noise(where / "usual.jpg", 99).rename(where / "usual.jfif")  # a usual extension of JPEG
    found = {f.what: f for f in of("picture_kinds", flowers)}
    assert {w: [e.split(" ")[0] for e in f.examples] for w, f in found.items()} == {
        "pictures are animated or have several pages": ["train/iris/moving.gif"],
        "pictures have more than 8 bits a channel": ["train/iris/deep.png"],
        "pictures are CMYK": ["train/iris/cmyk.jpg"],
        "pictures have the extension of another format": ["train/iris/really.jpg"],
    }


@pytest.mark.parametrize("tag", range(1, 9))
def test_pictures_that_exif_turns_are_noted(flowers, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    noise(flowers / "train/iris/a.jpg", 97, exif=exif)
    assert [f.count for f in of("picture_kinds", flowers)] == ([] if tag == 1 else [1])


@pytest.mark.fault(55)
def test_links_pipes_and_folders_named_like_pictures_stay_shut(flowers, tmp_path):
    where = flowers / "train/iris"
    secret = noise(tmp_path / "secret.png", 96)
    before = secret.stat()
    (where / "outside.png").symlink_to(secret)
    (where / "loop.png").symlink_to("loop.png")
    (where / "round").symlink_to(flowers)
    (where / "gone.png").symlink_to("nowhere.png")
    (where / "null.png").symlink_to("/dev/zero")
    (where / "x.jpg").mkdir()
    os.mkfifo(where / "pipe.png")  # to open it would wait for ever
    (flowers / "README.md").write_text("# Flowers")
    found = {f.what.removeprefix("files are left out, each "): f for f in of("left_out", flowers)}
    assert {why: f.examples for why, f in found.items()} == {
        "a link out of the data folder": ("train/iris/null.png", "train/iris/outside.png"),
        "a link that leads nowhere": ("train/iris/gone.png", "train/iris/loop.png"),
        "a link to a folder": ("train/iris/round",),
        "a folder named like a picture": ("train/iris/x.jpg",),
        "not a regular file": ("train/iris/pipe.png",),
        "not a picture": ("README.md",),
    }
    harmless = {why for why, f in found.items() if f.severity == "note"}
    assert harmless == {"a folder named like a picture", "not a picture"}
    assert secret.stat().st_atime_ns == before.st_atime_ns


@pytest.mark.fault(55)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret.png", "lies outside .*--image-root"),
        ("/etc/hostname", "lies outside .*--image-root"),
        ("link.png", "is a link out of"),
        ("deep/../../secret.png", "lies outside .*--image-root"),
    ],
)
def test_a_table_reads_no_picture_outside_its_root(tmp_path, name, words):
    noise(tmp_path / "secret.png", 1)
    root = tmp_path / "data"
    (root / "deep").mkdir(parents=True)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    path = table(root / "t.csv", [(name, "x")], "image,label")
    with pytest.raises(DataError, match=rf"row 2: .* {words}"):
        read_rows(DataOptions(path, on_bad="skip"))


@pytest.mark.fault(55)
def test_a_table_that_names_pipes_loops_and_devices_lists_them(tmp_path):
    good = [noise(tmp_path / f"{i}.png", i).name for i in range(2)]
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    path = table(tmp_path / "t.csv", [(n, "x") for n in (*good, "pipe.png", "folder.png", "a" * 300)], "image,label")
    found = only("unreadable", path)
    assert found.count == 3
    assert [e.partition(": ")[2][:40] for e in found.examples][:2] == ["it is not a regular file)"] * 2
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"circle|levels of symbolic links"):
        read_rows(DataOptions(table(tmp_path / "l.csv", [("loop.png", "x")], "image,label")))
    os.mkfifo(tmp_path / "train.csv")  # a folder of tables: a pipe among them is no table
    with pytest.raises(DataError, match="is none of"):
        read_rows(DataOptions(tmp_path))


@pytest.mark.fault(56)
def test_a_folder_that_cannot_be_opened_stops_or_is_listed(flowers, monkeypatch):
    (flowers / "train/iris/closed").mkdir()
    scandir, access = os.scandir, os.access

    def refuse(path):  # root may read everything, so permissions would not do
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", lambda p, m: not str(p).endswith("closed") and access(p, m))
    with pytest.raises(DataError, match="1 folders cannot be opened: train/iris/closed"):
        read_rows(DataOptions(flowers))
    assert only("left_out", flowers).examples == ("train/iris/closed",)


# ---------------------------------------------------------------- duplicates and labels


@pytest.mark.fault(40)
def test_equal_rows_are_counted_across_splits_and_within_one(flowers):
    data = (flowers / "train/iris/3.png").read_bytes()
    (flowers / "test/iris/again.png").write_bytes(data)
    (flowers / "train/iris/twice.png").write_bytes(data)
    across, within = of("exact_duplicates", flowers)
    assert across.severity == "problem" and (across.count, across.of) == (1, 5)
    assert across.what == "rows of test that are also in train"
    assert across.examples == ("test/iris/again.png = train/iris/3.png",)
    assert within.severity == "caution" and within.count == 1


@pytest.mark.fault(42)
def test_equal_rows_with_different_labels_are_one_conflict(flowers):
    data = (flowers / "train/iris/3.png").read_bytes()
    (flowers / "train/tulip/a.png").write_bytes(data)
    (flowers / "val/tulip/b.png").write_bytes(data)
    found = only("conflicting_labels", flowers)
    assert found.severity == "problem" and found.count == 1
    assert all(n in found.examples[0] for n in ("iris/3.png", "tulip/a.png", "tulip/b.png"))


@pytest.mark.fault(41)
def test_a_copy_encoded_anew_is_near_and_not_equal(flowers):
    with Image.open(flowers / "train/iris/3.png") as image:
        image.resize((96, 96)).save(flowers / "test/iris/a.jpg", quality=90)
    found = only("near_duplicates", flowers)
    assert found.severity == "caution" and found.count == 1
    assert found.examples[0].startswith("test/iris/a.jpg ~ train/iris/3.png (correlation ")
    with Image.open(flowers / "train/iris/3.png") as image:
        image.save(flowers / "test/tulip/b.jpg", quality=90)
    assert any("labels differ" in e for f in of("near_duplicates", flowers) for e in f.examples)


@pytest.mark.fault(43)
def test_groups_in_two_splits_are_a_problem(tmp_path):
    rows = [(f"text number {i}", "ab"[i % 2], "train", f"g{i}") for i in range(20)]
    rows += [("another text", "a", "test", "g3"), ("one more of them", "b", "test", "g99")]
    found = only("groups", table(tmp_path / "t.csv", rows, "text,label,split,who"), group="who")
    assert (found.severity, found.count, found.of, found.examples) == ("problem", 1, 2, ("g3",))


@given(st.permutations(range(24)))
def test_findings_do_not_depend_on_the_order_of_rows(tmp_path_factory, order):
    rows = [(sentence(i), "ab"[i % 2], "train") for i in range(20)]
    rows += [
        (sentence(3), "a", "test"),
        (sentence(4).upper() + "!", "a", "test"),
        ("x", "b", "test"),
        (sentence(99), "A", "val"),
    ]
    found = findings(table(tmp_path_factory.mktemp("t") / "t.csv", [rows[i] for i in order]))
    assert [(f.check, f.what, f.count) for f in found] == [
        ("class_names", "pairs of class names look alike", 1),
        ("classes", "classes are not in train", 1),
        ("classes", "classes of train are not in val", 2),
        ("classes", "classes have a single row in test", 1),
        ("conflicting_labels", "inputs have rows with different labels", 1),
        ("exact_duplicates", "rows of test that are also in train", 1),
        ("near_duplicates", "rows of test have one in train that reads the same", 1),
        ("short_texts", "texts have fewer than 3 letters or digits", 1),
    ]


def sentence(seed):
    letters = np.random.default_rng(seed).integers(97, 123, 60, np.uint8)
    return " ".join(bytes(part).decode() for part in np.split(letters, 12))


# ---------------------------------------------------------------- classes


@pytest.mark.fault(32)
def test_one_class_is_a_problem(tmp_path):
    path = table(tmp_path / "t.csv", [(f"a text {i}", "a", "train") for i in range(9)])
    assert any(f.severity == "problem" and f.examples == ("a",) for f in of("classes", path))


@pytest.mark.fault(33)
@pytest.mark.fault(34)
@pytest.mark.fault(35)
def test_classes_that_are_small_or_missing_in_a_split_are_named(flowers):
    noise(flowers / "train/rose/0.png", 50)
    noise(flowers / "test/lily/0.png", 51)
    noise(flowers / "val/aster/0.png", 52)
    found = {f.what: f for f in of("classes", flowers)}
    assert {w: (f.severity, f.examples) for w, f in found.items()} == {
        "classes are not in train": ("problem", ("lily (1 in test)", "aster (1 in val)")),
        "classes of train are not in val": ("caution", ("rose",)),
        "classes of train are not in test": ("caution", ("rose",)),
        "classes have fewer than 5 rows in train": ("caution", ("rose (1)",)),
    }


@pytest.mark.fault(36)
def test_an_empty_class_folder_is_named_and_counts_as_no_class(flowers):
    (flowers / "train/rose").mkdir()
    (flowers / "test/rose").mkdir()
    found = only("classes", flowers)
    assert found.severity == "caution" and found.examples == ("test/rose", "train/rose")
    splits, task = load_data(DataOptions(flowers), *TASK)
    assert task.classes == ("iris", "tulip")
    assert any("2 class folders without a picture" in n and "train/rose" in n for n in splits.notes)


@pytest.mark.fault(37)
def test_classes_a_thousand_to_one_are_a_caution(tmp_path):
    rows = [(f"{i} is the text here", "common", "train") for i in range(1000)]
    rows += [("rare one", "rare", "train")]
    found = [f for f in of("classes", table(tmp_path / "t.csv", rows)) if "uneven" in f.what]
    assert found[0].severity == "caution" and "1,000 times" in found[0].what


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Tulip", "tulip"),
        ("tulip ", "tulip"),
        ("caf\u00e9", "cafe\u0301"),
        ("tulip", "tulips"),
        ("tulip", "tulpi x"),
        ("rose-hip", "rose_hip"),
        ("tullip", "tulip"),
        ("tuljp", "tulip"),
    ],
)
def test_names_that_look_alike_are_paired_and_not_merged(tmp_path, a, b):
    rows = [(f"text {i}", (a, b, "ivy", "oak")[i % 4], "train") for i in range(40)]
    path = table(tmp_path / "t.csv", rows)
    expected = 0 if b == "tulpi x" else 1
    found = of("class_names", path)
    assert sum(f.count for f in found) == expected
    _, task = load_data(DataOptions(path), *TASK)
    assert len(task.classes) == 4


@given(st.sets(st.text("abc1", min_size=1, max_size=6), max_size=25))
def test_alike_names_are_those_of_all_pairs(names):
    def distance(a, b):  # Levenshtein's, by the book
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            last, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                last, row[j] = row[j], min(last + (x != y), row[j] + 1, row[j - 1] + 1)
        return row[-1]

    found = {frozenset((a, b)) for a, b, _ in class_names.find_similar(names)}
    for a in names:
        for b in names:
            if a < b and min(len(a), len(b)) >= 4 and not set("1") & (set(a) | set(b)):
                assert (frozenset((a, b)) in found) == (distance(a, b) == 1), (a, b)


def test_numbered_classes_are_not_alike():
    assert class_names.find_similar([f"class {i}" for i in range(120)]) == []
    assert class_names.find_similar(["n01440764", "n01440765", "c", "d", "0", "1", "cat", "car"]) == []


TASK = (
    plugins.options_class("tasks", "classification")().make,
    plugins.options_class("tasks", "classification")().strata,
)


# ---------------------------------------------------------------- texts


@pytest.mark.fault(64)
def test_empty_texts_are_a_problem_and_very_short_ones_a_note(tmp_path):
    rows = [(f"text number {i}", "ab"[i % 2], "train") for i in range(10)]
    rows += [("   ", "a", "train"), ("ok", "b", "train"), ("\U0001f600!", "a", "train")]
    path = table(tmp_path / "t.csv", rows)
    assert only("unreadable", path).examples == ("t.csv row 12 (the text is empty)",)
    found = only("short_texts", path)
    assert found.severity == "note" and found.count == 2 and "row 13" in found.examples[0]


def seen_of_texts(n=4, **given):
    rows = tuple(Example(f"{i:016x}-0", (f"text {i}",), ("ab"[i % 2],), f"row {i}") for i in range(n))
    return CheckContext("text", "classification", {"train": rows, "val": (), "test": ()}, lambda e: e.cells, **given)


def found_by(name, seen):
    return list(plugins.module("checks", name).check(seen))


@pytest.mark.fault(65)
def test_cut_texts_are_counted_with_the_share_of_tokens():
    lengths = dict(zip((f"{i:016x}-0" for i in range(4)), (10, 30, 50, 10), strict=True))
    (found,) = found_by("truncated_texts", seen_of_texts(tokens=lengths, max_tokens=20))
    assert (found.count, found.of) == (2, 4) and "40.0% of all tokens" in found.what  # 10 + 30 of 100
    assert found_by("truncated_texts", seen_of_texts(tokens=lengths, max_tokens=50)) == []


def test_flipped_labels_are_suspected_the_surest_first():
    rng = np.random.default_rng(0)
    seen = seen_of_texts(200)
    said = {}
    for i, e in enumerate(seen.rows):
        # of the rows to be flipped the probe is surer than of a class's mean row, as the method asks
        right = rng.uniform(0.8, 0.99) if i in range(0, 60, 6) else rng.uniform(0.5, 0.99)
        said[e.id] = np.array([right, 1 - right] if i % 2 == 0 else [1 - right, right])
    flipped = {seen.rows[i].id for i in range(0, 60, 6)}
    rows = tuple(replace(e, cells=("b",)) if e.id in flipped else e for e in seen.rows)
    seen = replace(seen, splits={"train": rows, "val": (), "test": ()}, probabilities=said, classes=("a", "b"))
    (found,) = found_by("label_errors", seen)
    named = {e.partition(" (")[0] for e in found.examples}
    assert named == {e.where for e in rows if e.id in flipped} and found.count == 10
    given = [float(e.partition("labelled b (")[2][:4]) for e in found.examples]
    assert given == sorted(given)


def test_suspected_rows_have_the_least_probable_label():
    """Counting by confident learning, choosing over classes: ten of a and five of b are surely the other
    class, but five more of b are less probable than any of those ten."""
    rng = np.random.default_rng(1)
    seen = seen_of_texts(300, classes=("a", "b"))
    of_own = np.empty((150, 2))  # the probability of the row's own label, of rows of a and of b
    of_own[:, 0] = [*rng.uniform(0.25, 0.3, 10), *rng.uniform(0.9, 1.0, 140)]
    of_own[:, 1] = [*rng.uniform(0.0, 0.02, 5), *rng.uniform(0.18, 0.22, 5), *rng.uniform(0.55, 0.8, 140)]
    said = {
        e.id: np.array([p, 1 - p] if i % 2 == 0 else [1 - p, p])
        for i, (e, p) in enumerate(zip(seen.rows, of_own.ravel(), strict=True))
    }
    suspects = rank_suspects(replace(seen, probabilities=said))
    assert len(suspects) == 15
    assert [s.of_given for s in suspects] == pytest.approx(np.sort(of_own.ravel())[:15])


# ---------------------------------------------------------------- the source


@pytest.mark.parametrize(
    ("target", "source", "shared"),
    [
        ("ants", "ant, emmet, pismire", True),
        ("Bees", "bee", True),
        ("bee", "beetle", False),
        ("daisies", "daisy", True),
        ("sea lion", "sea_lion", True),
        ("buses", "bus, coach", False),
        ("iris", "iris", True),
        ("glasses", "glass", True),
        ("foxes", "red fox, fox", True),
        ("a", "s", False),
    ],
)
def test_a_class_of_the_source_is_known_by_its_name(target, source, shared):
    rows = (Example("0" * 16 + "-0", ("x",), (target,), "row 1"),)
    seen = CheckContext(
        "image",
        "classification",
        {"train": rows, "val": (), "test": ()},
        lambda e: e.cells,
        source_names=("tench", source),
    )
    found = found_by("source_classes", seen)
    assert [f.count for f in found] == ([1] if shared else [])
    if shared:
        assert source in found[0].examples[0]


def test_a_name_without_letters_matches_nothing():
    assert source_classes.plain_name("  ") == ""


def test_test_rows_in_source_data_are_a_problem_or_caution(flowers, tmp_path):
    source = tmp_path / "source"
    for i in range(3):
        noise(source / "ant" / f"{i}.png", 500 + i)
    (source / "ant/same.png").write_bytes((flowers / "test/iris/0.png").read_bytes())
    with Image.open(flowers / "train/tulip/1.png") as image:
        image.resize((96, 96)).save(source / "ant/near.jpg", quality=90)
    splits = splits_as_given(read_rows(DataOptions(flowers)))
    seen = seen_of(splits, Classification())
    rows = tuple(read_rows(DataOptions(source)).examples)
    found = found_by("source_overlap", replace(seen, source_rows=rows))
    assert [(f.severity, f.count, f.what) for f in found] == [
        ("problem", 1, "rows of test are also in the source data"),
        ("caution", 1, "rows of train have one in the source data that is nearly the same"),
    ]
    assert "ant/near.jpg" in found[1].examples[0]


# ---------------------------------------------------------------- the list


def test_what_did_not_run_says_what_it_needs(flowers):
    _, not_run = run_checks(seen_of(splits_as_given(read_rows(DataOptions(flowers))), Classification()))
    assert set(not_run) == {"label_errors", "source_classes", "source_overlap"}
    assert all("--source" in why for why in not_run.values())
    assert set(run_checks(seen_of_texts())[1]) - set(not_run) == {"truncated_texts"}


def test_cheap_findings_are_those_of_the_splits_that_fit_takes(flowers):
    (flowers / "test/iris/again.png").write_bytes((flowers / "train/iris/3.png").read_bytes())
    splits, task = load_data(DataOptions(flowers), *TASK)
    assert [f.check for f in cheap(splits, task)] == ["exact_duplicates"]
    splits, task = load_data(DataOptions(flowers, leaks="drop"), *TASK)
    assert cheap(splits, task) == ()


def test_names_of_files_cannot_steer_the_terminal(flowers):
    noise(flowers / "train/iris/\x1b[2Jred\n.png", 60)
    bad = flowers / "train/iris/\x1b[31m.jpg"
    bad.write_bytes(b"")
    text = in_words(CheckReport("d", "", "image", {}, tuple(findings(flowers))))
    assert "--out FILE" not in text  # every example is shown
    assert "\x1b" not in text and "\\x1b[31m.jpg" in text


def test_a_list_that_is_cut_says_so_and_where_the_rest_is():
    places = tuple(f"row {i}" for i in range(5))
    text = in_words(CheckReport("d", "", "text", {}, (Finding("note", "w", 5, 9, places, "r"),)))
    assert "row 2" in text and "row 3" not in text and "and 2 more" in text and "--out FILE" in text
