"""TensorBoard and MLflow: what their own readers find is what the run files say."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pytest

from regraft import plugins
from regraft.errors import UsageError
from regraft.io import locks
from regraft.watching.tracking import epochs, track
from result_json import result, seed


def estimate(value, low, high):
    return {"value": value, "low": low, "high": high, "n": 60}


SOURCE = result()["source"] | {"name": "/home/jane/secret/base"}

RESULT = result(
    test={"accuracy": estimate(0.7, 0.6, 0.8), "macro_f1": estimate(0.65, None, None)},
    controls={"scratch": {"accuracy": estimate(0.4, 0.3, 0.5)}},
    gain={"scratch": estimate(0.3, 0.1, 0.5)},
    test_opened=2,
    verdict={"words": "transfer helps", "gain": estimate(0.3, 0.1, 0.5), "seeds": 2, "why": "by far"},
    seeds=[seed(3), seed(4)],
    source=SOURCE,
    timing={"total": 4.5},
)


def line(seed, n):
    return {
        "seed": seed,
        "epoch": n,
        "step": 5 * n,
        "terms": {"task": 1.5 / n, "l2_sp": 0.1} if n else {},
        "rates": {"stem": 1e-5, "head": 1e-3} if n else {},
        "best": True,
        "val": {"accuracy": 0.5 + n / 10 + seed / 100, "loss": None},
        "source": {"accuracy": 0.9} if n else {},
    }


@pytest.fixture
def run(tmp_path):
    """A finished run of two seeds."""
    run = tmp_path / "flowers"
    run.mkdir()
    plan = '[data]\npath = "/home/jane/secret/flowers"\ntext = []\n[fit]\nepochs = 2\n'
    plan += "[regularizers.l2_sp]\nalpha = 0.1\n"
    (run / "plan.toml").write_text(plan)
    lines = [json.dumps(line(seed, n)) + "\n" for seed in (3, 4) for n in range(3)]
    (run / "history.jsonl").write_text("".join(lines))
    (run / "result.json").write_text(json.dumps(RESULT))
    names = ("python", "device", "device_name", "test_digest")
    environment = dict.fromkeys(names, "") | {"regraft": "0.1.0", "data_digest": "d" * 64, "versions": {}, "threads": 1}
    (run / "environment.json").write_text(json.dumps(environment))
    return run


@pytest.fixture
def mlflow_env(monkeypatch):
    """What the writer sets is put back."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")


EXPECTED = {
    "test/accuracy": 0.7,
    "test/accuracy low": 0.6,
    "test/accuracy high": 0.8,
    "test/macro_f1": 0.65,
    "gain/scratch": 0.3,
    "gain/scratch low": 0.1,
    "gain/scratch high": 0.5,
    "control/scratch": 0.4,
    "control/scratch low": 0.3,
    "control/scratch high": 0.5,
    "verdict/gain over scratch": 0.3,
    "verdict/gain over scratch low": 0.1,
    "verdict/gain over scratch high": 0.5,
    "seconds/total": 4.5,
}


def test_tensorboard_reads_every_curve_and_the_evidence(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = track(run, "tensorboard")
    assert f"tensorboard --logdir {run / 'tensorboard'}" in said

    def part(name):
        found = EventAccumulator(str(run / "tensorboard" / name))
        found.Reload()
        return found

    for number in (3, 4):
        read = part(f"seed-{number}")
        expected = {"val/accuracy", "loss/task", "loss/l2_sp", "source/accuracy", "rate/stem", "rate/head"}
        assert set(read.Tags()["scalars"]) == expected  # and no val/loss, which was not finite
        found = [(s.step, s.value) for s in read.Scalars("val/accuracy")]
        assert [step for step, _ in found] == [0, 1, 2]
        assert [value for _, value in found] == pytest.approx([x + number / 100 for x in (0.5, 0.6, 0.7)])
        assert [(s.step, s.value) for s in read.Scalars("loss/task")] == [(1, 1.5), (2, 0.75)]
    end = part("end")
    assert {k: end.Scalars(k)[0].value for k in end.Tags()["scalars"]} == pytest.approx(EXPECTED)
    texts = {k: end.Tensors(k)[0].tensor_proto.string_val[0].decode() for k in end.Tags()["tensors"]}
    assert "transfer helps: +0.300 [+0.100, +0.500]" in texts["summary/text_summary"]
    assert "verdict: transfer helps" in texts["tags/text_summary"]
    assert "    fit.epochs = 2" in texts["plan/text_summary"]
    assert not any("secret" in text for text in texts.values())


def test_tensorboard_overwrites_in_the_run_alone(run, tmp_path):
    track(run, "tensorboard")
    before = sorted(p.name for p in (run / "tensorboard").iterdir())
    track(run, "tensorboard")
    assert sorted(p.name for p in (run / "tensorboard").iterdir()) == before
    assert len(list((run / "tensorboard" / "seed-3").iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(UsageError, match=r"mine exists and is not written over.*--out"):
        track(run, "tensorboard", str(tmp_path / "mine"))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes"]


def test_mlflow_reads_every_curve_the_plan_and_the_evidence(run, tmp_path, mlflow_env):
    from mlflow.tracking import MlflowClient

    said = track(run, "mlflow", str(tmp_path / "store"))
    assert "MLFLOW_ALLOW_FILE_STORE=true mlflow ui" in said
    client = MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    experiment = client.get_experiment_by_name("regraft").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.run_name == "flowers" and found.info.status == "FINISHED"
    assert found.info.run_id in said
    assert found.data.params == {
        "data.path": "…/flowers",
        "data.text": "[]",
        "fit.epochs": "2",
        "regularizers.l2_sp.alpha": "0.1",
    }
    curves = ("val/accuracy", "loss/task", "loss/l2_sp", "source/accuracy", "rate/stem", "rate/head")
    names = {name for c in curves for name in (c, f"seed 4/{c}")}
    assert set(found.data.metrics) == names | set(EXPECTED)
    assert {k: found.data.metrics[k] for k in EXPECTED} == pytest.approx(EXPECTED)
    for name, number in (("val/accuracy", 3), ("seed 4/val/accuracy", 4)):
        points = {m.step: m.value for m in client.get_metric_history(found.info.run_id, name)}
        assert points == pytest.approx({n: 0.5 + n / 10 + number / 100 for n in range(3)})
    tags = found.data.tags
    assert tags["verdict"] == "transfer helps" and tags["test opened"] == "2"
    assert tags["source"] == "…/base" and tags["data_digest"] == "d" * 64
    assert "VERDICT  transfer helps" in tags["mlflow.note.content"]
    files = {f.path for f in client.list_artifacts(found.info.run_id)}
    assert files == {"plan.toml", "environment.json", "result.json"}


def test_mlflow_says_of_a_run_that_was_killed_that_it_was(run, tmp_path, mlflow_env):
    from mlflow.tracking import MlflowClient

    (run / "result.json").unlink()
    (run / "lock").write_text(json.dumps(asdict(locks.myself(False)) | {"pid": 2**22 + 1}))
    track(run, "mlflow", str(tmp_path / "store"))
    client = MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("regraft").experiment_id])
    assert found.info.status == "KILLED" and found.data.tags["state"] == "killed"


def test_a_database_without_its_package_is_one_sentence(run, tmp_path, mlflow_env, monkeypatch):
    from regraft.trackers import mlflow

    monkeypatch.setattr(mlflow, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install sqlalchemy"):
        track(run, "mlflow", f"sqlite:///{tmp_path}/x.db")
    assert not (tmp_path / "x.db").exists()


def test_a_running_run_is_followed_and_each_epoch_is_sent_once(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").write_text(json.dumps(asdict(locks.myself(False))))
    path = run / "history.jsonl"
    whole = [json.dumps(line(0, n)) + "\n" for n in range(4)]
    path.write_text("".join(whole[:2]) + whole[2][:30])
    coming = epochs(run, 0.01)
    assert [next(coming).epoch for _ in range(2)] == [0, 1]
    path.write_text("".join(whole[:3]))
    third = next(coming)
    assert (third.epoch, third.figures["loss/task"]) == (2, 0.75)
    path.write_text("".join(whole[:1]))  # killed and resumed: epochs 1 and 2 are trained again
    path.write_text("".join(whole))
    (run / "result.json").write_text(json.dumps(RESULT))
    assert [e.epoch for e in coming] == [3]


def test_what_cannot_be_tracked_is_said(run, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r'trackers has no "tensorbord"; did you mean "tensorboard"'):
        track(run, "tensorbord")
    with pytest.raises(UsageError, match="is no run folder"):
        track(tmp_path / "none", "tensorboard")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_text("")
    with pytest.raises(UsageError, match="is no run folder"):
        track(tmp_path / "photos", "tensorboard")
    (run / "result.json").write_text('{"status": "finished", "test": {}}')
    with pytest.raises(UsageError, match=r"result\.json is damaged.* task: Field required"):
        track(run, "tensorboard")
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'mlflow, not installed here: pip install "regraft\[track\]"'):
        track(run, "mlflow")


def test_the_command_line_says_where_it_is(run, tmp_path, monkeypatch, capsys):
    from regraft.cli import app as cli

    arguments = ["regraft", "track", str(run), "--to", "tensorboard", "--out", str(tmp_path / "tb")]
    monkeypatch.setattr(sys, "argv", arguments)
    cli.app(args=arguments[1:], standalone_mode=False)
    assert f"tensorboard --logdir {tmp_path / 'tb'}" in capsys.readouterr().out
