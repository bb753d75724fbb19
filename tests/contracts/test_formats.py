"""What every data format owes, and what the two shipped ones read and refuse."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from regraft import plugins
from regraft.errors import DataError
from regraft.formats import image_folder, table
from regraft.types import DataOptions


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def read(path, **options):
    return table.read(path, DataOptions(path, **options))


@pytest.mark.parametrize("name", plugins.names("formats"))
def test_a_format_detects_and_reads_and_refuses_what_is_not_its_own(name, tmp_path):
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
def test_links_out_of_the_folder_and_other_files_are_left_out_and_said(tmp_path):
    outside = tmp_path / "outside.jpg"
    picture(outside)
    root = tmp_path / "data"
    picture(root / "tulip/a.jpg")
    picture(root / "tulip/.hidden.jpg")
    (root / "tulip/link.jpg").symlink_to(outside)
    (root / "tulip/notes.txt").write_text("x")
    raw = image_folder.read(root, DataOptions(root))
    assert [r.where for r in raw.rows] == ["tulip/a.jpg"]
    assert "2 files" in raw.notes[0] and "link.jpg" in raw.notes[0] and "notes.txt" in raw.notes[0]
    assert image_folder.list_images(root) == [root / "tulip/a.jpg"]


def test_columns_mean_nothing_in_a_folder_of_pictures(tmp_path):
    picture(tmp_path / "tulip/a.jpg")
    with pytest.raises(DataError, match="has no columns"):
        image_folder.read(tmp_path, DataOptions(tmp_path, group="patient"))


def test_a_folder_of_pictures_beside_a_table_is_not_taken_for_a_class(tmp_path):
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
    assert read(path, label_separator="|").rows[0].cells == ("x|y",)


def test_a_quoted_cell_may_hold_commas_and_every_kind_of_line_break(tmp_path):
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
        ("t.csv", b"text,lable\na,x\n", "--label NAME; the columns are text, lable"),
        ("t.csv", b"text,file,label\na,x,y\n", "which column is the input"),
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
    with pytest.raises(DataError, match=r"row 2: .* lies outside"):
        read(path)
