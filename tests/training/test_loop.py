import copy
import itertools
import math

import pytest
import torch
from torch import nn

from builders import CPU, Recorder, class_task, fit, make_batches, make_settings
from regraft.compute.device import Compute
from regraft.errors import DivergedError, PlanError
from regraft.evidence.selection import improves
from regraft.freezing.gradual import Gradual
from regraft.freezing.head_only import HeadOnly
from regraft.freezing.last_blocks import LastBlocks
from regraft.metrics import accuracy, mae
from regraft.model.forward import outputs
from regraft.model.grafting import graft
from regraft.plan.read import check
from regraft.regularizers.l1 import L1
from regraft.regularizers.l2 import L2
from regraft.regularizers.l2_sp import L2SP
from regraft.training.objective import split_slices
from regraft.training.schedules import SCHEDULES, RateSchedule, block_rates

BLOCKS = ["one", "two", "head"]
TASK = class_task("0", "1", "2")


def settings(epochs=2, rate=0.05, optimizer="SGD", **kw):
    kw = {"optimizer": optimizer, "clip_norm": 0.0, "schedule": "constant", "warmup": 0.0} | kw
    return make_settings(BLOCKS, epochs, rate, **kw)


def fitted(source, rows, chosen, *, penalties=None, val=None, batch=8, seed=0, **how):
    target = graft(source, 3, seed=seed)
    before = copy.deepcopy(target.model.state_dict())
    made = {name: r.prepare(target, None, None) for name, r in (penalties or {}).items()}
    train = make_batches(*rows, source.preprocess, batch, seed=seed)
    held_out = make_batches(*val, source.preprocess, 8) if val else None
    done = fit(target, train, TASK, chosen, val=held_out, penalties=made, seed=seed, **how)
    return target, before, done


def changed(target, before):
    now = target.model.state_dict()
    return {n for n in now if not torch.equal(now[n], before[n])}


OPTIMIZERS = [
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {}),
    ("AdamW", {}),
    ("Adam", {}),
    ("RMSprop", {"momentum": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_the_loop_is_the_one_written_by_hand(numbers_source, number_rows, name, options):
    rows = number_rows(21)
    chosen = settings(3, 0.01, name, optimizer_options=options, schedule="cosine", warmup=0.2)
    target, before, _ = fitted(numbers_source(), rows, chosen)

    model = graft(numbers_source(), 3).model
    model.load_state_dict(before)
    model.eval()  # batch norm keeps its statistics; there is no dropout in this net
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    mine = getattr(torch.optim, name)([{"params": matrices}, {"params": vectors}], lr=0.01, weight_decay=0.0, **options)
    train = make_batches(*rows, numbers_source().preprocess, 8)
    step, steps, warm = 0, 9, 1
    for epoch in (1, 2, 3):
        for _, x, y in train.epoch(epoch):
            for group in mine.param_groups:
                share = max(0.0, (step - warm) / (steps - warm))
                rising = min(1.0, (step + 1) / warm)
                group["lr"] = 0.01 * rising * SCHEDULES["cosine"](share)
            mine.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            mine.step()
            step += 1
    for key, value in model.state_dict().items():
        torch.testing.assert_close(target.model.state_dict()[key], value, rtol=0, atol=1e-6)
    assert changed(target, before)


@pytest.mark.fault(30)
def test_freezing_is_real(numbers_source, number_rows):  # not even batch-norm buffers move
    target, before, _ = fitted(numbers_source(0.5), number_rows(20), settings(batch_norm="train"), freezing=HeadOnly())
    assert changed(target, before) == {"head.weight", "head.bias"}
    target, before, _ = fitted(
        numbers_source(0.5), number_rows(20), settings(batch_norm="train"), freezing=LastBlocks(1)
    )
    moved = changed(target, before)
    assert {n.split(".")[1] for n in moved if n.startswith("backbone")} == {"two"}


@pytest.mark.fault(30)
def test_batch_norm_statistics_of_a_kept_source_stay(numbers_source, number_rows):
    target, before, _ = fitted(numbers_source(), number_rows(20), settings())
    moved = changed(target, before)
    assert "backbone.one.1.running_mean" not in moved and "backbone.one.1.weight" in moved
    target, before, _ = fitted(numbers_source(), number_rows(20), settings(batch_norm="train"))
    assert "backbone.one.1.running_mean" in changed(target, before)


@pytest.mark.fault(30)
def test_dropout_of_a_frozen_block_drops_nothing(numbers_source, number_rows):
    rows = number_rows(20)
    with_, before, _ = fitted(numbers_source(0.9), rows, settings(), freezing=HeadOnly())
    without, _, _ = fitted(numbers_source(0.0), rows, settings(), freezing=HeadOnly())
    assert torch.equal(with_.model.head.weight, without.model.head.weight)
    assert not torch.equal(with_.model.head.weight, before["head.weight"])


def test_accumulated_batches_are_one_batch_with_one_penalty(numbers_source, number_rows):
    rows = number_rows(32)
    penalty = {"l2": L2(strength=0.1)}
    one, _, _ = fitted(numbers_source(), rows, settings(), batch=16, penalties=penalty)
    two, _, _ = fitted(numbers_source(), rows, settings(accumulate=2), batch=8, penalties=penalty)
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[key], value, rtol=0, atol=1e-6)


def small_memory(monkeypatch, rows):
    """Training holds so many rows at once; → the sizes that were asked for."""
    asked = []
    forward = nn.Module.__call__

    def call(self, *inputs):
        if isinstance(self, nn.Linear) and torch.is_grad_enabled():
            asked.append(len(inputs[0]))
            if asked[-1] > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, *inputs)

    monkeypatch.setattr(nn.Module, "__call__", call)
    return asked


@pytest.mark.fault(20)
@pytest.mark.parametrize("how", [{}, {"accumulate": 2}, {"sharpness": 0.05}], ids=str)
def test_where_memory_is_too_small_a_step_goes_through_in_pieces(numbers_source, number_rows, monkeypatch, how):
    """And is the same step: every row counts as before, and a penalty on θ once."""
    source, rows, penalties = numbers_source(), number_rows(38), {"l2": L2(strength=0.1)}
    whole, before, _ = fitted(source, rows, settings(**how), batch=16, penalties=penalties)
    recorder = Recorder()
    asked = small_memory(monkeypatch, 4)
    pieces, _, done = fitted(source, rows, settings(**how), batch=16, penalties=penalties, monitor=recorder)
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(pieces.model.state_dict()[key], value, rtol=0, atol=1e-6)
    assert changed(pieces, before) and done.steps == {1: 6, 2: 4}[how.get("accumulate", 1)]
    # told once a halving, remembered for later steps, and no piece is a single row
    assert len(recorder.lines) == 2 and recorder.lines[0].startswith("step 0: the memory of cpu does not hold 13 rows")
    assert len([n for n in asked if n > 4]) == 2 and min(asked) > 1


@pytest.mark.fault(20)
@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_pieces_hold_every_row_once_and_none_is_a_single_row(pieces):
    for rows in range(1, 40):
        found = [list(range(rows))[s] for s in split_slices(rows, pieces)]
        assert list(itertools.chain(*found)) == list(range(rows))
        assert min(map(len, found)) > 1 or rows == 1
        assert len(found) == min(pieces, max(1, rows // 2))


@pytest.mark.fault(20)
def test_memory_that_does_not_hold_two_rows_is_an_error(numbers_source, number_rows, monkeypatch):
    source = numbers_source()
    asked = small_memory(monkeypatch, 1)
    with pytest.raises(torch.OutOfMemoryError):
        fitted(source, number_rows(16), settings())
    assert asked == [8, 4, 2]


def test_l2_with_sgd_is_weight_decay(numbers_source, number_rows):
    rows = number_rows(40)
    chosen = settings(10, optimizer_options={"momentum": 0.9})
    term, _, _ = fitted(numbers_source(), rows, chosen, penalties={"l2": L2(strength=0.02)})
    decay, _, done = fitted(
        numbers_source(), rows, settings(10, optimizer_options={"momentum": 0.9}, weight_decay=0.02)
    )
    assert done.steps == 50
    for key, value in decay.model.state_dict().items():
        torch.testing.assert_close(term.model.state_dict()[key], value, rtol=0, atol=1e-6)
    plain, _, _ = fitted(numbers_source(), rows, chosen)
    assert not torch.allclose(plain.model.head.weight, term.model.head.weight, atol=1e-3)


def test_every_term_is_logged_by_name(numbers_source, number_rows):
    recorder = Recorder()
    penalties = {"l1": L1(strength=1e-3), "l2_sp": L2SP()}
    fitted(numbers_source(), number_rows(16), settings(2), penalties=penalties, monitor=recorder)
    lines = recorder.epochs
    assert [line.epoch for line in lines] == [0, 1, 2]
    assert set(lines[1].terms) == {"task", "l1", "l2_sp"}
    assert lines[1].terms["l1"] > 0 and set(lines[1].rates) == set(BLOCKS)


def test_the_starting_point_competes(numbers_source, number_rows):
    """A rate that destroys everything leaves the starting point as the result."""
    target, before, done = fitted(
        numbers_source(), number_rows(30), settings(3, rate=30.0), val=number_rows(60, seed=1)
    )
    assert done.best_epoch == 0 and not changed(target, before)
    assert done.best == done.start


def test_the_best_epoch_on_val_is_what_the_model_holds(numbers_source, number_rows):
    val = number_rows(60, seed=1)
    recorder = Recorder()
    target, _, done = fitted(numbers_source(), number_rows(60), settings(6, rate=0.5), val=val, monitor=recorder)
    got = outputs(target.model, make_batches(*val, target.source.preprocess, 8), CPU)
    value = float((got.values.argmax(1) == got.targets).float().mean())
    assert value == pytest.approx(done.best["accuracy"]) == max(x.val["accuracy"] for x in recorder.epochs)
    assert done.best_epoch > 0
    assert not any(p.requires_grad for p in target.model.parameters())


def test_patience_counts_from_the_last_thaw(numbers_source, number_rows):
    """Nothing ever improves, so the epochs that run are the thaws plus the patience."""
    val = number_rows(60, seed=1)
    _, _, at_once = fitted(numbers_source(), number_rows(30), settings(12, rate=30.0, patience=2), val=val)
    _, _, gradual = fitted(
        numbers_source(), number_rows(30), settings(12, rate=30.0, patience=2), val=val, freezing=Gradual()
    )
    assert at_once.epochs == 3  # thawed in epoch 1
    assert gradual.epochs == 5  # the last block thaws in epoch 3


@pytest.mark.fault(25)
def test_a_loss_that_is_not_finite_names_step_rows_and_rates(numbers_source, number_rows):
    rows, targets = number_rows(16)
    source = numbers_source()
    with torch.no_grad():
        source.backbone.two[0].weight[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"loss is not finite at step 0 .*rows r0-.*rates"):
        fitted(source, (rows, targets), settings())


@pytest.mark.fault(25)
@pytest.mark.fault(26)
@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_infinite_gradient_stops_too(numbers_source, number_rows, precision, clip_norm):
    """Before the step that it would spoil. No precision has a scale to lower and try again with."""

    class Steep:
        pulls_to_source = shrinks_to_zero = False

        def prepare(self, target, source_data, train):
            from regraft.regularizers import Penalty

            # sqrt has an infinite slope at 0, while its value is 0
            return Penalty(lambda b: (b.params["head.bias"] * 0).sum().sqrt())

    source = numbers_source()
    compute = Compute(precision=precision)
    with pytest.raises(DivergedError, match="gradient is not finite at step 0"):
        fitted(source, number_rows(16), settings(clip_norm=clip_norm), penalties={"s": Steep()}, compute=compute)


@pytest.mark.fault(26)
def test_the_lower_precision_has_the_range_of_float32():
    """So a gradient is infinite there only if it is in float32; float16, which would need a scale, is
    no precision of a plan."""
    widest, lower = torch.finfo(torch.float32), torch.finfo(torch.bfloat16)
    assert lower.max > 0.99 * widest.max and lower.tiny == widest.tiny
    assert torch.finfo(torch.float16).max < 1e5
    base = {"source": {"ref": "timm:a"}, "data": {"path": "b"}}
    with pytest.raises(PlanError, match=r"run\.precision"):
        check({**base, "run": {"precision": "float16"}})


def test_a_seed_repeats_and_another_differs(numbers_source, number_rows):
    rows = number_rows(20)
    a, _, _ = fitted(numbers_source(0.5), rows, settings(), seed=1)
    torch.rand(7)
    b, _, _ = fitted(numbers_source(0.5), rows, settings(), seed=1)
    c, _, _ = fitted(numbers_source(0.5), rows, settings(), seed=2)
    assert torch.equal(a.model.head.weight, b.model.head.weight)
    assert not torch.equal(a.model.head.weight, c.model.head.weight)


def test_a_lower_error_improves_and_a_tie_goes_to_the_lower_loss():
    assert improves({"mae": 1.0, "loss": 9.0}, {"mae": 2.0, "loss": 1.0}, mae)
    assert not improves({"accuracy": 0.5, "loss": 0.1}, {"accuracy": 0.6, "loss": 1.0}, accuracy)
    assert improves({"accuracy": 0.5, "loss": 0.1}, {"accuracy": 0.5, "loss": 0.2}, accuracy)
    assert not improves({"accuracy": 0.5, "loss": 0.2}, {"accuracy": 0.5, "loss": 0.2}, accuracy)


def test_rates_fall_towards_the_input_and_an_override_holds():
    rates = block_rates(
        ["stem", "a.0", "a.1", "head"], lr=1e-3, head_lr=5e-3, layer_decay=0.5, overrides={"a.*": 7e-4, "a.1": 2e-4}
    )
    assert rates == {"stem": pytest.approx(2.5e-4), "a.0": 7e-4, "a.1": 2e-4, "head": 5e-3}


def test_schedules_warm_up_from_a_blocks_own_thaw():
    cosine = RateSchedule("cosine", 10, 0.2)
    at = [cosine.factor(step) for step in range(10)]
    assert at[:3] == [0.5, 1.0, 1.0] and at[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert all(x >= y for x, y in itertools.pairwise(at[2:]))
    assert RateSchedule("constant", 10, 0.4).factor(5, unfrozen=5) == 0.25
