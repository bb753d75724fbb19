"""Coverage of sets with a guarantee over many splits of the same logits.

    python benchmarks/conformal.py [--draws 1000] [--seed 0] [--noise 0.15] [--logits FILE.npz]

Without a file the logits are of a small network on scikit-learn's digits, with a share ``noise`` of labels drawn anew:
one candidate an epoch, 40 in all. A file has logits [K, N, C] of K candidates, and truth [N] of classes. Each draw
takes n rows as val and judges on all others. The table compares

    fixed     the model and T = 1 were given before: the law is exact
    chosen    val chooses the candidate by accuracy, then loss, and T; the same rows give the bound, as in a run
    apart     val chooses, and n further rows give the bound: what a run would have to spend on an exact law
    folds     a logistic regression on n rows; five folds give scores, T and bound, and the fit on all n is judged
    accepted  evaluate.max_error: error and share of the other rows that are accepted, for "fixed" and "chosen"

Rows are drawn without replacement. The number of covered rows among m others then follows the beta-binomial of m, k
and n + 1 − k. "inside" is the share of draws in its middle 95 %.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax
from scipy.stats import betabinom

from regraft.evidence.abstention import confidence_of, find_threshold
from regraft.evidence.calibration import fit_temperature
from regraft.evidence.conformal import covered, fit_rule, members, rank_of
from regraft.evidence.scoring import Predictions
from regraft.tasks.classification import Classification

SIZES = (10, 20, 40, 100, 300)
FOLDS = 5
ABSTAINING = (100, 300, 600)  # rows of val

Array = np.ndarray[Any, Any]


def digits(seed: int, noise: float) -> tuple[Array, Array]:
    """Return scikit-learn's digits [N, 64] and their noisy labels [N]."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    return x / 16, np.where(rng.random(len(y)) < noise, rng.integers(0, 10, len(y)), y)


def trained(seed: int, noise: float, train: int = 300, epochs: int = 40) -> tuple[Array, Array]:
    """Return logits [K, N, C] of a network after each epoch on the rows that it was not trained on, and truth [N]."""
    from sklearn.neural_network import MLPClassifier

    x, y = digits(seed, noise)
    net = MLPClassifier((64,), learning_rate_init=0.01, random_state=seed)
    order = np.random.default_rng(seed).permutation(len(y))
    own, others = order[:train], order[train:]
    logits = []
    for _ in range(epochs):
        net.partial_fit(x[own], y[own], classes=np.arange(10))
        logits.append(np.log(np.clip(net.predict_proba(x[others]), 1e-300, 1)))
    return np.stack(logits), y[others]


def rows_of(logits: Array, truth: Array) -> Predictions:
    """Return rows with these logits [n, C]."""
    return Predictions(tuple(map(str, range(len(truth)))), truth, softmax(logits, axis=1))


def best(logits: Array, truth: Array) -> int:
    """Return the candidate with the best accuracy, the lower loss among equals."""
    right = (logits.argmax(2) == truth).mean(1)
    loss = -log_softmax(logits, axis=2)[:, np.arange(len(truth)), truth].mean(1)
    return int(np.lexsort((loss, -right))[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--noise", type=float, default=0.15)
    parser.add_argument("--logits", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # a regression that stops early is a model as well
    if args.logits:
        with np.load(args.logits) as file:
            logits, truth = file["logits"].astype(float), file["truth"]
    else:
        logits, truth = trained(args.seed, args.noise)
    k, total, classes = logits.shape
    task = Classification().make([(str(c),) for c in range(classes)], ("label",))
    last = best(logits, truth)
    accuracy = (logits[last].argmax(1) == truth).mean()
    print(f"{k} candidates, {total} rows, {classes} classes; accuracy of the best {accuracy:.3f}")
    rng = np.random.default_rng(args.seed)

    def judged(model: Array, val: Predictions, out: Array, temperature: float) -> tuple[float, float]:
        rule = fit_rule(task, val, args.coverage, temperature)
        new = rows_of(model[out], truth[out])
        return float(covered(rule, new).mean()), float(members(rule, new.scores).sum(1).mean())

    def fixed(n: int, order: Array) -> tuple[float, float]:
        val, model = order[:n], logits[last]
        return judged(model, rows_of(model[val], truth[val]), order[n:], 1.0)

    def chosen(n: int, order: Array) -> tuple[float, float]:
        val = order[:n]
        model = logits[best(logits[:, val], truth[val])]
        rows = rows_of(model[val], truth[val])
        return judged(model, rows, order[n:], fit_temperature(rows))

    def apart(n: int, order: Array) -> tuple[float, float]:
        val, more = order[:n], order[n : 2 * n]
        model = logits[best(logits[:, val], truth[val])]
        temperature = fit_temperature(rows_of(model[val], truth[val]))
        return judged(model, rows_of(model[more], truth[more]), order[2 * n :], temperature)

    arms: dict[str, Callable[[int, Array], tuple[float, float]]] = {"fixed": fixed, "chosen": chosen, "apart": apart}
    print("| arm | rows | mean coverage (standard error) | k ÷ (n + 1) | inside | classes a set |")
    print("|---|---|---|---|---|---|")
    for name, arm in arms.items():
        for n in SIZES:
            found = np.array([arm(n, rng.permutation(total)) for _ in range(args.draws)])
            show(name, n, total - (2 * n if name == "apart" else n), found, args.coverage)
    print("| accepted, error of at most | rows | threshold found | accepted where found | error | above the bound |")
    print("|---|---|---|---|---|---|")
    for name, given in (("fixed", logits[last : last + 1]), ("chosen", logits)):
        for most in (0.05, 0.1):
            for n in ABSTAINING:
                orders = [rng.permutation(total) for _ in range(args.draws)]
                accepted(f"{name}, {most:.0%}", given, truth, orders, (n, most))
    if not args.logits:
        print("| arm | rows | mean coverage (standard error) | k ÷ (n + 1) | inside | classes a set |")
        print("|---|---|---|---|---|---|")
        folds(rng, digits(args.seed, args.noise), args.draws // 4, args.coverage)


def show(name: str, n: int, m: int, found: Array, coverage: float) -> None:
    """Print a line of the table from coverage and size of sets by draw [draws, 2]."""
    k, shown = rank_of(n, coverage), found[:, 0]
    low, high = betabinom(m, k, n + 1 - k).ppf([0.025, 0.975])
    inside = np.mean((low <= np.round(shown * m)) & (np.round(shown * m) <= high))
    error = shown.std(ddof=1) / np.sqrt(len(shown))
    cells = (name, n, f"{shown.mean():.4f} ({error:.4f})", f"{k / (n + 1):.4f}", f"{inside:.3f}")
    print("|", " | ".join(map(str, cells)), f"| {found[:, 1].mean():.2f} |", flush=True)


def accepted(name: str, logits: Array, truth: Array, orders: list[Array], asked: tuple[int, float]) -> None:
    """Print a line on what n rows of val accept, and its largest error. A single candidate was given, as T = 1 was."""
    found, (n, most) = [], asked
    for order in orders:
        val, others = order[:n], order[n:]
        model = logits[best(logits[:, val], truth[val])]
        rows, new = rows_of(model[val], truth[val]), rows_of(model[others], truth[others])
        temperature = fit_temperature(rows) if len(logits) > 1 else 1.0
        chosen = find_threshold(*confidence_of(rows, temperature), most)
        if chosen is not None:
            confidence, wrong = confidence_of(new, temperature)
            inside = confidence > chosen[0]
            found.append((inside.mean(), wrong[inside].mean() if inside.any() else 0.0))
    share, error = np.array(found or [(np.nan, np.nan)]).T
    cells = (name, n, f"{len(found) / len(orders):.3f}", f"{share.mean():.3f}", f"{error.mean():.4f}")
    print("|", " | ".join(map(str, cells)), f"| {(error > most).sum() / len(orders):.4f} |", flush=True)


def folds(rng: np.random.Generator, data: tuple[Array, Array], draws: int, coverage: float) -> None:
    """Print the lines of out-of-fold rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    x, y = data
    task = Classification().make([(str(c),) for c in range(10)], ("label",))

    def logits_of(own: Array, others: Array) -> Array:
        model = LogisticRegression(C=0.3, max_iter=100).fit(x[own], y[own])
        found = np.full((len(others), 10), -50.0)
        found[:, model.classes_] = model.predict_log_proba(x[others])
        return found

    for n in SIZES[2:]:
        found = []
        for _ in range(draws):
            order = rng.permutation(len(y))
            own, others = order[:n], order[n:]
            scores = np.empty((n, 10))
            for fit, judged in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(own, y[own]):
                scores[judged] = logits_of(own[fit], own[judged])
            rows, new = rows_of(scores, y[own]), rows_of(logits_of(own, others), y[others])
            rule = fit_rule(task, rows, coverage, fit_temperature(rows))
            found.append((covered(rule, new).mean(), members(rule, new.scores).sum(1).mean()))
        show("folds", n, len(y) - n, np.array(found), coverage)


if __name__ == "__main__":
    main()
