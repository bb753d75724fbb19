"""What counts as the same, what is left behind where it is not, and text that Markdown leaves alone."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from regraft import plugins
from regraft.data.types import Example
from regraft.errors import DiskError, ExportError, UsageError
from regraft.io import locks
from regraft.publish.export import TOLERANCE, compared, in_a_sentence, published
from regraft.publish.model_card import plain_text, without_folders


def classes(names=("a", "b", "c")):
    state = {"classes": names, "primary": "accuracy", "label_smoothing": 0.0, "weights": None}
    return plugins.module("tasks", "classification").restore(state)


def numbers(mean, std):
    state = {"classes": ["n"], "primary": "mae", "loss": "mse", "huber_delta": 1.0, "mean": [mean], "std": [std]}
    return plugins.module("tasks", "regression").restore(state)


def rows(n):
    return [Example(str(i), (str(i),), (), f"row {i}") for i in range(n)]


def checked(task, expected, found):
    expected, found = np.array(expected, dtype=float), np.array(found, dtype=float)
    return compared(task, rows(len(expected)), expected, found, "test rows")


def test_a_tie_may_fall_the_other_way_and_nothing_else_may():
    near = TOLERANCE / 2
    tie = [[0.5 + near / 2, 0.5 - near / 2, 0.0]]
    assert checked(classes(), tie, [[0.5 - near / 2, 0.5 + near / 2, 0.0]]).ties == 1
    with pytest.raises(ExportError, match=r"1 of 1 test rows.*row 0, [ab]: 0\.6 by the run"):
        checked(classes(), [[0.6, 0.4, 0.0]], [[0.4, 0.6, 0.0]])


def test_the_worst_row_is_shown():
    with pytest.raises(ExportError, match=r"0\.3, row 1, c: 0\.3 by the run, 0 by the export"):
        checked(classes(), [[1, 0, 0], [0.7, 0, 0.3]], [[1, 0, 0], [0.7, 0, 0]])


@pytest.mark.parametrize("found", [[[np.nan, 0.5, 0.5]], [[0.5, 0.5]]])
def test_scores_that_are_none_are_refused(found):
    with pytest.raises(ExportError, match="nothing was written"):
        checked(classes(), [[0.5, 0.4, 0.1]], found)


def test_numbers_are_compared_in_deviations_of_the_target():
    assert checked(numbers(0, 1000), [[5.0]], [[5.05]]).difference == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(ExportError, match="standard deviations"):
        checked(numbers(0, 1), [[5.0]], [[5.05]])
    far = 1e6  # float32 tells apart 0.06 there, which is no fault of an export
    checked(numbers(far, 1), [[far]], [[far + 0.06]])


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ExportError), published(tmp_path / "new" / "out") as part:
        (part / "model.onnx").write_text("graph")
        (part / "model.onnx.data").write_text("weights")
        raise ExportError("no")
    assert list(tmp_path.iterdir()) == []


def test_all_files_appear_at_once(tmp_path):
    with published(tmp_path / "out") as part:
        (part / "model.onnx").write_text("graph")
        (part / "model.onnx.data").write_text("weights")
        (part / "model.onnx.data").chmod(0o600)
        assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    mode, graph = ((tmp_path / "out" / f).stat().st_mode for f in ("model.onnx.data", "model.onnx"))
    assert mode == graph  # whoever may read one may read all


def test_what_a_killed_export_left_goes_with_the_next_one(tmp_path):
    left = tmp_path / ".export.0123456789abcdef.part"
    (left / "content").mkdir(parents=True)
    (left / "owner").write_text(json.dumps(asdict(locks.myself(False)) | {"pid": 2**22 + 1}))
    with published(tmp_path / "out") as part:
        (part / "model.onnx").write_text("graph")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_came_meanwhile_stays(tmp_path):
    with pytest.raises(UsageError, match="just now"), published(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(DiskError), published(tmp_path / "file" / "out"):
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "a|b", "[x](y)", "# h", "`c`\n```\n$z_{$"])
def test_a_class_name_is_text_and_nothing_else(name):
    text = plain_text(name)
    assert "<" not in text
    assert "\n" not in text
    for i, letter in enumerate(text):
        if letter in "|[]`#*_$":
            assert text[i - 1] == "\\", text


def test_folders_above_files_are_not_told():
    for text in ("/home/me/data/flowers", '"transformers:/home/me/models/bert"', "C:\\me\\data\\x"):
        assert "me" not in without_folders(text).replace("transformers:", ""), text
    assert without_folders("https://arxiv.org/abs/1801.02483") == "https://arxiv.org/abs/1801.02483"
    assert without_folders("random:timm/resnet18") == "random:timm/resnet18"


def test_an_exporters_fault_is_one_whole_sentence_of_its_cause():
    advice = "Failed. \x1b[96mThis is step 3/3\x1b[0m of exporting. Next steps:\n- Create an issue"
    lacking = "No ONNX function found for <OpOverload(op='aten._linalg_svd', overload='default')>. Failure"
    view = "Cannot view a tensor with shape (s7, 3)\nas one with shape (s7, 96)!\n\nWhile executing %view"

    def fault(cause):
        error = RuntimeError(advice)
        error.__cause__ = cause
        return error

    translating = fault(ValueError(lacking))
    said = in_a_sentence(fault(translating))
    assert said == "ONNX has no operator for torch's aten._linalg_svd, which the network uses"
    said = in_a_sentence(fault(ValueError(view)))
    assert said == "ValueError: Cannot view a tensor with shape (s7, 3) as one with shape (s7, 96)!"
    assert in_a_sentence(RuntimeError(advice)) == "RuntimeError: Failed."
    assert in_a_sentence(KeyError()) == "KeyError"
