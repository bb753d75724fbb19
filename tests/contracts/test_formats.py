"""What every data format owes, and what the two shipped ones read and refuse."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from regraft import plugins
from regraft.data.loading import read_rows
from regraft.data.types import DataOptions
from regraft.errors import DataError
from regraft.formats import image_folder, table
from regraft.formats._pictures import unpack
from regraft.formats._splits import split_of
from regraft.io.places import unpacked_pictures
from regraft.tasks.multilabel import MultiLabel


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def read(path, empty_labels=False, **options):
    given = DataOptions(path, **options)
    return table.read(path, given.with_empty_labels() if empty_labels else given)


@pytest.mark.parametrize("name", plugins.names("formats"))
def test_a_format_reads_its_own_and_refuses_others(name, tmp_path):
    module = plugins.module("formats", name)
    assert module.detects(tmp_path) is False
    with pytest.raises(DataError, match=tmp_path.name):
        module.read(tmp_path, DataOptions(tmp_path))


# ---------------------------------------------------------------- image_folder


def test_class_folders_give_classes_and_no_split(tmp_path):
    picture(tmp_path / "tulip/b.jpg")
    picture(tmp_path / "iris/deep/a.PNG")
    assert image_folder.detects(tmp_path)
    raw = image_folder.read(tmp_path, DataOptions(tmp_path))
    assert [(r.cells, r.where, r.split) for r in raw.rows] == [
        (("iris",), "iris/deep/a.PNG", None),
        (("tulip",), "tulip/b.jpg", None),
    ]


def test_split_folders_give_splits_whatever_validation_is_called(tmp_path):
    for split in ("train", "valid", "test"):
        picture(tmp_path / split / "tulip/a.jpg")
    raw = image_folder.read(tmp_path, DataOptions(tmp_path))
    assert {r.split for r in raw.rows} == {"train", "val", "test"}


def test_a_class_may_be_called_test(tmp_path):
    picture(tmp_path / "test/a.jpg")
    picture(tmp_path / "exam/a.jpg")
    raw = image_folder.read(tmp_path, DataOptions(tmp_path))
    assert {(r.cells[0], r.split) for r in raw.rows} == {("test", None), ("exam", None)}


def test_an_empty_class_is_left_out_and_said(tmp_path):
    picture(tmp_path / "tulip/a.jpg")
    (tmp_path / "iris").mkdir()
    raw = image_folder.read(tmp_path, DataOptions(tmp_path))
    assert raw.empty == ("iris",) and [r.cells for r in raw.rows] == [("tulip",)]
    assert raw.notes == ("1 class folder without a picture left out: iris",)
    (tmp_path / "tulip/a.jpg").unlink()
    with pytest.raises(DataError, match="2 class folders hold no picture: iris, tulip"):
        image_folder.read(tmp_path, DataOptions(tmp_path))


def test_a_class_beside_the_splits_is_an_error_that_names_it(tmp_path):
    picture(tmp_path / "train/tulip/a.jpg")
    picture(tmp_path / "iris/a.jpg")
    with pytest.raises(DataError, match="iris"):
        image_folder.read(tmp_path, DataOptions(tmp_path))


@pytest.mark.fault(55)
def test_outward_links_and_other_files_are_left_out_and_counted(tmp_path):
    outside = tmp_path / "outside.jpg"
    picture(outside)
    root = tmp_path / "data"
    picture(root / "tulip/a.jpg")
    picture(root / "tulip/.hidden.jpg")
    (root / "tulip/link.jpg").symlink_to(outside)
    (root / "tulip/notes.txt").write_text("x")
    raw = image_folder.read(root, DataOptions(root))
    assert [r.where for r in raw.rows] == ["tulip/a.jpg"]
    assert raw.notes[0].startswith("1 link ") and "link.jpg" in raw.notes[0]
    assert raw.notes[1].startswith("1 file ") and "notes.txt" in raw.notes[1]
    with pytest.raises(DataError, match=r"1 of 2 pictures are links .* tulip/link\.jpg"):
        image_folder.list_images(root)
    (root / "tulip/link.jpg").unlink()
    assert image_folder.list_images(root) == [root / "tulip/a.jpg"]


def test_columns_mean_nothing_in_a_folder_of_pictures(tmp_path):
    picture(tmp_path / "tulip/a.jpg")
    with pytest.raises(DataError, match="has no columns"):
        image_folder.read(tmp_path, DataOptions(tmp_path, group="patient"))


def test_a_folder_of_pictures_beside_a_table_is_no_class(tmp_path):
    picture(tmp_path / "images/a.jpg")
    write(tmp_path / "labels.csv", "image,label\nimages/a.jpg,x\n")
    assert not image_folder.detects(tmp_path)


# ---------------------------------------------------------------- table


@pytest.mark.fault(39)
def test_csv_labels_stay_text(tmp_path):
    path = write(tmp_path / "t.csv", "\ufefftext,label\na,NA\nb,007\nc,True\nd,1.0\n")
    raw = read(path)
    assert [r.cells[0] for r in raw.rows] == ["NA", "007", "True", "1.0"]
    assert raw.rows[0].where == "t.csv row 2"


@pytest.mark.fault(66)
def test_json_and_parquet_values_become_the_text_they_show(tmp_path):
    lines = [{"text": "a", "label": 7}, {"text": "b", "label": 1.0}, {"text": "c", "label": "NA"}]
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, lines)))
    assert [r.cells[0] for r in read(path).rows] == ["7", "1.0", "NA"]
    for values, texts in (([7, 8], ["7", "8"]), ([1.0, 0.5], ["1.0", "0.5"])):
        parquet = tmp_path / "t.parquet"
        pq.write_table(pa.table({"text": ["a", "b"], "label": values}), parquet)
        assert [r.cells[0] for r in read(parquet).rows] == texts


def test_a_list_of_labels_is_one_cell(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": "a", "label": ["x", "y"]}')
    assert read(path, label_separator="|", empty_labels=True).rows[0].cells == ("x|y",)


def test_a_quoted_cell_may_hold_commas_and_any_line_break(tmp_path):
    text = "one,\ntwo\u2028three"
    path = write(tmp_path / "t.csv", f'text,label\n"{text}",x\nplain\u2028too,y\n')
    assert [r.inputs for r in read(path).rows] == [(text,), ("plain\u2028too",)]


def test_a_folder_of_tables_brings_its_splits(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.csv", "text,label\na,x\n")
    write(tmp_path / "other.csv", "nothing\n")
    assert table.detects(tmp_path)
    assert [r.split for r in read(tmp_path).rows] == ["train", "val", "test"]


def test_a_split_column_is_used_by_its_name(tmp_path):
    path = write(tmp_path / "t.csv", "text,label,split\na,x,train\nb,x,Validation\n")
    assert [r.split for r in read(path).rows] == ["train", "val"]


def test_a_pair_of_texts_and_several_labels(tmp_path):
    path = write(tmp_path / "t.csv", "a,b,x,y,who\np,q,1,0,me\n")
    raw = read(path, text=("a", "b"), label=("x", "y"), group="who")
    assert raw.rows[0].inputs == ("p", "q") and raw.rows[0].cells == ("1", "0")
    assert raw.columns == ("x", "y") and raw.rows[0].group == "me"


def test_an_unlabelled_table_reads_without_labels(tmp_path):
    path = write(tmp_path / "t.csv", "text\nhello\n")
    rows = table.read(path, DataOptions(path, label=("label",)), labelled=False).rows
    assert rows[0].inputs == ("hello",) and rows[0].cells == ()


@pytest.mark.fault(62)
@pytest.mark.fault(63)
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"\xef\xbb\xbf", "is empty"),
        ("t.csv", b"text,label\n", "has no rows"),
        ("t.csv", b"text,label\na,x\nb,\xff\n", r"byte 17 \(row 3\) is 0xff"),
        ("t.csv", b"text,label,text\na,x,b\n", "column twice: text"),
        ("t.csv", b"text,label\na,x\nb\n", "row 3 has 1 cells where the header has 2"),
        ("t.csv", b'text,label\n"a,x\nb,y\n', "is not CSV"),
        ("t.csv", b"text,label\na\0,x\n", "row 2: a NUL character"),
        ("t.csv", b"text,label\na,\nb,x\nc, \n", "2 bad rows: t.csv row 2.*t.csv row 4"),
        ("t.csv", b"text,label,split\na,x,trian\n", 'row 2: the split is "trian"'),
        ("t.csv", b"text,lable\na,x\n", "--label; the columns are text, lable"),
        ("t.csv", b"text,file,label\na,x,y\n", "name the input column"),
        ("t.csv", b"image,label\n../x.jpg,a\n", "row 2: .* lies outside"),
        ("t.jsonl", b'{"text": "a", "label": "x"}\n{"text"\n', "row 2 is not JSON"),
        ("t.jsonl", b'{"text": "a", "text": "b", "label": 1}\n', "a key occurs twice"),
        ("t.jsonl", b'{"text": "a", "label": null}\n', "row 1: the label is empty"),
        ("t.parquet", b"PAR1", "is not a Parquet file"),
    ],
)
def test_a_bad_table_is_an_error_that_says_where(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(path)
    assert name in str(error.value)


def test_a_misspelt_column_is_answered_with_the_nearest(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,x\n")
    with pytest.raises(DataError, match='no column "lable"; did you mean "label"'):
        read(path, label=("lable",))


@pytest.mark.fault(55)
def test_a_link_out_of_the_image_root_is_refused(tmp_path):
    picture(tmp_path / "secret.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jpg").symlink_to(tmp_path / "secret.jpg")
    path = write(tmp_path / "data/t.csv", "image,label\na.jpg,x\n")
    with pytest.raises(DataError, match=r"row 2: .* is a link out of"):
        read(path)


# ---------------------------------------------------------------- data as people have them


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Train", "train"),
        ("TRAINING", "train"),
        ("train_set", "train"),
        ("TestSet", "test"),
        ("trainset", "train"),
        ("seg_test", "test"),
        ("valid", "val"),
        ("Validation Images", "val"),
        ("dev", "val"),
        ("train-00000-of-00002", "train"),
        ("trains", None),
        ("protest", None),
        ("test_train", None),
        ("x_train", None),
        ("2017", None),
    ],
)
def test_names_of_splits_are_read_as_people_write_them(name, split):
    assert split_of(name) == split


def rows_of(root, **options):
    raw = image_folder.read(root, DataOptions(root, **options))
    return {(r.split, r.cells[0]) for r in raw.rows}, raw


def test_split_folders_in_any_case_are_splits_and_said(tmp_path):
    for split in ("Train", "Test_Set"):
        picture(tmp_path / split / "cat/a.jpg")
    found, raw = rows_of(tmp_path)
    assert found == {("train", "cat"), ("test", "cat")}
    assert raw.notes == ("folders read as splits: Test_Set is test, Train is train",)


@pytest.mark.parametrize("names", [("trn", "tst"), ("X_train", "X_test"), ("traindata", "Holdout"), ("tr", "te")])
def test_folders_like_splits_with_equal_folders_are_no_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "cat/a.jpg")
        picture(tmp_path / name / "dog/a.jpg")
    with pytest.raises(DataError, match=r"\(cat, dog\).*train, val and test"):
        image_folder.read(tmp_path, DataOptions(tmp_path))


def test_classes_may_hold_the_same_folders_without_split_names(tmp_path):
    for name in ("cat", "dog"):
        picture(tmp_path / name / "front/a.jpg")
        picture(tmp_path / name / "side/a.jpg")
    assert rows_of(tmp_path)[0] == {(None, "cat"), (None, "dog")}


@pytest.mark.parametrize("names", [("train", "test1"), ("Train", "Val"), ("train",)])
def test_splits_full_of_pictures_are_no_classes(tmp_path, names):
    for name in names:
        picture(tmp_path / name / "cat.1.jpg")
        write(tmp_path / name / "metadata.csv", "file_name,label\n")
    with pytest.raises(DataError, match=f"{names[0]}/metadata.csv"):
        image_folder.read(tmp_path, DataOptions(tmp_path))


def test_a_class_may_be_called_train_beside_others(tmp_path):
    picture(tmp_path / "train/a.jpg")
    picture(tmp_path / "car/a.jpg")
    assert rows_of(tmp_path)[0] == {(None, "train"), (None, "car")}


def test_val_and_test_in_capitals_are_splits_without_a_train_too(tmp_path):
    for split in ("Validation", "TEST"):
        picture(tmp_path / split / "cat/a.jpg")
    assert rows_of(tmp_path)[0] == {("val", "cat"), ("test", "cat")}


def test_a_split_that_is_repeated_inside_itself_is_entered(tmp_path):
    for split in ("seg_train", "seg_test"):
        picture(tmp_path / split / split / "sea/a.jpg")
    assert rows_of(tmp_path)[0] == {("train", "sea"), ("test", "sea")}


def test_a_class_may_be_called_like_a_split_without_train(tmp_path):
    picture(tmp_path / "Dev/one/a.jpg")
    picture(tmp_path / "Ops/one/a.jpg")
    assert rows_of(tmp_path)[0] == {(None, "Dev"), (None, "Ops")}


def test_a_folder_around_the_splits_is_refused_with_the_path(tmp_path):
    picture(tmp_path / "flowers/train/rose/a.jpg")
    with pytest.raises(DataError, match=f"give {tmp_path / 'flowers'}"):
        image_folder.read(tmp_path, DataOptions(tmp_path))


def test_a_test_folder_without_classes_is_left_out_and_counted(tmp_path):
    picture(tmp_path / "train/cat/a.jpg")
    picture(tmp_path / "test/1.jpg")
    picture(tmp_path / "test/2.jpg")
    found, raw = rows_of(tmp_path)
    assert found == {("train", "cat")}
    assert "test has no class folders: its 2 pictures have no labels" in raw.notes[0]
    (tmp_path / "train/cat/a.jpg").rename(tmp_path / "train/a.jpg")
    (tmp_path / "train/cat").rmdir()
    (tmp_path / "test/cat").mkdir()
    with pytest.raises(DataError, match="train has no class folders"):
        image_folder.read(tmp_path, DataOptions(tmp_path))


@pytest.mark.fault(52)
def test_pictures_under_other_suffixes_are_rows_by_their_content(tmp_path):
    picture(tmp_path / "cat/a.jpg")
    for kind, name in (("JPEG", "a.jfif"), ("PNG", "b"), ("WEBP", "c.download"), ("BMP", "d.x")):
        (tmp_path / "fox").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(tmp_path / "fox" / name, format=kind)
    (tmp_path / "fox/BMnotes.txt").write_text("BM is no bitmap")
    _, raw = rows_of(tmp_path)
    assert sorted(r.where for r in raw.rows) == ["cat/a.jpg", "fox/a.jfif", "fox/b", "fox/c.download", "fox/d.x"]


def test_pictures_that_are_not_read_are_counted_rows(tmp_path):
    picture(tmp_path / "cat/a.jpg")
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox/a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"1 of 2 pictures cannot be used: fox/a\.heic"):
        read_rows(DataOptions(tmp_path))


def test_a_class_without_pictures_is_an_error_unless_skipped(tmp_path):
    picture(tmp_path / "cat/a.jpg")
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox/a.dat").write_bytes(b"1234")
    with pytest.raises(DataError, match=r"of 1 class folders no file .* \(fox\): 1 files"):
        image_folder.read(tmp_path, DataOptions(tmp_path))
    found, raw = rows_of(tmp_path, on_bad="skip")
    assert found == {(None, "cat")} and raw.empty == ("fox",)


@pytest.mark.fault(55)
@pytest.mark.parametrize("what", ["pictures", "class folder", "split folder"])
def test_links_that_empty_a_class_are_an_error_unless_followed(tmp_path, what):
    root, store = tmp_path / "data", tmp_path / "store"
    for name in ("cat", "dog"):
        picture(store / name / "a.png")
    root.mkdir()
    if what == "pictures":
        for name in ("cat", "dog"):
            (root / name).mkdir()
            (root / name / "a.png").symlink_to(store / name / "a.png")
    elif what == "class folder":
        picture(root / "cat/a.png")
        (root / "dog").symlink_to(store / "dog")
    else:
        (store / "dog/loop").symlink_to(store)
        (root / "train").symlink_to(store)
    with pytest.raises(DataError, match=r"data\.follow_links=true follows links"):
        image_folder.read(root, DataOptions(root))
    found, _ = rows_of(root, follow_links=True)
    split = "train" if what == "split folder" else None
    assert found == {(split, "cat"), (split, "dog")}


def test_folders_inside_a_class_are_said_to_belong_to_it(tmp_path):
    picture(tmp_path / "animal/cat/a.jpg")
    picture(tmp_path / "plant/a.jpg")
    found, raw = rows_of(tmp_path)
    assert found == {(None, "animal"), (None, "plant")}
    assert raw.notes == ("folders inside a class folder belong to that class: cat in animal",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text;label\na, b;x\nc;y\n", "semicolons"),
        ("text\tlabel\na, b\tx\nc\ty\n", "tabs"),
        ("sep=;\ntext;label\na, b;x\nc;y\n", "semicolons"),
        ("text|label\na, b|x\nc|y\n", "bars"),
        (' text ,label,,,\n"a, b",x,,,\nc,y,,,\n,,,,\n', None),
        ('text,label\n"a, b",x,\nc,y,,,\n\n,\n', None),
    ],
)
def test_tables_of_spreadsheets_read_as_they_look(tmp_path, text, said):
    raw = read(write(tmp_path / "t.csv", text))
    assert [(r.inputs, r.cells) for r in raw.rows] == [(("a, b",), ("x",)), (("c",), ("y",))]
    assert raw.notes == ((f"t.csv has {said} between its cells",) if said else ())
    assert raw.rows[1].where == f"t.csv row {4 if text.startswith('sep') else 3}"


@pytest.mark.parametrize(
    "text",
    [
        'text,label,"a;b;c;d"\nc,y,1\n',
        "text,label,score (0|1|2|3)\nc,y,1\nc,y,2\n",
        '"text";"label";"x, y, z, w"\nc;y;1\n',
        "sep=\t\ntext\tlabel\nc\ty\n",
        '"sep=;"\ntext;label\nc;y\n',
        'text,label\n"c\n;",y\n',
    ],
)
def test_a_header_that_holds_other_signs_keeps_its_own(tmp_path, text):
    raw = read(write(tmp_path / "t.csv", text))
    assert {r.cells for r in raw.rows} == {("y",)} and {r.inputs[0][0] for r in raw.rows} == {"c"}


@pytest.mark.parametrize("other", ["train_data.csv", "train.tsv", "training.csv"])
def test_two_tables_for_a_split_that_are_no_parts_are_refused(tmp_path, other):
    for name in ("train.csv", other):
        write(tmp_path / name, "text,label\na,x\n")
    with pytest.raises(DataError, match=r"several tables for train: .*; keep one"):
        read(tmp_path)


def test_parts_of_a_split_are_read_and_other_tables_named(tmp_path):
    for name in ("train-1.csv", "train_2.csv", "test_final.csv"):
        write(tmp_path / name, "text,label\na,x\n")
    raw = read(tmp_path)
    assert [r.split for r in raw.rows] == ["train", "train"]
    assert "left out" in raw.notes[0] and raw.notes[0].endswith(": test_final.csv")


def test_a_column_that_is_used_may_not_occur_twice(tmp_path):
    path = write(tmp_path / "t.csv", "text,label,label\na,x,y\n")
    with pytest.raises(DataError, match="has a column twice: label"):
        read(path)


def test_a_table_with_very_many_columns_reads(tmp_path):
    names = ["text", "label", *(f"c{i}" for i in range(50_000))]
    path = write(tmp_path / "t.csv", f"{','.join(names)}\n{','.join(['a'] * len(names))}\n")
    assert read(path).rows[0].cells == ("a",)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (["R&B; Soul", "Pop"], {"empty_labels": True}, 'label "R&B; Soul" contains the separator ";"'),
        (["a", "b"], {}, "a list of 2 labels: give --task multilabel"),
        ([["a"], "b"], {"empty_labels": True}, 'column "label" holds a list, not text'),
        ("['a', 'b']", {"empty_labels": True}, "holds a list written as text"),
        ('["a"]', {}, "holds a list written as text"),
    ],
)
def test_lists_of_labels_that_would_not_read_back_are_refused(tmp_path, value, options, message):
    path = write(tmp_path / "t.jsonl", json.dumps({"text": "a", "label": value}))
    with pytest.raises(DataError, match=re.escape(message)):
        read(path, **options)


def test_a_label_nested_beyond_pythons_stack_is_refused_in_words(tmp_path):
    path = write(tmp_path / "t.jsonl", f'{{"text": "a", "label": {"[" * 500}{"]" * 500}}}')
    with pytest.raises(DataError, match=r"row 1: column \"label\" holds a list"):
        read(path, empty_labels=True)


def test_a_text_that_is_a_list_is_refused(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": ["a", "b"], "label": "x"}')
    with pytest.raises(DataError, match='column "text" holds a list, not text'):
        read(path)


def test_the_tasks_separator_joins_lists_two_are_refused(tmp_path):
    task = MultiLabel(separator="|")
    options = DataOptions(tmp_path).for_task(task)
    assert options.label_separator == "|" and options.empty_labels
    with pytest.raises(DataError, match=r"set task\.separator alone"):
        DataOptions(tmp_path, label_separator="/").for_task(task)


def test_pictures_in_a_table_may_be_named_with_backslashes(tmp_path):
    picture(tmp_path / "img/cat/1.png")
    raw = read(write(tmp_path / "t.csv", "image,label\nimg\\cat\\1.png,x\n"))
    assert raw.rows[0].inputs == (str(tmp_path / "img/cat/1.png"),)
    with pytest.raises(DataError, match="lies outside"):
        read(write(tmp_path / "u.csv", "image,label\n..\\..\\secret.png,x\n"))


def test_parquet_of_hugging_face_gives_splits_pictures_and_names(tmp_path):
    """The rows have the ids of a folder with the same files."""
    names = json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}})
    (tmp_path / "ds/data").mkdir(parents=True)
    for split, colours in (("train", ("red", "blue")), ("test", ("green", "pink"))):
        cells = []
        for i, colour in enumerate(colours):
            path = tmp_path / "folder" / split / ("cat", "dog")[i] / f"{i}.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (4, 4), colour).save(path)
            cells.append({"bytes": path.read_bytes(), "path": path.name})
        made = pa.table({"image": cells, "label": [0, 1]})
        made = made.replace_schema_metadata({b"huggingface": names.encode()})
        pq.write_table(made, tmp_path / f"ds/data/{split}-00000-of-00001.parquet")
    packed, plain = (read_rows(DataOptions(tmp_path / "ds")), read_rows(DataOptions(tmp_path / "folder")))
    found = [
        [(e.id, e.cells, s) for e, s in zip(rows.examples, rows.split_names, strict=True)] for rows in (packed, plain)
    ]
    assert found[0] == found[1] and len(found[0]) == 4
    again = read_rows(DataOptions(tmp_path / "ds/data/test-00000-of-00001.parquet"))
    assert set(again.split_names) == {None} and len(again.examples) == 2


@pytest.mark.parametrize(("names", "expected"), [(["no", "yes"], ["no", "yes"]), (["no", "no"], ["0", "1"])])
def test_names_of_classes_that_are_equal_are_not_used(tmp_path, names, expected):
    about = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())], metadata=about)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}, schema=schema), path)
    assert [r.cells[0] for r in read(path).rows] == expected


def test_a_number_without_a_name_among_names_is_an_error(tmp_path):
    about = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["no", "yes"]}}}})}
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())], metadata=about)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 2]}, schema=schema), path)
    with pytest.raises(DataError, match=r"the label 2 has no name: .* 2 names"):
        read(path)


def test_linked_pictures_of_a_table_are_counted_or_followed(tmp_path):
    picture(tmp_path / "store/a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").symlink_to(tmp_path / "store/a.png")
    path = write(tmp_path / "data/t.csv", "image,label\na.png,x\n")
    with pytest.raises(DataError, match=r'"a.png" is a link out of .*data\.follow_links=true'):
        read(path)
    assert read(path, follow_links=True).rows[0].inputs == (str(tmp_path / "data/a.png"),)
    outside = write(tmp_path / "data/u.csv", "image,label\n../store/a.png,x\n")
    with pytest.raises(DataError, match="lies outside"):
        read(outside, follow_links=True)


def test_a_damaged_file_of_an_unpacked_picture_is_written_anew(tmp_path):
    first = Path(unpack(b"\x89PNG\r\n\x1a\n..."))
    first.write_bytes(b"other")
    assert unpack(b"\x89PNG\r\n\x1a\n...") == str(first) and first.suffix == ".png"
    assert first.read_bytes().startswith(b"\x89PNG") and len(list(first.parent.iterdir())) == 1


def test_pictures_are_unpacked_beside_a_folder_of_another_user(monkeypatch):
    first = Path(unpack(b"\x89PNG\r\n\x1a\n..."))
    monkeypatch.setattr("os.geteuid", lambda: 4321)
    other = Path(unpack(b"\x89PNG\r\n\x1a\n..."))
    assert other.name == first.name and other.parents[1].name == "pictures-uid-4321"
    assert unpacked_pictures() == [other]


def test_a_workbook_is_refused_with_what_to_save_it_as(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(DataError, match="save the sheet with the rows as CSV"):
        read_rows(DataOptions(tmp_path / "t.xlsx"))


def test_a_pair_with_one_empty_text_is_a_row_and_counted(tmp_path):
    path = write(tmp_path / "t.csv", "a,b,label\nx,,1\n,y,2\nx,y,1\n")
    found = read_rows(DataOptions(path, text=("a", "b")))
    assert len(found.examples) == 3
    assert found.notes == ("2 of 3 rows have one empty text of two",)
    write(path, "a,b,label\nx,,1\n,,2\n")
    with pytest.raises(DataError, match="1 of 2 texts cannot be used"):
        read_rows(DataOptions(path, text=("a", "b")))
