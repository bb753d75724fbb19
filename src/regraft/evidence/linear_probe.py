"""Linear probe: the best linear head on frozen features, and the starting point of a fit.

    min over W, b of  mean_i loss(W z_i + b, y_i) + λ/2 · ‖W‖²,   z = (x − mean) ÷ std of train

The problem is convex. L-BFGS solves it from the strongest λ to the weakest, each from the solution of the λ
before. λ is chosen by mean loss: on val, or without val by cross-validation on train. Along the path the loss
falls, then rises, and the weakest λ take longest, so the path ends after two λ that are worse than the best.
The standardisation is folded into W and b, so the head takes raw features.

An evaluation of the objective costs rows × features × outputs, and a λ takes some tens of evaluations. If
train has more rows than MAX_WORK allows, λ and a first head come from a part of them, in which each class has
its share. With val, Adam (Kingma and Ba 2015, 1412.6980) then trains the head on all rows in small batches, in
float32 and with λ · part ÷ whole. The head after the pass that is best on val is taken. ``note`` reports this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from ..io.progress import Stage, stage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from ..model.forward import Outputs
    from ..tasks import Task


Fold = tuple[list[int], list[int]]  # rows to fit on, rows to evaluate on

MAX_WORSE_STEPS = 2  # λ in a row that are worse than the best, which end the path

PIECE_BYTES = 16_000_000  # of features that are in memory as float64 at once

MAX_WORK = 20_000_000_000  # rows × features × outputs of a λ's fits: a minute or two of one core

MIN_ROWS_PER_CLASS = 2  # in a part of train, if the class has as many

PASSES, BATCH_ROWS = 4, 256  # of Adam over all rows

ADAM_RATE = 0.05  # ÷ √features; falls to 0


@dataclass(frozen=True)
class Probe:
    """A linear head with the λ that it was fitted with."""

    weight: Tensor  # [C, D], on raw features
    bias: Tensor  # [C]
    strength: float  # the λ that was chosen
    losses: dict[float, float]  # λ → mean loss; empty if λ was not chosen by a loss
    chosen_by: str  # the rows that chose λ, in words
    rows: int = 0  # rows of train that λ and the first head come from
    of: int = 0  # rows of train
    passes: int = 0  # of Adam over all rows, afterwards

    @property
    def note(self) -> str:
        """Return a sentence for the reader if the probe was not fitted on all of train at once; else ""."""
        if self.rows == self.of:
            return ""
        if self.passes:
            return (
                f"the linear probe's λ was chosen on {self.rows:,} of {self.of:,} training rows; its head then "
                f"went over all of them {self.passes} times (probe.rows)"
            )
        return (
            f"the linear probe was fitted on {self.rows:,} of {self.of:,} training rows, of each class its "
            "share: on all of them it would be better, and a gain over it smaller (probe.rows)"
        )

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [N, C] of features [N, D]."""
        return features @ self.weight.T + self.bias

    def write_to(self, head: nn.Module) -> None:
        """Copy weight and bias into a linear head."""
        with torch.no_grad():
            head.get_parameter("weight").copy_(self.weight)
            head.get_parameter("bias").copy_(self.bias)


def fit_probe(
    train: Outputs,
    task: Task,
    strengths: Sequence[float],
    *,
    val: Outputs | None = None,
    folds: Sequence[Fold] = (),
    most: int = 0,
) -> Probe:
    """Fit a probe on features [N, D]; λ is chosen on ``val``, else over ``folds`` of train.

    With neither, it takes the middle λ, and ``chosen_by`` names that. ``most`` is the largest number of train
    rows; 0 takes as many as MAX_WORK allows.
    """
    of = len(train.ids)
    fits = 1 if val is not None else max(1, len(folds))
    most = affordable(train.values.shape[1], task.outputs, fits, most)
    if of > most:
        rows = choose_rows(train, most)
        place = {row: i for i, row in enumerate(rows)}
        inside = [
            ([place[i] for i in fit if i in place], [place[i] for i in judge if i in place]) for fit, judge in folds
        ]
        part, folds = train.take(rows), [fold for fold in inside if all(fold)]
        found = _fit(part, task, strengths, val, folds)
        found = train_on_all(found, train, len(rows), val, task) if val is not None else found
        return replace(found, rows=len(rows), of=of)
    return replace(_fit(train, task, strengths, val, folds), rows=of, of=of)


def fit_soft_probe(train: Outputs, task: Task, strengths: Sequence[float], *, most: int = 0) -> Probe:
    """Fit a probe at the strongest λ of ``strengths`` on features [N, D].

    It is a head to train from: its loss on train is far from 0, so that a fit moves the features too. ``most`` is
    the largest number of train rows; 0 takes as many as MAX_WORK allows.
    """
    of = len(train.ids)
    most = affordable(train.values.shape[1], task.outputs, 1, most)
    part = train.take(choose_rows(train, most)) if of > most else train
    ((weight, bias),) = solve_path(part, task, [max(strengths)])
    chosen_by = "nothing: the strongest of probe.strengths"
    return Probe(weight.float(), bias.float(), max(strengths), {}, chosen_by, len(part.ids), of)


def train_on_all(probe: Probe, train: Outputs, part: int, val: Outputs, task: Task) -> Probe:
    """Train the head on all of train, and return it after the pass, 0 to PASSES, that is best on val."""
    n = len(train.ids)
    mean, std = compute_scale(train.values)
    weight, bias = probe.weight.double(), probe.bias.double()
    head = [t.float().requires_grad_() for t in (weight * std, bias + weight @ mean)]
    rate, strength = ADAM_RATE / train.values.shape[1] ** 0.5, probe.strength * part / n
    adam = torch.optim.Adam(head, lr=rate)
    by_id = torch.tensor(sorted(range(n), key=train.ids.__getitem__))
    dice, seen = torch.Generator().manual_seed(0), stage("linear probe over all rows", PASSES * n)
    best, least = probe, mean_loss((weight, bias), val, task)
    shift, width, steps = mean.float(), std.float(), PASSES * -(-n // BATCH_ROWS)
    for number in range(1, PASSES + 1):
        for rows in torch.split(by_id[torch.randperm(n, generator=dice)], BATCH_ROWS):
            z = (train.values[rows].float() - shift) / width
            loss = task.loss(z @ head[0].T + head[1], train.targets[rows]).mean()
            decay = strength / 2 * head[0].square().sum()
            adam.param_groups[0]["lr"] -= rate / steps
            adam.zero_grad()
            (loss + decay).backward()  # type: ignore[no-untyped-call]
            adam.step()
            seen.advance(len(rows))
        w, b = (t.detach().double() for t in head)
        found = w / std, b - w / std @ mean
        if (loss_on_val := mean_loss(found, val, task)) < least:
            best, least = (replace(probe, weight=found[0].float(), bias=found[1].float(), passes=number), loss_on_val)
    return best


def affordable(features: int, outputs: int, fits: int, most: int) -> int:
    """Return the number of rows that each of the fits may have: ``most``, or what MAX_WORK allows."""
    return max(most or MAX_WORK // (features * outputs * fits), MIN_ROWS_PER_CLASS * outputs)


def choose_rows(train: Outputs, most: int) -> list[int]:
    """Return ``most`` rows in order: MIN_ROWS_PER_CLASS of each class, then of each class its share.

    Within a class the rows are chosen by id, so that the order of the data does not matter.
    """
    n = len(train.ids)
    by_id = np.empty(n, np.int64)
    by_id[sorted(range(n), key=train.ids.__getitem__)] = np.arange(n)
    classes = train.targets.numpy() if train.targets.ndim == 1 else np.zeros(n, np.int64)
    order = np.lexsort((by_id, classes))
    counts = np.bincount(classes)
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    share = (rank + 0.5) / counts[classes]
    chosen: list[int] = np.lexsort((by_id, share, rank >= MIN_ROWS_PER_CLASS))[:most].tolist()
    return sorted(chosen)


def _fit(train: Outputs, task: Task, strengths: Sequence[float], val: Outputs | None, folds: Sequence[Fold]) -> Probe:
    ordered = sorted(strengths, reverse=True)
    if val is not None:
        parts, chosen_by = [(train, val)], "val"
    else:
        parts = [(train.take(fit), train.take(judge)) for fit, judge in folds]
        chosen_by = f"{len(parts)}-fold cross-validation"
    if not parts:
        *_, (weight, bias) = solve_path(train, task, ordered[: len(ordered) // 2 + 1])
        strength, chosen_by = ordered[len(ordered) // 2], "nothing: too few rows to judge by"
        return Probe(weight.float(), bias.float(), strength, {}, chosen_by)

    rows = [len(judge.ids) for _, judge in parts]
    losses: dict[float, float] = {}
    heads: dict[float, tuple[Tensor, Tensor]] = {}  # of the first part
    paths = zip(*(solve_path(fit, task, ordered) for fit, _ in parts), strict=True)
    for strength, found in zip(ordered, paths, strict=True):
        each = [mean_loss(h, judge, task) for h, (_, judge) in zip(found, parts, strict=True)]
        losses[strength], heads[strength] = float(np.average(each, weights=rows)), found[0]
        if len(losses) - 1 - np.argmin(list(losses.values())) >= MAX_WORSE_STEPS:
            break
    strength = min(losses, key=losses.__getitem__)  # of equal losses the strongest, which is first
    if val is None:
        *_, heads[strength] = solve_path(train, task, [s for s in ordered if s >= strength])
    weight, bias = heads[strength]
    return Probe(weight.float(), bias.float(), strength, losses, chosen_by)


def solve_path(train: Outputs, task: Task, strengths: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (W [C, D], b [C]) on raw features, float64, for each λ in turn."""
    mean, std = compute_scale(train.values)
    pieces = split_rows(train.values)
    flat = np.zeros((task.outputs, len(mean) + 1))  # W and b side by side, [C, D + 1]
    if len(pieces) == 1:  # standardised once
        z = (train.values.double() - mean) / std  # [N, D]
        pieces, inside = (z,), None
    else:  # too large for memory: z = (x − mean) ÷ std is folded into W and b at each evaluation
        inside = (mean, std)
    seen = stage("linear probe", len(strengths), "strengths")
    for strength in strengths:
        flat = solve(pieces, train.targets, task, strength, flat, inside, seen)
        seen.advance()
        weight = torch.from_numpy(flat[:, :-1]) / std
        yield weight, torch.from_numpy(flat[:, -1]) - weight @ mean


def split_rows(x: Tensor) -> tuple[Tensor, ...]:
    """Split rows into pieces of at most PIECE_BYTES as float64. The rows may be mapped from a file."""
    return torch.split(x, max(1, PIECE_BYTES // (8 * x.shape[1])))


def as_doubles(pieces: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield each piece as float64 in one buffer, which the next piece overwrites.

    New buffers for each piece would fragment the heap: by a gigabyte for 100,000 rows.
    """
    if len(pieces) == 1:
        yield pieces[0].double()
        return
    buffer = torch.empty(pieces[0].shape, dtype=torch.float64)
    for piece in pieces:
        yield buffer[: len(piece)].copy_(piece)


def compute_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and divisor [D] of the features: the standard deviation, or 1 for a constant feature."""
    mean, std = compute_moments(x)
    return mean, torch.where(std > 1e-8 * (1 + mean.abs()), std, torch.ones_like(std))


def compute_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [D] over the rows, float64."""
    pieces = split_rows(x)
    if len(pieces) == 1:
        return x.double().mean(0), x.double().std(0, correction=0)
    mean = torch.stack([p.sum(0) for p in as_doubles(pieces)]).sum(0) / len(x)
    squares = torch.stack([p.sub_(mean).square_().sum(0) for p in as_doubles(pieces)]).sum(0)
    return mean, (squares / len(x)).sqrt()


def solve(
    pieces: Sequence[Tensor],
    targets: Tensor,
    task: Task,
    strength: float,
    start: NDArray[np.float64],
    inside: tuple[Tensor, Tensor] | None = None,
    seen: Stage | None = None,
) -> NDArray[np.float64]:
    """Minimise the objective above from ``start``, and return W and b side by side [C, D + 1].

    ``pieces`` are standardised rows; with ``inside``, mean and deviation [D], they are raw rows.
    """
    shape = start.shape
    labels = torch.split(targets, [len(p) for p in pieces])

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        if seen is not None:
            seen.advance(0)
        w = torch.from_numpy(flat.reshape(shape).copy()).requires_grad_()
        weight, bias = w[:, :-1], w[:, -1]
        decay = strength / 2 * weight.square().sum()
        if inside is not None:
            mean, std = inside
            weight = weight / std
            bias = bias - weight @ mean
        head = [t.detach().requires_grad_() for t in (weight, bias)]
        value, slopes = 0.0, [torch.zeros_like(t) for t in head]
        for x, y in zip(as_doubles(pieces), labels, strict=True):
            loss = task.loss(x @ head[0].T + head[1], y).sum() / len(targets)
            value += float(loss.detach())
            for slope, more in zip(slopes, torch.autograd.grad(loss, head), strict=True):
                slope += more
        (gradient,) = torch.autograd.grad([decay, weight, bias], w, [torch.ones_like(decay), *slopes])
        return value + float(decay.detach()), gradient.numpy().ravel()

    with find_blas().limit(limits=1):
        found = minimize(
            objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-5, "ftol": 1e-8}
        )
    return np.asarray(found.x, dtype=np.float64).reshape(shape)


@cache
def find_blas() -> ThreadpoolController:
    """Return the controller of scipy's and numpy's own matrix library.

    Its threads compete with torch's, which spin while they wait: a step of L-BFGS took two to ten times as long
    as with one thread.
    """
    return ThreadpoolController().select(internal_api="openblas")


def mean_loss(head: tuple[Tensor, Tensor], rows: Outputs, task: Task) -> float:
    """Compute a head's mean loss over rows of features."""
    weight, bias = head
    pieces = split_rows(rows.values)
    labels = torch.split(rows.targets, [len(p) for p in pieces])
    each = [task.loss(x @ weight.T + bias, y) for x, y in zip(as_doubles(pieces), labels, strict=True)]
    return float(torch.cat(each).mean())


def folds_of(strata: Sequence[str], groups: Sequence[str | None], most: int) -> list[Fold]:
    """Divide rows into at most ``most`` stratified folds, groups undivided.

    Return no folds if a stratum has a single row, or if all rows are of one group. ``strata`` are class names,
    or bins of a number. The caller gives rows in a fixed order, so no seed is needed.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    smallest = min(np.unique(list(strata), return_counts=True)[1])
    names = [g if g is not None else f"row {i}" for i, g in enumerate(groups)]
    k = min(most, int(smallest), len(set(names)))
    if k < 2:
        return []
    rows = np.zeros(len(strata))
    if any(g is not None for g in groups):
        splits = StratifiedGroupKFold(k).split(rows, list(strata), names)
    else:
        splits = StratifiedKFold(k).split(rows, list(strata))
    return [(fit.tolist(), judge.tolist()) for fit, judge in splits]
