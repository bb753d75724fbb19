"""The schema of result.json: what it reads, what it refuses, and that nothing is lost on the way."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path

import jsonschema
import pytest

from regraft.errors import UsageError
from regraft.io.json_files import dumps, plain
from regraft.runs import records
from regraft.runs import result as result_module
from regraft.runs.result import Calibrated, FittedTemperature, Result, Unfinished, finished, read_ended
from regraft.runs.result_parts import Agreement
from regraft.runs.summary import summary
from result_json import abstention, calibration, estimate, older, parsed, result, seed, sets, slices, source_retention

SCHEMA = Path(__file__).parents[2] / "docs" / "result.schema.json"

FULL = {
    "seeds": [seed(0, 0.5), seed(1, 1.0, scratch={"accuracy": None})],
    "controls": {"scratch": {"accuracy": estimate(0.4)}},
    "gain": {"scratch": estimate(None)},
    "mean": {arm: {"accuracy": {"mean": 0.5, "sd": None}} for arm in ("fit", "α = 1", "scratch")},
    "cross_validation": {
        "folds": 5,
        "fit": {"accuracy": estimate()},
        "linear probe": {"accuracy": estimate()},
        "gain": estimate(),
    },
    "frontier": {
        "alpha": 0.5,
        "retain": 0.9,
        "chosen_by": "val",
        "fixed": False,
        "points": [
            {"alpha": 0.0, "figures": {"accuracy": 0.5, "loss": None}, "source": None},
            {
                "alpha": 0.5,
                "figures": {"accuracy": 0.6, "loss": 1.5},
                "source": {"before": 0.9, "after": 0.9, "ratio": None, "low": None},
            },
        ],
        "seed": 0,
        "test at alpha 1": {"accuracy": estimate()},
        "gain over alpha 1": estimate(),
    },
    "retention": source_retention(
        **{"most forgotten": [{"class": "\udcff", "rows": 12, "before": 1.0, "after": None}], "at alpha 1": [0.5, None]}
    ),
    "calibration": calibration(),
    "sets": sets(),
    "abstention": abstention(error=None),
    "slices": slices(),
    "confusion": {"truth": [0, 1], "predicted": [1, 1], "rows": [3, 4]},
    "resumed": [{"time": "2026-01-01 00:00:00", "changes": [], "done": ["probe"], "environment": []}],
    "scratch": {"budget": "2 epochs", "chosen": "", "steps": [3], "best_epochs": [1]},
    "notes": ["of a later version"],
    "a key of a later version": {"kept": [1]},
}


def written(r: Result) -> str:
    return dumps(plain(r.model_dump()))


@pytest.mark.parametrize("changes", [{}, FULL])
def test_a_result_is_written_as_it_was_read(changes):
    text = dumps(result(**changes))
    assert written(records.checked(Result, json.loads(text))) == text


@pytest.mark.parametrize("changes", [{}, {k: v for k, v in FULL.items() if k != "retention"}])
def test_the_published_schema_accepts_what_is_written(changes):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(written(parsed(**changes))), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(result(rows=7), schema)


def test_the_published_schema_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == Result.model_json_schema()


def test_an_undefined_number_is_null_in_the_file_and_nan_here():
    r = parsed(test={"accuracy": estimate(None), "macro_f1": estimate()})
    assert isnan(r.test["accuracy"].value)
    assert '"accuracy": {"value": null, "low": null, "high": null, "n": 60}' in written(r)


def test_a_run_from_before_has_defaults_for_later_keys():
    r = records.checked(Result, older())
    assert (r.targets, r.summary_metrics, r.seeds[0].alpha) == ("class", ["accuracy", "macro_f1"], 1.0)
    assert "accuracy 0.700 [0.600, 0.800]   macro_f1 0.600" in summary(Path("x"), r)
    numbers = {"mae": estimate(), "r2": estimate()}
    of_numbers = older(task="regression", primary="mae", test=numbers, classes=["y"], seeds=[seed(test={"mae": 1.0})])
    assert records.checked(Result, of_numbers).targets == "numbers"


def test_a_task_of_any_name_states_what_displays_need():
    r = parsed(task="count", targets="numbers", summary_metrics=["macro_f1"])
    assert "accuracy 0.700 [0.600, 0.800]   macro_f1 0.600" in summary(Path("x"), r)
    later = result(task="count")
    del later["targets"]
    assert str(records.problem(Result, later)).startswith("targets: ")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"test": {"accuracy": estimate() | {"value": "0.7"}, "macro_f1": estimate()}}, "test.accuracy.value"),
        ({"test": {"accuracy": estimate() | {"low": 1e300}, "macro_f1": estimate()}}, "test.accuracy.low"),
        ({"seeds": [seed(True)]}, "seeds.0.seed"),
        ({"timing": {"fit": 1.0}}, "timing"),
        ({"schema": 2}, "schema"),
        ({"sets": sets(least_probability=1.5)}, "sets.least_probability"),
        ({"sets": sets(temperature=None)}, "sets: temperature and least_probability go together"),
        ({"abstention": abstention(temperature=None)}, "abstention: threshold needs a temperature"),
        ({"sets": sets(half_widths=[1.0])}, "sets: sets are of classes or of numbers"),
        ({"retention": {"kind": "other"}}, "retention"),
        ({"slices": slices(primary="macro_f1")}, 'slices.primary is not "accuracy"'),
        ({"slices": slices(columns=[])}, "slices.columns"),
        ({"confusion": [[1]]}, "the confusion is no matrix of 2 classes"),
        ({"gain": {}, "controls": {"scratch": {"accuracy": estimate()}}}, 'gain has no "scratch"'),
        ({"verdict": {"words": "transfer helps", "gain": None, "seeds": 3, "why": ""}}, "verdict.gain is missing"),
    ],
)
def test_a_value_that_does_not_validate_names_its_field(changes, field):
    assert str(records.problem(Result, result(**changes))).startswith(field)


def test_the_reader_reports_the_file_and_the_field(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result(rows=7)))
    for read in (finished, read_ended):
        with pytest.raises(UsageError, match=r"result\.json is damaged, .* rows: "):
            read(tmp_path)


def test_a_fault_of_regraft_is_not_called_damage(tmp_path, monkeypatch):
    def faulty(*args):
        raise KeyError("a key of our own")

    (tmp_path / "result.json").write_text(json.dumps(result(**FULL)))
    monkeypatch.setattr(result_module, "rows_of", faulty)
    for read in (finished, read_ended):
        with pytest.raises(KeyError):
            read(tmp_path)


def test_a_run_that_failed_has_its_error_and_its_temperature(tmp_path):
    assert read_ended(tmp_path) is None
    (tmp_path / "result.json").write_text('{"schema": 1, "status": "failed", "error": "no luck"}')
    assert read_ended(tmp_path) == Unfinished(status="failed", error="no luck")
    found = records.checked(Calibrated, {"status": "failed", "calibration": {"temperature": 2.0}})
    assert found.calibration and found.calibration.temperature == 2.0 and not found.calibration.refusal


@pytest.mark.parametrize(("high", "refused"), [(-0.01, True), (0.0, False), (None, False)])
def test_a_temperature_is_refused_where_test_shows_its_harm(high, refused):
    gain = {"value": -0.2, "low": -0.3, "high": high, "n": 40}
    found = records.checked(FittedTemperature, {"temperature": 0.3, "gain": {"ece": gain, "log_loss": gain}})
    assert bool(found.refusal) == refused
    assert not refused or ("0.30" in found.refusal and "0.200 [0.010, 0.300]" in found.refusal)


def test_a_proxy_of_retention_is_of_its_kind():
    r = parsed(retention={"kind": "agreement on target inputs", "agreement": estimate(0.7)})
    assert isinstance(r.retention, Agreement) and r.retention.agreement.value == 0.7
