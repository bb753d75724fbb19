"""Files that are damaged in a way that a library does not expect are refused in words, not by a crash.

Each of these came out of tools/fuzz.py.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from regraft.data.splitting import read_manifest
from regraft.data.types import DataOptions
from regraft.errors import DataError, PlanError, SourceError, UsageError
from regraft.formats import table
from regraft.io import locks
from regraft.io.hashing import file_digest
from regraft.io.log import lines_to
from regraft.plan.read import read_plan
from regraft.runs.folder import RunFolder, read_json, status_of
from regraft.runs.result import finished
from regraft.sources import _weights
from regraft.training import checkpoints
from regraft.training.checkpoints import CheckpointManager

DEEP = "[" * 100_000


def test_brackets_deeper_than_any_stack(tmp_path):
    path = tmp_path / "deep"
    path.write_text(f"a = {DEEP}")
    with pytest.raises(PlanError, match="nested too deep"):
        read_plan(path, {})
    path.write_text("a." * 3000 + "a = 1")  # tomllib needs no stack for these, and what reads them does
    with pytest.raises(PlanError, match="nested too deep"):
        read_plan(path, {})
    path.write_text("a = " + "9" * 5000)
    with pytest.raises(PlanError, match="4300 digits"):
        read_plan(path, {})
    with pytest.raises(PlanError, match="nested too deep"):
        read_plan(None, {"a." * 3000 + "a": 1})
    path.write_text(DEEP)
    with pytest.raises(UsageError, match="damaged"):
        read_json(tmp_path, "deep", dict)
    (tmp_path / "result.json").write_text(DEEP)
    assert status_of(tmp_path) == ""
    rows = tmp_path / "t.jsonl"
    rows.write_text('{"text": "a", "label": "b"}\n{"text": ' + DEEP)
    with pytest.raises(DataError, match="row 2 is not JSON"):
        table.read(rows, DataOptions(rows))


def test_half_a_character_in_a_table_names_its_row(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n{"text": "\\ud800", "label": "b"}\n')
    with pytest.raises(DataError, match=r'row 2: half a character in column "text"'):
        table.read(path, DataOptions(path))


def parquet(path, values, cut=0):
    pq.write_table(pa.table({"text": values, "label": ["a"] * len(values)}), path)
    if cut:
        data = bytearray(path.read_bytes())
        data[4:cut] = bytes(cut - 4)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("values", "cut"),
    [
        (pa.array(["a", "b"] * 50), 60),  # a page that is no page
        (pa.array([2**62], pa.timestamp("ms")), 0),  # a year that Python does not know
        (pa.array([2**62], pa.duration("ms")), 0),
        (pa.array([b"\xff\xfe"]).view(pa.string()), 0),
    ],
    ids=["page", "year", "duration", "no UTF-8"],
)
def test_values_of_a_parquet_file_that_do_not_read(tmp_path, values, cut):
    path = parquet(tmp_path / "t.parquet", values, cut)
    with pytest.raises(DataError, match=r"t\.parquet does not read after row 0"):
        table.read(path, DataOptions(path))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02J\x01",  # an integer that is cut short
        b"\x80\x02\x8a\xff" + b"x" * 3,  # a longer one
        b"\x80\x02X\xff\xff\xff\x7fa",  # a text of two gigabytes
        b"\x80\x02}q\x00(K\x01K\x02u",  # a state that nobody ended
        b"\x80\x02R.",  # a call of nothing
        b"\x80\x02s.",
    ],
)
def test_a_pickle_that_is_cut_or_calls_nothing(tmp_path, data):
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(SourceError, match=r"w\.pt: (refused, nothing executed|damaged)"):
        _weights.read(tmp_path / "w.pt")


def test_torch_files_with_any_bit_flipped_are_read_or_refused(tmp_path):
    sink = io.BytesIO()
    torch.save({"a": torch.ones(3)}, sink, _use_new_zipfile_serialization=False)
    whole = sink.getvalue()
    refused = 0
    for at in range(0, len(whole), 3):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        (tmp_path / "w.pt").write_bytes(data)
        try:
            _weights.read(tmp_path / "w.pt")
        except SourceError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "record",
    [
        [],
        None,
        {"count": "3"},
        {"count": 1e999},
        {"count": 2, "part": 7},
        {"count": 2, "arm": "seed 0"},
        {"count": 2, "arm": "seed 0", "at": {"step": "1"}},
        {"count": 2, "part": "a", "about": []},
    ],
)
def test_a_checkpoint_without_its_record_is_skipped_and_named(tmp_path, record):
    """Though its sums are right."""
    tensors = {"a": torch.ones(2)}
    good = {"count": 1, "arm": "seed 0", "at": {"step": 1, "epoch": 1}, "about": {}}
    checkpoints.write(tmp_path / "step-00000001", good, tensors)
    checkpoints.write(tmp_path / "step-00000002", record, tensors)
    said: list[str] = []
    keeper = CheckpointManager(tmp_path)
    with lines_to(said.append):
        keeper.scan()
    assert keeper.good == [tmp_path / "step-00000001"] and keeper.count == 1
    why = "record.json is no record of a checkpoint: "  # and the field
    if record is None:
        why = f"it does not read: {tmp_path / 'step-00000002/record.json'} is damaged, or was made by "
        why += "another version of regraft: it holds nothing"
    (line,) = said
    assert line.startswith(f"{tmp_path / 'step-00000002'} is skipped: {why}")
    assert keeper.latest("seed 0").record["at"]["step"] == 1


def test_no_tensors_are_refused_though_their_sum_is_right(tmp_path):
    place = tmp_path / "step-00000001"
    checkpoints.write(place, {"count": 1, "arm": "a", "at": {"step": 1, "epoch": 1}}, {})
    (place / checkpoints.TENSORS).write_bytes(b"no tensors")
    names = (checkpoints.TENSORS, checkpoints.RECORD)
    lines = [f"{file_digest(place / n)}  {n}\n" for n in names]
    (place / checkpoints.MANIFEST).write_text("".join(lines))
    keeper = CheckpointManager(tmp_path)
    keeper.scan()
    with pytest.raises(UsageError, match="step-00000001 does not read"):
        keeper.latest("a")


def test_a_lock_that_names_no_process_holds_nothing(tmp_path):
    whole = asdict(locks.Holder(1, "host", "", "now"))
    for change in ({"pid": "1"}, {"pid": -1}, {"pid": 2**70}, {"pid": True}, {"host": None}, {"started": 3}):
        (tmp_path / "lock").write_text(json.dumps(whole | change))
        assert locks.find_holder(tmp_path / "lock") is None
    (tmp_path / "lock").write_text(DEEP)
    assert locks.find_holder(tmp_path / "lock") is None


@pytest.mark.parametrize("data", [b'{"id": 1', b"\xff\n", DEEP.encode()])
def test_a_manifest_that_does_not_read_is_said(tmp_path, data):
    path = tmp_path / "manifest.jsonl"
    good = b'{"id": "a", "split": "test", "cells": ["x"], "where": "row 1"}\n'
    path.write_bytes(good + data)
    words = r"manifest\.jsonl is damaged, or was made by another version of regraft: line 2: "
    with pytest.raises(UsageError, match=words):
        list(read_manifest(path))
    path.unlink()
    with pytest.raises(UsageError, match=r"manifest\.jsonl is missing"):
        list(read_manifest(path))


def test_a_result_that_is_no_record_and_lines_that_are_none(tmp_path):
    (tmp_path / "result.json").write_text("[1]")
    with pytest.raises(UsageError, match="it is no JSON object"):
        finished(tmp_path)
    (tmp_path / "resumes.jsonl").write_bytes(b'{"a": 1}\n\xff\n')
    with pytest.raises(UsageError, match=r"resumes\.jsonl is damaged"):
        RunFolder(tmp_path).resumes()
