"""Linear probe: the best linear head on frozen features, and the starting point of fit.

    min over W, b of  mean_i loss(W z_i + b, y_i) + λ/2 · ‖W‖²,   z = (x − mean) ÷ std of train

Convex; solved by L-BFGS from the strongest λ to the weakest, each from the last one's solution. λ is
chosen by mean loss: on val, or by cross-validation on train where there is no val. The path ends
after two λ that are worse than the best: the loss falls, then rises along it, and the weakest λ take
the longest. The standardisation is folded into W and b, so the head takes raw features.

An evaluation costs rows × features × outputs, and a λ takes some tens of them. Where train has more rows
than WORK allows, λ and a first head come from a part of them, of each class its share. With val the head then
goes over all rows, PASSES times in small batches (Adam: Kingma and Ba 2015, 1412.6980), in float32 and with
λ · part ÷ whole; after each pass val says whether it is better. ``note`` says what was done.
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


Fold = tuple[list[int], list[int]]  # rows to fit on, rows to judge by

MAX_WORSE_STEPS = 2  # λ in a row that end the path

HELD = 16_000_000  # bytes of features that are held as float64

WORK = 20_000_000_000  # rows × features × outputs of a λ's fits: a minute or two of one core

EACH = 2  # rows of each class that a part of train has, where there are so many

PASSES, BATCH = 4, 256  # over all rows, where that is more

RATE = 0.05  # of Adam, ÷ √features; falls to 0


@dataclass(frozen=True)
class Probe:
    weight: Tensor  # [C, D], on raw features
    bias: Tensor  # [C]
    strength: float  # the λ that was chosen
    losses: dict[float, float]  # λ that was tried → mean loss; empty where there was no choice
    chosen_by: str
    rows: int = 0  # of train that it was fitted on
    of: int = 0  # rows of train
    passes: int = 0  # over all rows, afterwards

    @property
    def note(self) -> str:
        """What a reader must know where it was not fitted on all of train at once; else ""."""
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
        """[N, D] → [N, C]"""
        return features @ self.weight.T + self.bias

    def write_to(self, head: nn.Module) -> None:
        """Copy into a linear head."""
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
    """A probe on features [N, D], its λ chosen on ``val``, else over ``folds`` of train.

    With neither, the middle λ is taken and ``chosen_by`` says so. Of train it sees ``most`` rows; 0: as
    many as WORK allows.
    """
    of = len(train.ids)
    fits = 1 if val is not None else max(1, len(folds))
    most = affordable(train.values.shape[1], task.outputs, fits, most)
    if of > most:
        rows = part_of(train, most)
        place = {row: i for i, row in enumerate(rows)}
        inside = [
            ([place[i] for i in fit if i in place], [place[i] for i in judge if i in place]) for fit, judge in folds
        ]
        part, folds = train.take(rows), [fold for fold in inside if all(fold)]
        found = _fit(part, task, strengths, val, folds)
        found = over_all(found, train, len(rows), val, task) if val is not None else found
        return replace(found, rows=len(rows), of=of)
    return replace(_fit(train, task, strengths, val, folds), rows=of, of=of)


def over_all(probe: Probe, train: Outputs, part: int, val: Outputs, task: Task) -> Probe:
    """Return the probe's head after the pass over train that is best on val: 0 to PASSES of them."""
    n = len(train.ids)
    mean, std = scale(train.values)
    weight, bias = probe.weight.double(), probe.bias.double()
    head = [t.float().requires_grad_() for t in (weight * std, bias + weight @ mean)]
    rate, strength = RATE / train.values.shape[1] ** 0.5, probe.strength * part / n
    adam = torch.optim.Adam(head, lr=rate)
    by_id = torch.tensor(sorted(range(n), key=train.ids.__getitem__))
    dice, seen = torch.Generator().manual_seed(0), stage("linear probe over all rows", PASSES * n)
    best, least = probe, mean_loss((weight, bias), val, task)
    shift, width, steps = mean.float(), std.float(), PASSES * -(-n // BATCH)
    for number in range(1, PASSES + 1):
        for rows in torch.split(by_id[torch.randperm(n, generator=dice)], BATCH):
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
    """Return how many rows each of so many fits may have: ``most``, or without it what WORK allows."""
    return max(most or WORK // (features * outputs * fits), EACH * outputs)


def part_of(train: Outputs, most: int) -> list[int]:
    """Return ``most`` rows in order: EACH of each class, then of each class its share.

    Within a class they come by id, so that the order of the data does not matter.
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
    chosen: list[int] = np.lexsort((by_id, share, rank >= EACH))[:most].tolist()
    return sorted(chosen)


def _fit(train: Outputs, task: Task, strengths: Sequence[float], val: Outputs | None, folds: Sequence[Fold]) -> Probe:
    ordered = sorted(strengths, reverse=True)
    if val is not None:
        parts, chosen_by = [(train, val)], "val"
    else:
        parts = [(train.take(fit), train.take(judge)) for fit, judge in folds]
        chosen_by = f"{len(parts)}-fold cross-validation"
    if not parts:
        *_, (weight, bias) = path(train, task, ordered[: len(ordered) // 2 + 1])
        strength, chosen_by = ordered[len(ordered) // 2], "nothing: too few rows to judge by"
        return Probe(weight.float(), bias.float(), strength, {}, chosen_by)

    rows = [len(judge.ids) for _, judge in parts]
    losses: dict[float, float] = {}
    heads: dict[float, tuple[Tensor, Tensor]] = {}  # of the first part
    paths = zip(*(path(fit, task, ordered) for fit, _ in parts), strict=True)
    for strength, found in zip(ordered, paths, strict=True):
        each = [mean_loss(h, judge, task) for h, (_, judge) in zip(found, parts, strict=True)]
        losses[strength], heads[strength] = float(np.average(each, weights=rows)), found[0]
        if len(losses) - 1 - np.argmin(list(losses.values())) >= MAX_WORSE_STEPS:
            break
    strength = min(losses, key=losses.__getitem__)  # of equal losses the strongest, which is first
    if val is None:
        *_, heads[strength] = path(train, task, [s for s in ordered if s >= strength])
    weight, bias = heads[strength]
    return Probe(weight.float(), bias.float(), strength, losses, chosen_by)


def path(train: Outputs, task: Task, strengths: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """(W [C, D], b [C]) on raw features, float64, for each λ in turn."""
    mean, std = scale(train.values)
    pieces = piecewise(train.values)
    flat = np.zeros((task.outputs, len(mean) + 1))  # W and b side by side, [C, D + 1]
    if len(pieces) == 1:  # standardised once
        z = (train.values.double() - mean) / std  # [N, D]
        pieces, inside = (z,), None
    else:  # more than is held in memory: z = (x − mean) ÷ std is put into W and b at each look
        inside = (mean, std)
    seen = stage("linear probe", len(strengths), "strengths")
    for strength in strengths:
        flat = solve(pieces, train.targets, task, strength, flat, inside, seen)
        seen.advance()
        weight = torch.from_numpy(flat[:, :-1]) / std
        yield weight, torch.from_numpy(flat[:, -1]) - weight @ mean


def piecewise(x: Tensor) -> tuple[Tensor, ...]:
    """Rows in pieces of at most HELD bytes as float64. They may be mapped: no more is held at once."""
    return torch.split(x, max(1, HELD // (8 * x.shape[1])))


def doubles(pieces: Sequence[Tensor]) -> Iterator[Tensor]:
    """Each piece as float64, in one buffer, which the next one overwrites: buffers that come and go
    leave holes among what lives longer, with 100,000 rows a gigabyte of them."""
    if len(pieces) == 1:
        yield pieces[0].double()
        return
    buffer = torch.empty(pieces[0].shape, dtype=torch.float64)
    for piece in pieces:
        yield buffer[: len(piece)].copy_(piece)


def scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and what to divide by: the deviation, of constant features 1."""
    mean, std = moments(x)
    return mean, torch.where(std > 1e-8 * (1 + mean.abs()), std, torch.ones_like(std))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] over the rows, float64."""
    pieces = piecewise(x)
    if len(pieces) == 1:
        return x.double().mean(0), x.double().std(0, correction=0)
    mean = torch.stack([p.sum(0) for p in doubles(pieces)]).sum(0) / len(x)
    squares = torch.stack([p.sub_(mean).square_().sum(0) for p in doubles(pieces)]).sum(0)
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
    """The minimiser [C, D + 1] of the objective above, from ``start``, on rows z in pieces; with
    ``inside``, their mean and deviation, on raw ones."""
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
        for x, y in zip(doubles(pieces), labels, strict=True):
            loss = task.loss(x @ head[0].T + head[1], y).sum() / len(targets)
            value += float(loss.detach())
            for slope, more in zip(slopes, torch.autograd.grad(loss, head), strict=True):
                slope += more
        (gradient,) = torch.autograd.grad([decay, weight, bias], w, [torch.ones_like(decay), *slopes])
        return value + float(decay.detach()), gradient.numpy().ravel()

    with blas().limit(limits=1):
        found = minimize(
            objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-5, "ftol": 1e-8}
        )
    return np.asarray(found.x, dtype=np.float64).reshape(shape)


@cache
def blas() -> ThreadpoolController:
    """scipy's and numpy's own matrix library. Beside torch's threads, which wait for work as busily, its
    threads took two to ten times as long over a step of L-BFGS as one of them does."""
    return ThreadpoolController().select(internal_api="openblas")


def mean_loss(head: tuple[Tensor, Tensor], rows: Outputs, task: Task) -> float:
    weight, bias = head
    pieces = piecewise(rows.values)
    labels = torch.split(rows.targets, [len(p) for p in pieces])
    each = [task.loss(x @ weight.T + bias, y) for x, y in zip(doubles(pieces), labels, strict=True)]
    return float(torch.cat(each).mean())


def folds_of(strata: Sequence[str], groups: Sequence[str | None], most: int) -> list[Fold]:
    """Stratified folds, groups whole; none where a stratum has a single row or there is one group.

    ``strata`` are class names, or bins of a number. Rows come in a fixed order from the caller, so
    no seed is needed.
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
