from pathlib import Path

from regraft.runs.summary import summary
from result_json import abstention, calibration, estimate, parsed, seed, sets, source_retention


def shown(**changes):
    """Return the summary of three seeds with scratch."""
    three = {
        "rows": {"train": 9, "val": 5, "test": 50},
        "test": {"accuracy": estimate(0.8, 50), "macro_f1": estimate(0.7, 50)},
        "seeds": [seed(s) for s in range(3)],
        "controls": {"majority": {"accuracy": estimate(0.2)}, "scratch": {"accuracy": estimate(0.71)}},
        "gain": {"majority": estimate(0.6), "scratch": estimate(0.3)},
        "mean": {"fit": {"accuracy": {"mean": 0.81, "sd": 0.01}}, "scratch": {"accuracy": {"mean": 0.51, "sd": 0.02}}},
        "verdict": {"words": "transfer helps", "gain": estimate(0.3), "seeds": 3, "why": "because"},
        "test_opened": 2,
    }
    return summary(Path("runs/x"), parsed(**(three | changes)))


def test_scratch_is_shown_as_the_mean_that_its_gain_is_over():
    text = shown()
    assert "over scratch 0.510   +0.300 [+0.200, +0.400]   over 3 seeds" in text
    assert "0.710" not in text
    how = "rate 0.003 alone, chosen by val"
    assert f"over 3 seeds   {how}\n" in shown(scratch={"budget": "2 epochs", "chosen": how, "steps": [10]})


def test_a_verdict_needs_scratch_and_counts_openings_of_test():
    said = shown()
    assert "transfer helps: +0.300 [+0.200, +0.400] over training from scratch" in said
    assert "test opened 2 times" in said
    without = shown(controls={"majority": {"accuracy": estimate(0.2)}})
    assert "TRANSFER not measured (--controls scratch --seeds 3); test opened 2 times" in without


def test_the_frontier_names_the_chosen_points_and_their_gain():
    seeds = [seed(s, a) for s, a in enumerate((0.7, 0.5, 0.7))]
    front = {"alpha": 0.7, "chosen_by": "val", "points": [], "gain over alpha 1": estimate(0.1)}
    said = shown(seeds=seeds, frontier=front)
    assert "FRONTIER α = 0.5 to 0.7" in said
    assert "chosen by val   +0.100 [+0.000, +0.200] over α = 1   over 3 seeds" in said
    assert "FRONTIER" not in shown()
    fixed = shown(seeds=[seed(s, 1.0) for s in range(3)], frontier=front | {"alpha": 1.0, "fixed": True})
    assert "α = 1 (0 the start, 1 the fit), set by fit.alpha" in fixed and "no point between" not in fixed


def test_a_proxy_of_retention_is_named_as_one():
    kept = {"kind": "agreement on target inputs", "agreement": estimate(0.7)}
    said = shown(retention=kept)
    assert "same class to 0.700 [0.600, 0.800] of test rows (a proxy: no source data)" in said
    kept = {"kind": "features on target inputs", "cka": 0.91}
    assert "CKA 0.910 (a proxy" in shown(retention=kept)


def test_forgetting_over_seeds_is_what_is_claimed():
    kept = source_retention(
        before=estimate(0.9, 250), after=estimate(0.85), ratio=0.94, forgetting=estimate(0.05), claim=True
    ) | {"forgetting over seeds": estimate(0.06)}
    said = shown(retention=kept)
    assert "SOURCE   accuracy 0.900 before, 0.850 after, 94.0% kept" in said
    assert "forgetting +0.060 [-0.040, +0.160] over 3 seeds   n = 250 source rows\n" in said
    few = kept | {"claim": False, "forgetting over seeds": None, "ratio": None}
    said = shown(retention=few)
    assert "0.850 after   forgetting +0.050 [-0.050, +0.150]   n = 250" in said
    assert "under 200 rows: no claim" in said


def test_calibration_is_shown_beside_the_temperature():
    found = calibration(
        before={"ece": estimate(0.3), "log_loss": estimate()}, after={"ece": estimate(0.2), "log_loss": estimate()}
    )
    said = shown(calibration=found)
    assert "calibration error 0.300; logits divided by 1.50, as fits val (--calibrated), 0.200" in said
    expected = {"if calibrated": {"before": estimate(0.1, half=0.05), "after": estimate(0.1)}}
    said = shown(calibration=found | expected)
    assert "calibration error 0.300 (a calibrated model would show 0.100, at most 0.150); logits" in said


def test_a_temperature_that_did_harm_is_not_offered():
    worse = {"ece": estimate(), "log_loss": estimate(-0.5, half=0.2)}
    said = shown(calibration=calibration(gain=worse))
    assert "made the log loss on test worse: -0.500 [-0.700, -0.300]" in said and "--calibrated" not in said


def test_sets_are_shown_with_their_law_and_their_figures_on_test():
    line = "90 % sets from 30 val rows, to cover 82 to 98 % of new rows; on test 0.900 [0.850, 0.950], 1.250 "
    assert f"{line}[1.150, 1.350] classes a set\n" in shown(sets=sets())
    assert "classes a set, 5.0 % empty\n" in shown(sets=sets(empty=estimate(0.05)))
    over_folds = shown(sets=sets(by="cross-validation"))
    assert "from 30 out-of-fold rows, to cover 82 to 98 % of new rows (approximate)" in over_folds
    of_numbers = sets(temperature=None, least_probability=None, half_widths=[2.5, 0.123456], size=None, empty=None)
    assert "90 % intervals from 30 val rows" in shown(sets=of_numbers)
    assert "on test 0.900 [0.850, 0.950], ± 2.5, 0.1235\n" in shown(sets=of_numbers)
    few = sets(rows=6, temperature=None, least_probability=None, law=None, test=None, size=None, empty=None)
    assert "no 90 % sets: they need 9 held-out rows, and there are 6" in shown(sets=few)


def test_accepted_rows_are_shown_with_their_proof_and_their_error_on_test():
    line = "error of at most 5 % above confidence 0.875, by 1 errors in 93 val rows; on test 0.500 [0.400, 0.600] "
    assert f"{line}accepted, error 0.100 [0.000, 0.200]\n" in shown(abstention=abstention())
    assert "out-of-fold rows (approximate); on test" in shown(abstention=abstention(by="cross-validation"))
    assert "93 val rows (approximate); on test" in shown(abstention=abstention(grouped=True))
    none = abstention(threshold=None, accepted=None, error=None, why="59 accepted rows would, and there are 40 rows")
    assert "no threshold for an error of 5 %: 59 accepted rows would, and there are 40 rows" in shown(abstention=none)


def test_folds_are_shown_for_the_fit_and_the_probe():
    found = {
        "folds": 5,
        "fit": {"accuracy": estimate(0.8, 50)},
        "gain": estimate(0.1),
        "linear probe": {"accuracy": estimate(0.7)},
    }
    said = shown(cross_validation=found)
    assert "5 folds of train, n = 50   α = 1 0.800 [0.700, 0.900], linear probe 0.700" in said


def test_two_seeds_say_nothing_about_the_method():
    said = shown(seeds=[seed(0), seed(1)])
    assert "over scratch 0.510   +0.300 [+0.200, +0.400]   paired, about these 2 seeds only" in said


def test_a_figure_that_is_not_defined_is_a_dash():
    none = {"value": None, "low": None, "high": None, "n": 50}
    mean = {"fit": {"accuracy": {"mean": None, "sd": None}}}
    controls = {"linear probe": {"accuracy": none}}
    changes = {"gain": {"linear probe": none}, "controls": controls, "mean": mean}
    said = shown(test={"accuracy": none, "macro_f1": estimate(0.7) | {"low": None}}, **changes)
    assert "accuracy –   macro_f1 0.700 [no interval]" in said and "over linear probe –   –   paired" in said
    assert "accuracy – (sd –)" in said
