import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_info, threadpool_limits

from regraft.evidence.linear_probe import (
    choose_rows,
    find_blas,
    fit_probe,
    fit_soft_probe,
    folds_of,
    mean_loss,
    solve_path,
)
from regraft.model.forward import Outputs
from regraft.tasks.classification import Classification
from regraft.tasks.multilabel import MultiLabel
from regraft.tasks.regression import Regression


def rows(n=120, d=7, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.5, 20, d) + rng.normal(size=d) * 5
    y = (x @ rng.normal(size=(d, classes)) / 20 + rng.normal(size=(n, classes))).argmax(1)
    return x, y


def outputs(x, y):
    return Outputs(tuple(map(str, range(len(x)))), torch.from_numpy(x), torch.as_tensor(y))


CLASSES = Classification().make([(str(c),) for c in range(3)], ("label",))


@pytest.mark.parametrize("strength", [1e-3, 0.1, 3.0])
def test_it_is_scikit_learns_logistic_regression(strength):
    x, y = rows()
    z = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=1 / (len(x) * strength), tol=1e-10, max_iter=10_000).fit(z, y)
    ((weight, bias),) = solve_path(outputs(x, y), CLASSES, [strength])
    ours = (torch.from_numpy(x) @ weight.T + bias).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(z), atol=2e-3)


def test_for_numbers_it_is_ridge():
    x, _ = rows()
    y = x @ np.linspace(-1, 1, 7) + np.random.default_rng(1).normal(size=len(x))
    task = Regression().make([(str(v),) for v in y], ("y",))
    targets = task.encode([(str(v),) for v in y])
    z = (x - x.mean(0)) / x.std(0)
    ((weight, bias),) = solve_path(outputs(x, targets), task, [0.05])
    # mean squared error + λ/2·‖w‖² is ridge with alpha = N·λ/2
    theirs = Ridge(alpha=len(x) * 0.05 / 2).fit(z, targets[:, 0].numpy())
    ours = (torch.from_numpy(x) @ weight.T + bias)[:, 0].numpy()
    np.testing.assert_allclose(ours, theirs.predict(z), atol=1e-3)


def test_many_labels_are_one_logistic_regression_each():
    x, y = rows()
    hot = np.eye(3)[y]
    hot[:, 0] = x[:, 1] > x[:, 1].mean()
    task = MultiLabel().make([("a;b;c",)], ("label",))
    ((weight, bias),) = solve_path(outputs(x, hot.astype(np.float32)), task, [0.01])
    z = (x - x.mean(0)) / x.std(0)
    ours = (torch.from_numpy(x) @ weight.T + bias).sigmoid().numpy()
    for k in range(3):  # the loss is the mean over three labels
        theirs = LogisticRegression(C=1 / (len(x) * 0.03), tol=1e-10, max_iter=9_999)
        np.testing.assert_allclose(ours[:, k], theirs.fit(z, hot[:, k]).predict_proba(z)[:, 1], atol=2e-3)


def test_the_strength_is_the_best_on_val_and_val_alone_decides():
    train, val = outputs(*rows(60)), outputs(*rows(200, seed=0))
    probe = fit_probe(train, CLASSES, [1e-4, 1e-2, 1.0], val=val)
    assert probe.chosen_by == "val" and set(probe.losses) == {1e-4, 1e-2, 1.0}
    assert probe.strength == min(probe.losses, key=probe.losses.get)
    shuffled = Outputs(val.ids, val.values, val.targets.flip(0))
    assert fit_probe(train, CLASSES, [1e-4, 1e-2, 1.0], val=shuffled).strength == 1.0


def test_without_val_folds_decide_and_without_folds_the_middle():
    train = outputs(*rows(30))
    folds = folds_of([str(int(t)) for t in train.targets], [None] * 30, 5)
    by_folds = fit_probe(train, CLASSES, [1e-3, 0.1, 10.0], folds=folds)
    assert "cross-validation" in by_folds.chosen_by and by_folds.losses
    alone = fit_probe(train, CLASSES, [1e-3, 0.1, 10.0])
    assert alone.strength == 0.1 and not alone.losses


def test_constant_features_and_more_than_rows_are_no_trouble():
    x, y = rows(12, 40)
    x[:, 3] = 7.0
    probe = fit_probe(outputs(x, y), CLASSES, [0.01])
    logits = probe.logits(torch.from_numpy(x).float())
    assert torch.isfinite(logits).all() and (logits.argmax(1).numpy() == y).mean() > 0.9


def test_the_head_takes_raw_features():
    x, y = rows()
    probe = fit_probe(outputs(x, y), CLASSES, [0.1])
    head = torch.nn.Linear(7, 3)
    probe.write_to(head)
    raw = torch.from_numpy(x).float()
    torch.testing.assert_close(head(raw), probe.logits(raw))


def test_folds_keep_groups_whole_and_judge_each_row_once():
    strata = ["a", "b"] * 15
    groups = [f"g{i // 3}" for i in range(30)]
    found = folds_of(strata, groups, 5)
    judged = sorted(i for _, judge in found for i in judge)
    assert judged == list(range(30))
    for fit, judge in found:
        assert not {groups[i] for i in fit} & {groups[i] for i in judge}
    assert folds_of(["a", "a", "b"], [None] * 3, 5) == []


def test_the_path_ends_when_weaker_strengths_only_get_worse():
    train, val = outputs(*rows(40, 60)), outputs(*rows(400, 60, seed=1))
    strengths = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
    probe = fit_probe(train, CLASSES, strengths, val=val)
    assert len(probe.losses) < len(strengths)
    heads = solve_path(train, CLASSES, sorted(strengths, reverse=True))
    everything = [mean_loss(head, val, CLASSES) for head in heads]
    assert min(everything) == pytest.approx(probe.losses[probe.strength], rel=1e-3)


def test_features_that_are_not_held_at_once_give_the_same_probe(monkeypatch):
    x, y = rows()
    x[:, 3] = 5.0  # constant
    whole = fit_probe(outputs(x, y), CLASSES, [1e-3, 0.1, 3.0], val=outputs(*rows(seed=1)))
    monkeypatch.setattr("regraft.evidence.linear_probe.PIECE_BYTES", 8 * 7 * 11)  # eleven rows
    pieces = fit_probe(outputs(x, y), CLASSES, [1e-3, 0.1, 3.0], val=outputs(*rows(seed=1)))
    assert pieces.strength == whole.strength
    for strength, loss in whole.losses.items():
        assert pieces.losses[strength] == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(pieces.weight, whole.weight, rtol=1e-2, atol=1e-3)


def test_scipys_own_threads_do_not_wait_beside_torchs(monkeypatch):
    def threads():
        return [x["num_threads"] for x in threadpool_info() if x["internal_api"] == "openblas"]

    found = []

    def watched(*given, **options):
        found.append(threads())
        return minimize(*given, **options)

    monkeypatch.setattr("regraft.evidence.linear_probe.minimize", watched)
    find_blas.cache_clear()
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        list(solve_path(outputs(*rows()), CLASSES, [0.1]))
        assert threads() == before
    assert found == [[1] * len(before)]


def test_a_part_of_train_has_each_class_by_its_share():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [900, 285, 15])
    ids = tuple(f"{i:04d}" for i in rng.permutation(1_200))
    train = Outputs(ids, torch.zeros(1_200, 2), torch.from_numpy(y))
    rows = choose_rows(train, 400)
    counts = np.bincount(y[rows])
    assert counts.sum() == 400 and counts[2] == 5 and abs(counts[0] - 3 * counts[1]) < 40
    turned = train.take(range(1_199, -1, -1))
    same = {turned.ids[i] for i in choose_rows(turned, 400)}
    assert same == {ids[i] for i in rows}
    for k in range(3):  # of each class the first by id
        own = sorted(i for i, label in zip(ids, y, strict=True) if label == k)
        assert same.issuperset(own[: counts[k]])


def test_more_rows_than_the_work_allows_are_a_part_with_a_note(monkeypatch):
    train, val = outputs(*rows(200)), outputs(*rows(100, seed=1))
    whole = fit_probe(train, CLASSES, [0.1], val=val)
    assert (whole.rows, whole.of, whole.note) == (200, 200, "")
    monkeypatch.setattr("regraft.evidence.linear_probe.MAX_WORK", 50 * 7 * 3)
    part = fit_probe(train, CLASSES, [0.1], val=val)
    assert (part.rows, part.of) == (50, 200)
    assert "50 of 200 training rows" in part.note and "probe.rows" in part.note
    folds = folds_of(["x"] * 200, [None] * 200, 2)
    alone = fit_probe(train, CLASSES, [0.1], folds=folds)  # without val nothing says what is better
    assert alone.rows == 25 and alone.passes == 0 and "better" in alone.note
    assert fit_probe(train, CLASSES, [0.1], val=val, most=200).rows == 200


def test_folds_of_a_part_of_train_are_its_own():
    train = outputs(*rows(200))
    ids = tuple(f"{i:03d}" for i in np.random.default_rng(0).permutation(200))
    train = Outputs(ids, train.values, train.targets)
    folds = folds_of([str(int(t)) for t in train.targets], [None] * 200, 2)
    part = choose_rows(train, 60)
    found = fit_probe(train, CLASSES, [0.3, 3.0], folds=folds, most=60)
    place = {row: i for i, row in enumerate(part)}
    inside = [tuple([place[i] for i in half if i in place] for half in fold) for fold in folds]
    expected = fit_probe(train.take(part), CLASSES, [0.3, 3.0], folds=inside)
    assert found.losses == expected.losses and found.rows == 60
    assert "2-fold" in found.chosen_by


def test_passes_over_all_rows_come_near_to_the_fit_of_all(monkeypatch):
    every = outputs(*rows(4_000))
    train, val = every.take(range(3_000)), every.take(range(3_000, 4_000))
    whole = fit_probe(train, CLASSES, [1e-2], val=val)
    start = fit_probe(train.take(choose_rows(train, 30)), CLASSES, [1e-2], val=val)
    part = fit_probe(train, CLASSES, [1e-2], val=val, most=30)
    loss = {
        name: mean_loss((p.weight.double(), p.bias.double()), val, CLASSES)
        for name, p in (("whole", whole), ("start", start), ("part", part))
    }
    assert 1 <= part.passes <= 4 and f"{part.passes} times" in part.note
    assert loss["part"] - loss["whole"] < 0.5 * (loss["start"] - loss["whole"])
    turned = every.take(range(2_999, -1, -1))
    again = fit_probe(turned, CLASSES, [1e-2], val=val, most=30)
    torch.testing.assert_close(again.weight, part.weight, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("regraft.evidence.linear_probe.ADAM_RATE", 500.0)  # no pass makes it better
    kept = fit_probe(train, CLASSES, [1e-2], val=val, most=30)
    assert kept.passes == 0 and torch.equal(kept.weight, start.weight)


def test_the_soft_probe_is_the_strongest_of_the_strengths(monkeypatch):
    """Against scikit-learn, with λ/2·‖W‖² as C = 1 ÷ (λ·n)."""
    x, y = rows()
    found = fit_soft_probe(outputs(x, y), CLASSES, [1e-3, 0.5, 1e-2])
    z = (x - x.mean(0)) / x.std(0)
    model = LogisticRegression(C=1 / (0.5 * len(x)), tol=1e-10, max_iter=10_000).fit(z, y)
    expected = model.predict_proba(z)
    logits = found.logits(torch.from_numpy(x).float())
    assert np.allclose(logits.softmax(1).numpy(), expected, atol=1e-4)
    assert found.strength == 0.5 and (found.rows, found.of) == (len(x), len(x))
    monkeypatch.setattr("regraft.evidence.linear_probe.MAX_WORK", 7 * 3 * 60)  # features × outputs × rows
    assert fit_soft_probe(outputs(x, y), CLASSES, [0.5]).rows == 60
