"""The worst errors: which rows they are, and what is kept of their pictures."""

import numpy as np
from PIL import Image

from regraft.evidence.scoring import Predictions
from regraft.pipeline.gallery import SIDE, thumbnail, wrongness
from regraft.plugins import options_class


def rows(truth, scores):
    truth = np.asarray(truth)
    ids = tuple(f"r{i}" for i in range(len(truth)))
    return Predictions(ids, truth, np.asarray(scores, dtype=float), None)


def test_a_wrong_answer_is_as_bad_as_it_was_sure():
    task = options_class("tasks", "classification")().make([("a",), ("b",)], ("y",))
    found = wrongness(task, rows([0, 1, 0, 1], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.99, 0.01]]))
    np.testing.assert_allclose(found, [0, 0, 0.7, 0.99])


def test_a_number_is_as_bad_as_it_is_far_in_spreads_of_the_truth():
    task = options_class("tasks", "regression")().make([("1", "5"), ("2", "6")], ("x", "y"))
    truth, scores = [[1.0, 5.0], [3.0, 5.0]], [[1.0, 5.0], [1.0, 6.0]]
    found = wrongness(task, rows(truth, scores))
    # the first column's standard deviation is 1; a column that does not vary counts in its own units
    np.testing.assert_allclose(found, [0, 2 + 1])


def test_labels_are_wrong_where_the_answer_is_another():
    task = options_class("tasks", "multilabel")().make([("a;b",), ("b",)], ("y",))
    truth, scores = [[1, 1], [0, 1], [0, 1]], [[0.9, 0.6], [0.4, 0.9], [0.8, 0.9]]
    found = wrongness(task, rows(truth, scores))
    np.testing.assert_allclose(found, [0, 0, (0.8 + 0.1) / 2])


def test_a_thumbnail_is_small_and_carries_nothing_of_the_file(tmp_path):
    image = Image.new("RGB", (400, 200), (200, 30, 30))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    image.save(tmp_path / "in.jpg", exif=exif, comment=b"my secret")
    thumbnail(str(tmp_path / "in.jpg"), tmp_path / "gallery" / "0.jpg")
    data = (tmp_path / "gallery" / "0.jpg").read_bytes()
    with Image.open(tmp_path / "gallery" / "0.jpg") as made:
        assert made.size == (SIDE, SIDE // 2) and not made.getexif()
        assert abs(made.getpixel((5, 5))[0] - 200) < 8
    assert b"secret" not in data and b"home" not in data
