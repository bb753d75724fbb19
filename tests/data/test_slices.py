"""Columns by which figures are shown: read for some rows alone, and refused with a remedy."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regraft.data.loading import read_rows
from regraft.data.slices import check_columns, read_values
from regraft.data.types import DataOptions
from regraft.errors import DataError

HEADER = ["text", "label", "camera", "site", "patient"]


def records(n=60):
    return [(f"text {i}", "ab"[i % 2], f"cam{i % 3}", " " if i % 4 == 0 else "north", f"p{i}") for i in range(n)]


def options(path, **more):
    return DataOptions(str(path), **more)


def csv_table(path, rows=None, header=HEADER):
    path.write_text("\n".join(",".join(r) for r in [header, *(rows or records())]) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_values_belong_to_their_rows_in_any_order(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        csv_table(path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(HEADER, r, strict=True))) + "\n" for r in records()))
    else:
        pq.write_table(pa.table(dict(zip(HEADER, map(list, zip(*records(), strict=True)), strict=True))), path)
    rows = read_rows(options(path)).examples[7:40]
    found = read_values(options(path), ["site", "camera"], rows, "test rows")
    by_text = {text: (camera, site.strip()) for text, _, camera, site, _ in records()}
    got = list(zip(found["camera"], found["site"], strict=True))
    assert got == [by_text[e.inputs[0]] for e in rows]
    assert "" in found["site"]


def test_the_tables_of_a_folder_are_read_and_one_may_lack_the_column(tmp_path):
    csv_table(tmp_path / "train.csv", [r[:2] for r in records(40)], HEADER[:2])
    csv_table(tmp_path / "test.csv", [(f"new {r[0]}", *r[1:]) for r in records(20)])
    rows = read_rows(options(tmp_path)).by_split()
    found = read_values(options(tmp_path), ["camera"], rows["test"], "test rows")
    assert sorted(found["camera"]) == sorted(r[2] for r in records(20))
    with pytest.raises(DataError, match=r"40 of 40 train rows have no column camera: .*train\.csv row"):
        read_values(options(tmp_path), ["camera"], rows["train"], "train rows")


def refusal(path, *names, **more):
    with pytest.raises(DataError) as caught:
        check_columns(options(path, **more), names)
        read_values(options(path, **more), names, read_rows(options(path, **more)).examples, "test rows")
    return str(caught.value)


def test_columns_that_cannot_be_sliced_by_are_refused(tmp_path):
    path = csv_table(tmp_path / "t.csv")
    said = refusal(path, "camra")
    assert all(part in said for part in ('no column "camra"', 'did you mean "camera"?', ", ".join(HEADER)))
    assert ", ".join(sorted(HEADER)) in refusal(path, "weather")
    assert '"label" is the label column' in refusal(path, "label")
    assert '"camera" is the label column' in refusal(path, "camera", label=("camera",))
    assert all(part in refusal(path, "patient") for part in ('"patient" has 60 values in 60 test rows', "bins"))
    assert "twice: camera" in refusal(path, "camera", "site", "camera")


def test_another_value_in_every_row_is_refused_for_few_rows_too(tmp_path):
    path = csv_table(tmp_path / "t.csv", records(20))
    assert '"patient" has 20 values in 20 test rows' in refusal(path, "patient")
    one = read_rows(options(path)).examples[:1]
    assert read_values(options(path), ["patient"], one, "test rows")["patient"][0].startswith("p")


def test_more_values_than_fifty_are_refused_and_fifty_are_not(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2], f"c{i % 51}", f"s{i % 50}", "") for i in range(200)]
    path = csv_table(tmp_path / "t.csv", rows)
    assert '"camera" has 51 values in 200 test rows' in refusal(path, "camera")
    examples = read_rows(options(path)).examples
    assert len(set(read_values(options(path), ["site"], examples, "test rows")["site"])) == 50


def test_a_column_of_lists_and_a_folder_of_pictures_are_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [{"text": f"text {i}", "label": "ab"[i % 2], "tags": ["x"]} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert all(part in refusal(path, "tags") for part in ("t.jsonl row 1", "a list"))
    folder = tmp_path / "pictures" / "ant"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="have no columns") as caught:
        check_columns(options(folder.parent), ["camera"])
    assert "give a table" in str(caught.value) and "--slice camera" in str(caught.value)


def test_cells_of_other_rows_are_not_looked_at(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [{"text": f"text {i}", "label": "ab"[i % 2], "tags": ["x"] if i < 5 else "xy"[i % 2]} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_rows(options(path)).examples
    fine = rows.take([not e.where.endswith((" 1", " 2", " 3", " 4", " 5")) for e in rows])
    assert set(read_values(options(path), ["tags"], fine, "test rows")["tags"]) == {"x", "y"}
    assert "a list" in refusal(path, "tags")


def test_a_table_without_slices_is_not_read_again(tmp_path):
    path = tmp_path / "gone.csv"
    check_columns(options(path), [])
    assert read_values(options(path), [], [], "test rows") == {}
