"""A table of predictions holds nothing that a spreadsheet would run, and loses nothing."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.commands.predict import write_predictions
from regraft.evidence.types import Prediction
from regraft.io.csv_cells import escaped, unescaped

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "-", "-1;-2", "=", "'=1"]
PLAIN = ["-1", "+3.5", "-1e-5", ".5", "-.5", "1=2", "tulip", "", "'", "'tulip", " =1", "007", "NA"]


def runs(cell: str) -> bool:
    """Whether a spreadsheet evaluates a cell, by the rule that OWASP gives, numbers aside."""
    try:
        float(cell)
    except ValueError:
        return cell[:1] in tuple("=+-@\t\r\n＝＋－＠")
    return False


@pytest.mark.fault(67)
@pytest.mark.parametrize("cell", FORMULAS)
def test_what_a_spreadsheet_would_run_begins_with_an_apostrophe(cell):
    assert escaped(cell) == f"'{cell}" and unescaped(escaped(cell)) == cell


@pytest.mark.fault(67)
@pytest.mark.parametrize("cell", PLAIN)
def test_numbers_and_ordinary_texts_stay_as_they_are(cell):
    assert escaped(cell) == cell == unescaped(cell)


@pytest.mark.fault(67)
@given(st.text(st.sampled_from("'=+-@\t\r\n＝1e.a")) | st.text() | st.floats().map(str))
def test_no_cell_runs_and_every_cell_reads_back(cell):
    assert not runs(escaped(cell)) or cell.strip() != cell
    assert unescaped(escaped(cell)) == cell


@pytest.mark.fault(67)
def test_predictions_are_escaped_unless_switched_off():
    scores = {"=1+1": 0.75, "-1": 0.25}
    for escape, label, name in ((True, "'=1+1", "'@x.png"), (False, "=1+1", "@x.png")):
        sink = io.StringIO()
        write_predictions(sink, ["@x.png"], [Prediction("=1+1", 0.75, scores)], False, escape)
        header, row = csv.reader(io.StringIO(sink.getvalue(), newline=""))
        assert header == ["input", "predicted", label, "-1"]
        assert row == [name, label, "0.75", "0.25"]


def test_sets_and_intervals_are_cells_that_read_back():
    scores = {"a;b": 0.5, "=c": 0.25, "d\\": 0.25}
    sink = io.StringIO()
    rows = [Prediction("a;b", 0.5, scores, classes) for classes in (("=c", "a;b", "d\\"), ())]
    write_predictions(sink, ["x", "y"], rows, False)
    header, row, empty = csv.reader(io.StringIO(sink.getvalue(), newline=""))
    assert header == ["input", "predicted", "set", "a;b", "'=c", "d\\"]
    assert row[2] == r"'=c;a\;b;d\\" and empty[2] == "" and row[3:] == ["0.5", "0.25", "0.25"]
    sink = io.StringIO()
    write_predictions(
        sink, ["x"], [Prediction("1;2", None, {"m": 1.0, "n": 2.0}, None, {"m": (-1.0, 3.0), "n": (0.5, 3.5)})], False
    )
    header, row = csv.reader(io.StringIO(sink.getvalue(), newline=""))
    assert dict(zip(header, row, strict=True)) == {
        "input": "x",
        "predicted": "1;2",
        "low m": "-1.0",
        "high m": "3.0",
        "low n": "0.5",
        "high n": "3.5",
        "m": "1.0",
        "n": "2.0",
    }
    sink = io.StringIO()
    write_predictions(sink, ["x", "y"], [*rows[:1], Prediction("d", 0.5, {"d": 0.5})], True)
    decided = Prediction("d", 0.5, {"d": 0.5}, ("d",), accepted=False)
    other = io.StringIO()
    write_predictions(other, ["x"], [decided], False)
    assert other.getvalue() == "input,predicted,set,accepted,d\nx,d,d,no,0.5\n"
    first, second = map(json.loads, sink.getvalue().splitlines())
    assert first["classes"] == ["=c", "a;b", "d\\"] and "intervals" not in first
    assert second == {"input": "y", "label": "d", "probability": 0.5, "scores": {"d": 0.5}}
