"""Elastic weight consolidation: a pull on each weight, as strong as the source task depends on it.

    R(θ) = λ/2 · Σ_i F_i (θ_i − θs_i)²,   F_i = (1/N) Σ_n (∂ log p(y_n | x_n; θs) / ∂θ_i)²

over N source examples; F is the mean of squared per-sample gradients, not the square of their mean.
y_n is drawn from the model's own answer, so F is the Fisher information. ``labels = "true"`` takes the
data's labels: the empirical Fisher. Kirkpatrick et al. 2017, 1612.00796, eq. 3; Kunstner, Balles
and Hennig 2019, 1905.12558, on the difference. In eval mode, at θs, through the source's own head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..compute.arrays import map_inputs
from ..errors import PlanError
from ..model.types import Target
from . import Batch, Penalty, Regularizer, SourceRows, TrainRows

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class EWC(Regularizer):
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    uses_source: ClassVar[bool] = True
    needs_source_data: ClassVar[bool] = True
    pulls_to_source: ClassVar[bool] = True

    strength: float = 100.0  # λ
    by_block: dict[str, float] = field(default_factory=dict, hash=False)  # factors, by pattern
    examples: int = 256  # N, source examples for the estimate of F
    labels: Literal["sampled", "true"] = "sampled"
    chunk: int = 8  # examples whose gradients are in memory at once

    def __post_init__(self) -> None:
        if min([self.strength, *self.by_block.values()]) < 0:
            raise ValueError("strength and by_block take 0 or more")
        if self.examples < 1 or self.chunk < 1:
            raise ValueError("examples and chunk take 1 or more")

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        source = target.source
        if source_data is None or source.head is None:
            raise PlanError(
                'regularizer "ewc" needs labelled source data and the source\'s own head: add '
                "--source-data PATH, or take l2_sp"
            )
        if self.labels == "sampled" and not source_data.task.has_classes:
            raise PlanError(
                f"regularizers.ewc samples classes, and the source's task is "
                f'{source_data.task.name}: set labels = "true"'
            )
        anchor, head, rows = target.anchor, source.head, source_data
        factors = target.factors(self.by_block)
        found: dict[str, Tensor] = {}

        def term(batch: Batch) -> Tensor:
            if not found:  # at the first step, so a plan that is refused earlier costs no estimate
                what = ("ewc", self.examples, self.labels)
                f = rows.once(what, lambda: fisher(source.backbone, head, rows, self))
                found.update((f"backbone.{n}", t.to(batch.features.device)) for n, t in f.items())
            pull = batch.logits.new_zeros(())
            for name, p in batch.params.items():
                if name in anchor:
                    distance = (p - anchor[name].to(p.device)).square()
                    pull = pull + factors[name] * (found[name] * distance).sum()
            return self.strength / 2 * pull

        return Penalty(term, needs_inputs=False)


def fisher(backbone: nn.Module, head: nn.Module, rows: SourceRows, options: EWC) -> dict[str, Tensor]:
    """Return F of every parameter of the backbone by name, over the first ``examples`` fit rows.

    The backbone's device computes it; the rows' inputs must be there too.
    """
    import copy

    import torch
    from torch.func import functional_call, grad, vmap

    device = next(backbone.parameters()).device
    body, head = copy.deepcopy(backbone).eval(), copy.deepcopy(head).to(device).eval()
    params = {n: p.detach() for n, p in body.named_parameters()}
    fixed = {n: p.detach() for n, p in head.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    total = {n: torch.zeros_like(p) for n, p in params.items()}

    def logits(theta: dict[str, Tensor], x: Any) -> Tensor:
        features = functional_call(body, theta, (x,))
        return functional_call(head, fixed, (features,))  # type: ignore[no-any-return]

    def loss(theta: dict[str, Tensor], x: Any, y: Tensor) -> Tensor:
        """Return the loss of one example, as a batch of one."""
        return rows.task.loss(logits(theta, map_inputs(lambda t: t[None], x)), y[None]).sum()

    one, many = grad(loss), vmap(grad(loss), in_dims=(None, 0, 0))

    def per_sample(x: Any, y: Tensor) -> dict[str, Tensor]:
        """Return gradients [chunk, …] by name."""
        try:
            return many(params, x, y)  # type: ignore[no-any-return]
        except RuntimeError as error:  # a model that branches on its inputs (attention masks do)
            if "vmap" not in str(error):
                raise
        each = [one(params, take(x, i), y[i]) for i in range(len(y))]
        return {n: torch.stack([g[n] for g in each]) for n in params}

    left = options.examples
    for _, inputs, labels in rows.batches("fit"):
        inputs, labels = take(inputs, slice(0, left)), labels[:left]
        if options.labels == "sampled":
            with torch.no_grad():
                p = logits(params, inputs).double().softmax(1).cpu()  # every device then draws the same labels
            labels = torch.multinomial(p, 1, generator=generator)[:, 0]
        labels = labels.to(device)
        for start in range(0, len(labels), options.chunk):
            part = slice(start, start + options.chunk)
            for name, g in per_sample(take(inputs, part), labels[part]).items():
                total[name] += g.square().sum(0)
        left -= len(labels)
        if left <= 0:
            break
    used = options.examples - left
    return {n: t / used for n, t in total.items()}


def take(inputs: Any, rows: int | slice) -> Any:
    """Return some rows of inputs [B, …]; of one row, without its batch dimension."""
    return map_inputs(lambda tensor: tensor[rows], inputs)
