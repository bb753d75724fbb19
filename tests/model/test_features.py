"""Outputs of a frozen module: every row once, in the split's order, held once."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from builders import CPU, make_batches
from regraft.data.batches import Batches
from regraft.data.types import CallableSpec, Example
from regraft.model.forward import Outputs, outputs

NUMBER = CallableSpec(lambda inputs: torch.full((16,), float(inputs[0])))


class Shuffled(Batches):
    """Batches whose rows come in another order, as texts do."""

    def deal(self, rank, size, view=0):
        return self._read([[5, 0], [3, 4, 1], [2, 6]], None, 0)


class Large(TorchDispatchMode):
    """The storages of ``size`` numbers or more that operations give."""

    def __init__(self, size):
        super().__init__()
        self.size, self.storages = size, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = operation(*args, **(kwargs or {}))
        if isinstance(given, torch.Tensor) and given.numel() >= self.size:
            self.storages.add(given.untyped_storage().data_ptr())
        return given


def shuffled(rows=7):
    examples = [Example(f"id{i}", (str(i),), ("x",), f"row {i}") for i in range(rows)]
    plain = make_batches(examples, torch.arange(rows) * 10, NUMBER, 3)
    return Shuffled(plain.rows, plain.reader, plain.order)


def test_rows_come_in_the_splits_order_and_can_be_trained_on():
    found = outputs(torch.nn.Identity(), shuffled(), CPU)
    assert found.ids == tuple(f"id{i}" for i in range(7))
    assert found.values[:, 0].tolist() == list(range(7))
    assert found.targets.tolist() == [10 * i for i in range(7)]
    weight = torch.ones(16, requires_grad=True)
    (found.values @ weight).sum().backward()
    assert weight.grad.tolist() == [21.0] * 16


def test_outputs_of_all_rows_are_held_once():
    with Large(7 * 16) as large:
        outputs(torch.nn.Identity(), shuffled(), CPU)
    assert len(large.storages) == 1


@pytest.mark.parametrize("rows", [6, 8])
def test_a_row_without_an_output_or_twice_is_an_error(rows):
    batches = shuffled(8)
    if rows == 6:
        batches._read = lambda parts, *_: Batches._read(batches, [[0, 1], [1, 2]], None, 0)
    with pytest.raises(RuntimeError, match="outputs"):
        outputs(torch.nn.Identity(), batches, CPU)


def test_taking_all_rows_in_their_order_copies_nothing():
    whole = Outputs(("a", "b"), torch.zeros(2, 3), torch.arange(2))
    assert whole.take(range(2)) is whole
    assert whole.take([1, 0]).ids == ("b", "a")
