"""Every task: state round trip, strict options, losses by hand, faults in words."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from regraft import plugins
from regraft.errors import DataError
from regraft.evidence.intervals import value_of
from regraft.tasks import kind_of
from regraft.tasks.classification import Classification
from regraft.tasks.multilabel import MultiLabel
from regraft.tasks.regression import Regression

SAMPLES = {  # by targets: label cells that any task of these takes
    "class": ([("b",), ("a",), ("b",), ("c",)], ("label",)),
    "labels": ([("x;y",), ("y",), ("",), ("z ; x",)], ("tags",)),
    "numbers": ([("1", "10"), ("2", "30"), ("4", "20"), ("0", "0")], ("u", "v")),
}
NAMES = plugins.names("tasks")


def sample(name):
    return SAMPLES[kind_of(name).targets]


def built(name):
    cells, columns = sample(name)
    return plugins.options_class("tasks", name)().make(cells, columns), cells


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    task, cells = built(name)
    assert task.name == name and task.outputs == len(task.classes)
    assert task.primary in task.metrics
    assert set(task.summary_metrics) <= set(task.default_metrics) <= set(plugins.names("metrics"))
    assert all(plugins.module("metrics", m).targets == task.targets for m in task.metrics)
    assert kind_of(name).targets == task.targets and kind_of(name).activation == task.activation
    assert bool(task.names(cells[0])) != task.has_numbers
    assert all(task.problem(row) is None for row in cells)
    targets = task.encode(cells)
    logits = torch.randn(len(cells), task.outputs, requires_grad=True)
    loss = task.loss(logits, targets)
    assert loss.shape == (len(cells),) and torch.isfinite(loss).all()
    loss.sum().backward()
    assert logits.grad.abs().sum() > 0
    scores, constant = task.scores(logits.detach()), task.constant(targets)
    assert scores.shape == (len(cells), task.outputs) and constant.shape == (task.outputs,)
    assert len(task.truth(targets)) == len(cells)
    outputs = logits.detach().double()
    if task.affine is not None:
        outputs = outputs * torch.tensor(task.affine[0]).double() + torch.tensor(task.affine[1]).double()
    activated = {"softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid, "exp": torch.exp, "none": lambda z: z}
    torch.testing.assert_close(scores, activated[task.activation](outputs))  # as an export computes it
    wrongness = task.wrongness(task.truth(targets).numpy(), scores.numpy())
    assert wrongness.shape == (len(cells),) and (wrongness >= 0).all()
    assert isinstance(task.label(scores[0].numpy()), str)
    half = task.loss(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    for metric in task.metrics:
        of = plugins.module("metrics", metric)
        assert math.isfinite(value_of(of, task.truth(targets).numpy(), scores.numpy()))


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name):
    task, cells = built(name)
    again = plugins.module("tasks", name).restore(json.loads(json.dumps(task.state())))
    assert again == task
    assert torch.equal(again.encode(cells), task.encode(cells))


@pytest.mark.parametrize("name", NAMES)
def test_options_are_strict(name):
    cls = plugins.options_class("tasks", name)
    assert dataclasses.fields(cls) and plugins.make(cls, {}, "task")[0] == cls()
    record, problems = plugins.make(cls, {"primray": "x"}, "task")
    assert record is None and 'did you mean "primary"?' in problems[0]
    record, problems = plugins.make(cls, {"primary": "acuracy"}, "task")
    assert record is None and "acuracy" in problems[0]
    record, problems = plugins.make(cls, {"metrics": ["acuracy"]}, "task")
    assert record is None and 'did you mean "accuracy"?' in problems[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_further_metric_takes_part(name, monkeypatch):
    cls = kind_of(name)
    for kind in (cls, type(built(name)[0])):
        monkeypatch.setattr(kind, "default_metrics", kind.default_metrics[:1])
    further = next(
        m
        for m in plugins.names("metrics")
        if plugins.module("metrics", m).targets == cls.targets and m not in cls.default_metrics
    )
    primary = cls.default_metrics[0]
    record, problems = plugins.make(cls, {"metrics": [further], "primary": further}, "task")
    assert not problems
    task = record.make(*sample(name))
    assert task.metrics == (primary, further) and task.primary == further
    state = json.loads(json.dumps(task.state()))
    assert plugins.module("tasks", name).restore(state) == task
    _, problems = plugins.make(cls, {"primary": further}, "task")
    assert f'metrics = ["{further}"]' in problems[0]
    other = next(m for m in plugins.names("metrics") if plugins.module("metrics", m).targets != cls.targets)
    _, problems = plugins.make(cls, {"metrics": [other]}, "task")
    assert f'"{other}" takes' in problems[0]


@pytest.mark.parametrize("name", NAMES)
def test_strata_are_words(name):
    cells, _ = sample(name)
    strata = plugins.options_class("tasks", name)().strata(cells)
    assert len(strata) == len(cells) and all(isinstance(s, str) for s in strata)


def test_classes_are_sorted_and_targets_follow_names():
    task, cells = built("classification")
    assert task.classes == ("a", "b", "c")
    assert task.encode(cells).tolist() == [1, 0, 1, 2]
    assert task.constant(task.encode(cells)).tolist() == [0.25, 0.5, 0.25]


def test_balanced_weights_average_to_one_and_mixed_targets_agree():
    cells = [("a",)] * 6 + [("b",)] * 2 + [("c",)]
    options = Classification(class_weights="balanced", label_smoothing=0.1)
    task = options.make(cells, ("label",))
    targets = task.encode(cells)
    assert torch.tensor(task.weights)[targets].mean() == pytest.approx(1.0)
    logits = torch.randn(9, 3)
    shares = torch.nn.functional.one_hot(targets, 3).float()
    torch.testing.assert_close(task.loss(logits, shares), task.loss(logits, targets))
    # by hand: w = N / (C · N_c), t' = 0.9·t + 0.1/3
    w, smooth = torch.tensor([0.5, 1.5, 3.0]), 0.9 * shares + 0.1 / 3
    torch.testing.assert_close(task.loss(logits, targets), -(w * smooth * logits.log_softmax(1)).sum(1))


@pytest.mark.parametrize(
    ("cells", "columns", "words"),
    [
        ([("a", "b")], ("u", "v"), "--task multilabel"),
        ([("a",), ("a",)], ("label",), "at least 2 classes"),
        ([("a",), (" ",), ("b",)], ("label",), "rows 2"),
    ],
)
def test_classification_refuses(cells, columns, words):
    with pytest.raises(DataError, match=words):
        Classification().make(cells, columns)


def test_problems_in_words():
    task, _ = built("classification")
    assert "not a class" in task.problem(("d",)) and "empty" in task.problem(("",))
    with pytest.raises(DataError, match="row 2"):
        task.encode([("a",), ("d",)])
    labels, _ = built("multilabel")
    assert "not a label" in labels.problem(("x;w",)) and labels.problem(("",)) is None
    numbers, _ = built("regression")
    for cell, words in [("", "empty"), ("x", "not a number"), ("nan", "finite"), ("inf", "finite")]:
        assert words in numbers.problem((cell, "1"))
    assert "belong" in numbers.problem(("1",))


def test_labels_in_one_column_or_several():
    task, cells = built("multilabel")
    assert task.classes == ("x", "y", "z")
    assert task.encode(cells).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]
    several = MultiLabel().make([("1", "false"), ("0", "True")], ("sea", "beach"))
    assert several.classes == ("sea", "beach")
    assert several.encode([("1", "false"), ("0", "True")]).tolist() == [[1, 0], [0, 1]]
    assert several.problem(("2", "0")) and several.problem(("1",))
    with pytest.raises(DataError, match="0 or 1"):
        MultiLabel().make([("1", "maybe")], ("a", "b"))
    with pytest.raises(DataError, match="--task classification"):
        MultiLabel().make([("1",), ("0",)], ("a",))
    with pytest.raises(DataError, match="no training row has a label"):
        MultiLabel().make([("",), ("",)], ("a",))
    assert MultiLabel().strata(cells) == ["x", "y", "none", "z"]


def test_label_loss_is_the_mean_over_labels():
    task, _ = built("multilabel")
    loss = task.loss(torch.zeros(2, 3), torch.tensor([[1.0, 0, 0.5], [0, 0, 0]]))
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)


def test_numbers_are_standardised_inside_and_own_outside():
    task, cells = built("regression")
    targets = task.encode(cells)
    assert targets.mean(0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert targets.std(0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-6)
    own = torch.tensor([[float(c) for c in row] for row in cells]).double()
    torch.testing.assert_close(task.truth(targets), own, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(task.constant(targets), own.mean(0), atol=1e-5, rtol=1e-6)
    with pytest.raises(DataError, match="same in every training row"):
        Regression().make([("1",), ("1.0",)], ("y",))
    with pytest.raises(DataError, match="1 of 2 training rows"):
        Regression().make([("1",), ("one",)], ("y",))


@pytest.mark.parametrize(("loss", "expected"), [("mse", 5.0), ("l1", 2.0), ("huber", 1.5)])
def test_regression_losses_by_hand(loss, expected):  # errors 1 and 3: huber (0.5 + 2.5) / 2
    task = Regression(loss=loss).make([("0", "0"), ("1", "1")], ("u", "v"))
    assert task.loss(torch.tensor([[1.0, -3.0]]), torch.zeros(1, 2)).item() == expected


def test_regression_strata_are_at_most_five_even_bins():
    strata = Regression().strata([(str(i),) for i in range(100)])
    assert {strata.count(s) for s in strata} == {20}
    assert set(Regression().strata([("1",)] * 4 + [("2",)] * 3)) == {"bin 0"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Classification(label_smoothing=1.0),
        lambda: MultiLabel(threshold=0.0),
        lambda: MultiLabel(separator=""),
        lambda: Regression(huber_delta=0.0),
    ],
)
def test_options_out_of_range(make):
    with pytest.raises(ValueError, match="must"):
        make()


class Looked(str):
    """A name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Looked.compared += 1
        return str.__eq__(self, other)


@pytest.mark.parametrize("name", ["classification", "multilabel"])
def test_a_label_is_found_without_a_search_through_all_classes(name):
    names = [(Looked(f"class {i}"),) for i in range(500)]
    task = plugins.options_class("tasks", name)().make(names, ("label",))
    cells = [(f"class {i}",) for i in range(500)]
    Looked.compared = 0
    assert not any(task.problem(row) for row in cells)
    encoded = task.encode(cells)
    assert Looked.compared < 5_000
    expected = torch.tensor([task.classes.index(row[0]) for row in cells])
    assert torch.equal(encoded if name == "classification" else encoded.argmax(1), expected)


def test_a_wrong_answer_is_as_bad_as_it_was_sure():
    task, _ = built("classification")
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.99, 0.01]])
    np.testing.assert_allclose(task.wrongness(np.array([0, 1, 0, 1]), scores), [0, 0, 0.7, 0.99])


def test_a_number_is_as_bad_as_it_is_far_in_spreads():
    task, _ = built("regression")
    truth, scores = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[1.0, 5.0], [1.0, 6.0]])
    # the first column's standard deviation is 1; a column that does not vary counts in its own units
    np.testing.assert_allclose(task.wrongness(truth, scores), [0, 2 + 1])


def test_labels_are_wrong_where_the_answer_is_another():
    task, _ = built("multilabel")
    truth, scores = np.array([[1, 1], [0, 1], [0, 1]]), np.array([[0.9, 0.6], [0.4, 0.9], [0.8, 0.9]])
    np.testing.assert_allclose(task.wrongness(truth, scores), [0, 0, (0.8 + 0.1) / 2])


def test_given_labels_are_those_that_are_encoded():
    task = MultiLabel(separator=",").make([("b,a",), ("c",), ("",)], ("tags",))
    flags = MultiLabel().make([("1", "0"), ("0", "1")], ("y", "x"))
    for of, row in ((task, ("c, b,b",)), (task, ("",)), (flags, ("1", "true")), (flags, ("0", "1"))):
        on = of.encode([row])[0].tolist()
        assert of.names(row) == tuple(c for c, flag in zip(of.classes, on, strict=True) if flag)
    with pytest.raises(DataError, match="row 1"):
        task.names(("d",))
    assert task.label(np.array([0.9, 0.2, 0.5])) == "a,c"
