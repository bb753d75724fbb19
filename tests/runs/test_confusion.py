"""The confusion of a run: written small, and read the same in both forms."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from regraft.runs.confusion import MATRIX_CLASSES, column_sums, record_of, rows_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("classes", [2, MATRIX_CLASSES, MATRIX_CLASSES + 1])
def test_both_forms_read_as_scikit_learns_matrix(classes):
    truth, predicted = RNG.integers(0, classes, (2, 400)).tolist()
    expected = confusion_matrix(truth, predicted, labels=range(classes))
    record = json.loads(json.dumps(record_of(truth, predicted, classes)))
    assert isinstance(record, list) == (classes <= MATRIX_CLASSES)
    rows = rows_of(record, classes)
    assert [[row.get(p, 0) for p in range(classes)] for row in rows] == expected.tolist()
    assert column_sums(rows) == expected.sum(0).tolist()
    assert rows == rows_of(expected.tolist(), classes)  # as older runs have it


def test_truth_is_down_and_the_answer_across():
    assert record_of([0, 0, 1, 1], [0, 1, 1, 1], 2) == [[1, 1], [0, 2]]


def test_ten_thousand_classes_take_what_their_rows_take():
    truth, predicted = RNG.integers(0, 10_000, (2, 20_000)).tolist()
    tracemalloc.start()
    record = record_of(truth, predicted, 10_000)
    rows_of(record, 10_000)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert len(json.dumps(record, indent=2)) < 1e6


@pytest.mark.parametrize(
    "record",
    [
        [[1, 0]],
        [[1, 0], [1]],
        {"truth": [0, 2], "predicted": [0, 0], "rows": [1, 1]},
        {"truth": [0, -1], "predicted": [0, 0], "rows": [1, 1]},
        {"truth": [0], "predicted": [0], "rows": []},
    ],
)
def test_a_record_of_other_classes_is_refused(record):
    with pytest.raises(ValueError):
        rows_of(record, 2)
