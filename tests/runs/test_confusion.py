"""The confusion of a run: written small, and read the same in both forms."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any, cast

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from regraft.io.json_files import plain
from regraft.runs import records
from regraft.runs.confusion import MATRIX_CLASSES, Confusion, column_sums, confusion_of, rows_of

RNG = np.random.default_rng(0)


def read(written: Any) -> Any:
    """Return the confusion that a JSON value holds."""
    return records.checked(cast(Any, Confusion), written)


@pytest.mark.parametrize("classes", [2, MATRIX_CLASSES, MATRIX_CLASSES + 1])
def test_both_forms_read_as_scikit_learns_matrix(classes):
    truth, predicted = RNG.integers(0, classes, (2, 400)).tolist()
    expected = confusion_matrix(truth, predicted, labels=range(classes))
    written = json.loads(json.dumps(plain(confusion_of(truth, predicted, classes))))
    assert isinstance(written, list) == (classes <= MATRIX_CLASSES)
    rows = rows_of(read(written), classes)
    assert [[row.get(p, 0) for p in range(classes)] for row in rows] == expected.tolist()
    assert column_sums(rows) == expected.sum(0).tolist()
    assert rows == rows_of(expected.tolist(), classes)  # older runs have the matrix


def test_truth_is_down_and_the_answer_across():
    assert confusion_of([0, 0, 1, 1], [0, 1, 1, 1], 2) == [[1, 1], [0, 2]]


def test_ten_thousand_classes_take_what_their_rows_take():
    truth, predicted = RNG.integers(0, 10_000, (2, 20_000)).tolist()
    tracemalloc.start()
    record = confusion_of(truth, predicted, 10_000)
    rows_of(record, 10_000)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert len(json.dumps(plain(record), indent=2)) < 1e6


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
def test_a_confusion_of_other_classes_is_refused(record):
    with pytest.raises(ValueError):
        rows_of(read(record), 2)
