"""What can go wrong with the process around a fit: memory, loader processes, rows of a batch, threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch

from builders import CPU, make_batches
from regraft.data import readers as module
from regraft.data.preprocessing import build
from regraft.data.types import CallableSpec, Example
from regraft.errors import PlanError, RegraftError, UsageError
from regraft.model.forward import outputs
from regraft.plan.read import check

BASE = {"source": {"ref": "timm:resnet18"}, "data": {"path": "flowers"}}


def kill_at_five(inputs):
    if inputs[0] == "5":
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor([float(inputs[0])])


def number(inputs):
    return torch.tensor([float(inputs[0])])


def hang_at_five(inputs):
    if inputs[0] == "5":
        signal.pause()
    return torch.tensor([float(inputs[0])])


def slow_at_five(inputs):
    if inputs[0] == "5":
        time.sleep(3 * module.WORKER_CHECK_S)
    return torch.tensor([float(inputs[0])])


def rows_of(one):
    rows = [Example(f"r{i}", (str(i),), (), f"row {i}") for i in range(8)]
    return make_batches(rows, torch.zeros(8), build(CallableSpec(one)), 2, workers=1)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "WORKER_CHECK_S", 0.5)


@pytest.mark.fault(21)
def test_a_loader_process_that_is_killed_names_the_rows():
    with pytest.raises(RegraftError, match=r"was killed; these rows .*: row .*--resume"):
        list(rows_of(kill_at_five))


@pytest.mark.fault(21)
def test_a_worker_killed_while_nobody_asks_names_its_rows_later():
    """Not the step that happens to run then."""
    rows = iter(rows_of(kill_at_five))
    next(rows)
    (child,) = multiprocessing.active_children()
    while child.exitcode is None:  # torch's answer to SIGCHLD would be raised here
        time.sleep(0.01)
    with pytest.raises(RegraftError, match=r"was killed; these rows .*: row .*--resume"):
        list(rows)


@pytest.mark.fault(21)
def test_a_worker_killed_between_two_passes_is_started_anew():
    rows = rows_of(number)
    first = [x for _, inputs, _ in rows for x in inputs.flatten().tolist()]
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert [x for _, inputs, _ in rows for x in inputs.flatten().tolist()] == first
    (other,) = multiprocessing.active_children()
    assert other.pid != child.pid


def test_an_error_of_a_transform_in_a_worker_is_no_kill():
    for error in (RuntimeError("no such luck"), ConnectionResetError("no such luck")):

        def throw(inputs, error=error):
            raise error

        with pytest.raises(type(error), match="no such luck"):
            list(rows_of(throw))


@pytest.mark.fault(22)
def test_a_loader_process_that_hangs_names_the_rows(monkeypatch):
    monkeypatch.setattr(module, "WORKER_TIMEOUT_S", 2)
    with pytest.raises(RegraftError, match=r"hangs; these rows .*: row 4, row 5"):
        list(rows_of(hang_at_five))


def test_a_loader_process_that_is_slow_is_waited_for():
    rows = [x for _, inputs, _ in rows_of(slow_at_five) for x in inputs.flatten().tolist()]
    assert rows == [float(i) for i in range(8)]


@pytest.mark.fault(23)
@pytest.mark.filterwarnings("ignore:Got pickle error")  # torch says it beside
def test_a_transform_that_cannot_be_sent_to_workers_is_refused():
    """As on systems where these begin anew and do not fork."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with pytest.raises(UsageError, match=r"cannot be sent your transform .*--workers 0"):
            list(rows_of(lambda inputs: torch.tensor([float(inputs[0])])))
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.fault(23)
def test_forked_workers_read_what_the_main_process_reads():
    """After torch has threads: a lock that one of them held would hang in a child."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(400, 400) @ torch.randn(400, 400)
        double = rows_of(lambda inputs: torch.ones(300, 300).mm(torch.ones(300, 1))[0] * int(inputs[0]))
        got = torch.cat([x for _, x, _ in double])
    finally:
        torch.set_num_threads(before)
    assert got.flatten().tolist() == [300.0 * i for i in range(8)]


@pytest.mark.fault(10)
def test_a_loader_process_leaves_an_interrupt_to_its_parent():
    def interrupt(inputs):
        os.kill(os.getpid(), signal.SIGINT)
        return torch.tensor([float(inputs[0])])

    got = torch.cat([x for _, x, _ in rows_of(interrupt)])
    assert got.flatten().tolist() == list(map(float, range(8)))


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
    ids=["python", "torch", "accelerator"],
)
def test_too_little_memory_suggests_a_smaller_batch(numbers_source, tmp_path, monkeypatch, error):
    import regraft
    from regraft.training.objective import Objective

    table = tmp_path / "t.csv"
    lines = [f"{i} {i % 7} {i % 3} 1,{'abc'[i % 3]}" for i in range(60)]
    table.write_text("text,label\n" + "\n".join(lines) + "\n")

    def fail(self, *args):
        raise error

    monkeypatch.setattr(Objective, "step", fail)
    settings = {"fit.batch_size": 8, "run.threads": 1, "run.workers": 0}
    with pytest.raises(RegraftError, match=r"memory .*--batch-size 4 --set fit.accumulate=2"):
        regraft.fit(table, source=numbers_source(), out=tmp_path / "run", settings=settings)


@pytest.mark.fault(21)
def test_a_loader_process_that_is_killed_during_a_step_is_said(numbers_source, tmp_path, monkeypatch):
    import regraft
    from regraft.training.objective import Objective

    table = tmp_path / "t.csv"
    lines = [f"{i} {i % 7} {i % 3} 1,{'abc'[i % 3]}" for i in range(60)]
    table.write_text("text,label\n" + "\n".join(lines) + "\n")

    def fail(self, *args):  # from torch's handler of SIGCHLD
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(Objective, "step", fail)
    with pytest.raises(RegraftError, match=r"killed .*--resume .*--workers 0"):
        regraft.fit(table, source=numbers_source(), out=tmp_path / "run", settings={"run.threads": 1})


@pytest.mark.fault(29)
def test_batches_of_one_row_are_refused_where_batch_norm_trains(numbers_source, tmp_path):
    import regraft

    table = tmp_path / "t.csv"
    lines = [f"{i} {i % 7} {i % 3} 1,{'abc'[i % 3]}" for i in range(60)]
    table.write_text("text,label\n" + "\n".join(lines) + "\n")
    settings = {"fit.batch_size": 1, "fit.batch_norm": "train", "fit.epochs": 1, "run.threads": 1}
    with pytest.raises(PlanError, match=r"batch norm .*one row"):
        regraft.fit(table, source=numbers_source(), out=tmp_path / "a", settings=settings)
    run = regraft.fit(
        table, source=numbers_source(), out=tmp_path / "b", settings=settings | {"fit.batch_norm": "frozen"}
    )
    assert run.result.fit.epochs == 1


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0), ("lr", -1.0), ("epochs", 0), ("batch_size", 0), ("accumulate", 0)]
)
def test_settings_that_mean_nothing_are_refused(key, value):
    with pytest.raises(PlanError, match=f"fit.{key}"):
        check({**BASE, "fit": {key: value}})


@pytest.mark.fault(28)
def test_a_batch_may_be_larger_than_the_data(numbers_source, number_rows):
    rows = number_rows(5)
    (batch,) = make_batches(*rows, build(numbers_source().preprocess), 64).epoch(1)
    assert len(batch[0]) == 5


@pytest.mark.fault(31)
def test_another_number_of_threads_is_within_rounding(numbers_source, number_rows):
    source = numbers_source()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows = make_batches(*number_rows(64), build(source.preprocess), 64)
            found.append(outputs(source.backbone, rows, CPU).values)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["10", "10 hours", "min", "-1 min", "0.5.5 min", ""])
def test_how_often_to_save_is_steps_or_minutes(text):
    with pytest.raises(PlanError, match=r"run\.checkpoint_every"):
        check({**BASE, "run": {"checkpoint_every": text}})
    assert check(BASE).run.checkpoint_interval == (0, 600)
    assert check({**BASE, "run": {"checkpoint_every": 7}}).run.checkpoint_interval == (7, 0)
    half = check({**BASE, "run": {"checkpoint_every": "0.5 min"}})
    assert half.run.checkpoint_interval == (0, 30)
