"""Every penalty of regularizers/: scalar, finite, zero at θs where it pulls there, felt by θ."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from builders import FLOATS, fit, make_batches, spell_rows
from regraft.errors import PlanError
from regraft.model.cuts import block_outputs
from regraft.model.grafting import graft
from regraft.model.trainable import set_trainable
from regraft.model.types import Source
from regraft.plan.read import check
from regraft.plugins import names, options_class
from regraft.regularizers import Batch
from regraft.regularizers.delta import channels, without
from regraft.regularizers.ewc import fisher
from regraft.training.settings import Settings

ALL = names("regularizers")
A_LOSS = {"replay"}  # zero where the source task is solved, not at θs


class Rows:
    """Labelled rows of the source task of ``numbers_source``, as penalties see them."""

    def __init__(self, source, n=24):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, 4, generator=generator)
        outputs = source.head.weight.shape[0]
        self.y = torch.randint(0, outputs, (n,), generator=generator)
        cells = [(f"{c:02d}",) for c in range(outputs)]
        self.task = options_class("tasks", "classification")().make(cells, ("y",))

    def batches(self, part):
        assert part == "fit"
        for i in range(0, len(self.x), 10):
            yield ("",) * 10, self.x[i : i + 10], self.y[i : i + 10]

    def draws(self):
        return Stream(self)

    def once(self, key, compute):
        return compute()


class Stream:
    """Batches without end."""

    def __init__(self, rows):
        self.rows, self.drawn = rows, 0

    def __next__(self):
        batches = list(self.rows.batches("fit"))
        self.drawn += 1
        return batches[(self.drawn - 1) % len(batches)]


class Train:
    """Labelled rows of the target, as penalties see them."""

    def __init__(self, n=12):
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(n, 4, generator=generator)
        self.y = torch.randint(0, 3, (n,), generator=generator)
        self.task = options_class("tasks", "classification")().make([(c,) for c in "012"], ("y",))
        self.computed = {}

    def sample(self, rows):
        for i in range(0, rows, 5):
            part = slice(i, min(i + 5, rows))
            yield ("",) * len(self.y[part]), self.x[part], self.y[part]

    def once(self, key, compute):
        if key not in self.computed:
            self.computed[key] = compute()
        return self.computed[key]


def setting(source, name, **options):
    target = graft(source, 3)
    set_trainable(target, {b.name for b in target.blocks}, "frozen")
    before = {n: t.clone() for n, t in target.model.state_dict().items()}
    rows = Rows(source) if source.head is not None else None
    penalty = options_class("regularizers", name)(**options).prepare(target, rows, Train())
    for n, t in target.model.state_dict().items():
        assert torch.equal(t, before[n]), "prepare leaves the target bitwise untouched"
    return target, penalty


def batch(target):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    features = target.model.backbone(x)
    params = {n: p for n, p in target.model.named_parameters() if p.requires_grad}
    logits = target.model.head(features)
    maps = block_outputs(target, target.model.backbone, x)
    torch.testing.assert_close(maps["two"], features)
    return Batch(0, tuple("abcde"), params, x, features, logits, torch.zeros(5).long(), maps)


@pytest.mark.parametrize("name", ALL)
def test_scalar_finite_and_zero_at_the_source(numbers_source, name):
    target, penalty = setting(numbers_source(), name)
    with torch.no_grad():
        for p in target.model.head.parameters():
            p.zero_()  # what is fresh has no source value
    value = penalty.term(batch(target)).detach()
    assert value.ndim == 0 and torch.isfinite(value)
    held = options_class("regularizers", name).uses_source and name not in A_LOSS
    assert abs(float(value)) < 1e-6 if held else float(value) > 0
    assert penalty.per in ("step", "batch")


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_reaches_the_weights(numbers_source, name):
    target, penalty = setting(numbers_source(), name)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    penalty.term(batch(target)).backward()
    grads = [p.grad for p in target.model.backbone.parameters() if p.ndim > 1]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_block_is_not_penalised(numbers_source, name):
    target, penalty = setting(numbers_source(), name)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(0.1)
    if penalty.per == "batch":
        return  # it looks at what the model answers, frozen or not
    everything = float(penalty.term(batch(target)).detach())
    set_trainable(target, {"head"}, "frozen")
    assert float(penalty.term(batch(target)).detach()) < everything


@pytest.mark.parametrize("name", ALL)
def test_terms_are_computed_where_the_model_lies(numbers_source, name):
    """As in a fit: the source's backbone and inputs on a device (here one without values, where a tensor
    that lies elsewhere is refused likewise), the source's head and labels on the CPU."""
    source = numbers_source()
    source.backbone.to("meta")
    target = graft(source, 3)
    target.model.to("meta")
    rows, train = Rows(source), Train()
    rows.x, train.x = rows.x.to("meta"), train.x.to("meta")
    if name == "replay":
        rows.y = rows.y.to("meta")  # draws have their labels with them
    options = {"labels": "true"} if name == "ewc" else {}
    penalty = options_class("regularizers", name)(**options).prepare(target, rows, train)
    x = torch.empty(5, 4, device="meta")
    features, params = target.model.backbone(x), dict(target.model.named_parameters())
    maps = block_outputs(target, target.model.backbone, x)
    labels = torch.zeros(5).long()
    of = Batch(0, tuple("abcde"), params, x, features, target.model.head(features), labels, maps)
    value = penalty.term(of)
    assert value.device.type == "meta" and value.ndim == 0


def test_values_by_hand(numbers_source):
    target, l2_sp = setting(numbers_source(), "l2_sp", alpha=0.4, beta=0.06)
    params = dict(target.model.named_parameters())
    with torch.no_grad():
        for n, p in params.items():
            p.copy_(target.anchor[n] + 0.5 if n in target.anchor else torch.full_like(p, 2.0))
    kept = sum(p.numel() for n, p in params.items() if n in target.anchor)
    by_hand = 0.2 * 0.25 * kept + 0.03 * 4 * 18  # the head's matrix is 3 × 6; its bias is free
    assert float(l2_sp.term(batch(target)).detach()) == pytest.approx(by_hand, rel=1e-5)

    target, l2 = setting(numbers_source(), "l2", strength=0.1)
    _, l1 = setting(numbers_source(), "l1", strength=0.1)
    with torch.no_grad():
        for p in target.model.parameters():
            p.fill_(-3.0)
    matrices = 4 * 8 + 8 * 6 + 6 * 3
    assert float(l2.term(batch(target)).detach()) == pytest.approx(0.05 * 9 * matrices)
    assert float(l1.term(batch(target)).detach()) == pytest.approx(0.1 * 3 * matrices)


def test_l2_sp_with_its_anchor_at_zero_is_l2_on_matrices(numbers_source):
    target, l2_sp = setting(numbers_source(), "l2_sp", alpha=0.3, beta=0.3)
    for name, value in target.anchor.items():
        p = target.model.get_parameter(name)
        value.zero_() if p.ndim > 1 else value.copy_(p.detach())  # biases at their anchor: no pull
    _, l2 = setting(numbers_source(), "l2", strength=0.3)
    torch.testing.assert_close(l2_sp.term(batch(target)), l2.term(batch(target)))


@pytest.mark.parametrize("name", ["ewc", "l1", "l2", "l2_sp"])
def test_strength_by_block(numbers_source, name):  # the term is linear in each block's factor
    def value(by_block):
        target, penalty = setting(numbers_source(), name, by_block=by_block)
        with torch.no_grad():
            for p in target.model.parameters():
                p.add_(0.5)
        return float(penalty.term(batch(target)).detach())

    none = value({"*": 0.0})
    alone = [value({"*": 0.0, block: 3.0}) for block in ("one", "two", "head")]
    assert none == 0 and alone[0] > 0 and alone[1] > 0
    assert sum(alone) == pytest.approx(3 * value({}), rel=1e-5)
    assert value({"one": 2.0, "o*": 3.0, "two": 0.0, "head": 0.0}) == pytest.approx(alone[0], rel=1e-5)
    with pytest.raises(PlanError, match='"three" matches no block; there are: one, two, head'):
        value({"three": 1.0})


def test_the_proximal_step_is_by_block_too(numbers_source):
    target, l1 = setting(numbers_source(), "l1", strength=1.0, proximal=True, by_block={"one": 0.0, "two": 2.0})
    params = {n: p for n, p in target.model.named_parameters() if p.ndim > 1}
    before = {n: p.detach().clone() for n, p in params.items()}
    l1.after(params, dict.fromkeys(params, 0.1))
    factor = target.factors({"one": 0.0, "two": 2.0})
    for n, p in params.items():
        by_hand = before[n].sign() * (before[n].abs() - 0.1 * factor[n]).clamp(min=0)
        torch.testing.assert_close(p.detach(), by_hand)
    assert {factor[n] for n in params} == {0.0, 1.0, 2.0}


# ---------------------------------------------------------------- each by an independent reference


def test_proximal_l1_soft_thresholds_matrices_at_their_rate(numbers_source):
    target, l1 = setting(numbers_source(), "l1", strength=0.5, proximal=True)
    term = l1.term(batch(target))
    assert not term.requires_grad and float(term) > 0  # logged, and not in the gradient
    params = {"w": torch.tensor([[0.3, -0.3, 0.04, -0.04]]), "b": torch.tensor([0.04])}
    l1.after(params, {"w": 0.1, "b": 0.1})
    torch.testing.assert_close(params["w"], torch.tensor([[0.25, -0.25, 0.0, 0.0]]))
    assert params["b"].item() == pytest.approx(0.04)


def test_proximal_l1_goes_with_sgd_alone():
    tree = {
        "source": {"ref": "random:timm/test_resnet"},
        "data": {"path": "x"},
        "regularizers": {"l1": {"proximal": True}},
    }
    with pytest.raises(PlanError, match=r"SGD .*AdamW.*fit\.optimizer"):
        check(tree)
    check(tree | {"fit": {"optimizer": "SGD"}})


def test_proximal_l1_reaches_the_lasso(linear_source):
    x, y, source = linear_source
    n, strength = len(x), 0.1
    examples = spell_rows(torch.from_numpy(x), [""] * n)
    train = make_batches(examples, torch.from_numpy(y).float()[:, None], source.preprocess, n)
    target = graft(source, 1)
    l1 = options_class("regularizers", "l1")(strength=2 * strength, proximal=True)
    chosen = Settings(300, {"body": 0.1, "head": 0.1}, "SGD", clip_norm=0, schedule="constant", warmup=0)
    head_only = options_class("freezing", "head_only")()
    penalties = {"l1": l1.prepare(target, None, None)}
    fit(target, train, Squares(), chosen, metric=Squares(), freezing=head_only, penalties=penalties)
    # theirs is 1/2 · mean squared error + strength · ‖w‖₁
    theirs = Lasso(alpha=strength, tol=1e-10, max_iter=100_000).fit(x.astype(float), y)
    ours = target.model.head.weight.detach()[0].numpy()
    np.testing.assert_allclose(ours, theirs.coef_, atol=1e-3)
    assert set(np.flatnonzero(ours == 0)) == set(np.flatnonzero(theirs.coef_ == 0)) != set()


class Squares:
    """Mean squared error, as a task and a metric that no val asks."""

    primary, outputs = "mse", 1

    def loss(self, logits, targets):
        return (logits - targets).square().mean(1)


@pytest.fixture
def linear_source():
    """Rows whose label depends on three of eight columns, and an identity backbone on them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8)).round(3).astype(np.float32)
    y = x[:, :3] @ [1.5, -2.0, 0.7] + 0.3 * rng.normal(size=60) + 0.5
    net = torch.nn.Sequential()
    net.add_module("body", torch.nn.Linear(8, 8))
    net.add_module("head", torch.nn.Linear(8, 1))
    with torch.no_grad():
        net.body.weight.copy_(torch.eye(8))
        net.body.bias.zero_()

    source = Source.from_module(net, head="head", preprocess=FLOATS, example=torch.zeros(2, 8))
    return x, y, source


def test_bss_is_the_sum_of_the_smallest_squared_singular_values(numbers_source):
    target, bss = setting(numbers_source(), "bss", strength=0.2, k=2)
    found = batch(target)
    values = np.linalg.svd(found.features.detach().numpy(), compute_uv=False)
    by_hand = 0.2 * np.sort(values)[:2].__pow__(2).sum()
    assert float(bss.term(found).detach()) == pytest.approx(by_hand, rel=1e-4)


def test_lwf_is_the_divergence_of_the_softened_answers(numbers_source):
    source = numbers_source()
    target, lwf = setting(source, "lwf", strength=3.0, temperature=2.0)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    found = batch(target)
    before = (source.head(source.backbone(found.inputs)) / 2).softmax(1)
    now = (source.head(found.features) / 2).softmax(1)
    by_hand = 3.0 * 4.0 * (before * (before / now).log()).sum(1).mean()
    torch.testing.assert_close(lwf.term(found), by_hand)
    lwf.term(found).backward()
    assert all(p.grad is None for p in source.head.parameters())


def test_lwf_needs_a_head_of_classes(numbers_source):
    lwf = options_class("regularizers", "lwf")()
    source = numbers_source()
    source.task = "regression"
    with pytest.raises(PlanError, match="is one of regression"):
        lwf.prepare(graft(source, 3), None, None)
    source.head = None
    with pytest.raises(PlanError, match="has none"):
        lwf.prepare(graft(source, 3), None, None)


def test_delta_is_the_mean_squared_distance_of_channels(numbers_source):
    source = numbers_source()
    target, delta = setting(source, "delta", strength=0.5, beta=0.2)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    found = batch(target)
    x, backbone, now = found.inputs, source.backbone, target.model.backbone
    one, two = backbone.one(x), backbone.two(backbone.one(x))
    by_hand = (now.one(x) - one).square().sum() / 8 + (now.two(now.one(x)) - two).square().sum() / 6
    by_hand = 0.5 * by_hand / 5 + 0.1 * target.model.head.weight.square().sum()
    torch.testing.assert_close(delta.term(found), by_hand)
    _, part = setting(source, "delta", strength=0.5, beta=0.0, blocks=("tw*",))
    by_hand = 0.5 * (now.two(now.one(x)) - two).square().sum() / 6 / 5
    torch.testing.assert_close(part.term(found), by_hand)


def test_delta_leaves_padding_out_and_takes_maps_by_channel():
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = channels({"hidden": hidden, "attention_mask": mask})
    assert found.shape == (2, 4, 3) and (found[0, :, 2] == 0).all() and (found[1] != 0).all()
    assert channels(hidden).shape == (2, 4, 3)
    assert channels(torch.zeros(2, 5, 7, 7)).shape == (2, 5, 7, 7)


def test_delta_weighs_channels_by_the_loss_without_each(numbers_source):
    torch.manual_seed(0)
    source, train = numbers_source(), Train()
    target = graft(source, 3)
    set_trainable(target, {b.name for b in target.blocks}, "frozen")
    with torch.no_grad():
        target.model.head.weight.normal_().mul_(5)  # else no channel is worth much more than another
    head = {n: t.clone() for n, t in target.model.head.state_dict().items()}
    regularizer = options_class("regularizers", "delta")(strength=0.5, beta=0.0, attention=True, examples=9)
    delta = regularizer.prepare(target, None, train)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    found = batch(target)
    value = delta.term(found)

    x, y, body = train.x[:9], train.y[:9], source.backbone

    def loss(features):
        logits = torch.nn.functional.linear(features, head["weight"], head["bias"])
        return torch.nn.functional.cross_entropy(logits, y)

    weights = []
    for before, above in ((body.one(x), body.two), (body.two(body.one(x)), torch.nn.Identity())):
        rises = []
        for j in range(before.shape[1]):
            silent = before.detach().clone()
            silent[:, j] = 0
            rises.append(loss(above(silent)) - loss(above(before)))
        weights.append(torch.stack(rises).softmax(0).detach())
    assert max(w.max() / w.min() for w in weights) > 2
    x, now = found.inputs, target.model.backbone
    by_hand = ((now.one(x) - body.one(x)).square() * weights[0]).sum()
    by_hand = by_hand + ((now(x) - body(x)).square() * weights[1]).sum()
    torch.testing.assert_close(value, 0.5 * by_hand / 5)

    assert len(train.computed) == 1
    delta.term(found)
    again = graft(source, 3)
    again.model.head.load_state_dict(head)
    regularizer.prepare(again, None, train).term(found)
    assert len(train.computed) == 1, "another seed from the same head computes nothing anew"
    regularizer.prepare(graft(source, 3, seed=1), None, train).term(found)
    assert len(train.computed) == 2, "another head is worth something else"


def test_a_silenced_channel_is_zero_in_its_copy_alone():
    for x in (torch.ones(2, 3), torch.ones(2, 3, 4, 4), torch.ones(2, 5, 3)):
        found = without(x, torch.tensor([0, 2]))
        assert found.shape == (4, *x.shape[1:]) and (x == 1).all()
        silent = channels(found) == 0
        silent = silent.flatten(2).all(2) if silent.ndim > 2 else silent
        assert silent.tolist() == [[True, False, False]] * 2 + [[False, False, True]] * 2
        assert found.sum() == x.sum() * 2 * 2 / 3
    text = {"hidden": torch.ones(2, 5, 3), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    found = without(text, torch.tensor([1]))
    assert (found["hidden"] == torch.tensor([1.0, 0, 1])).all()
    assert torch.equal(found["attention_mask"], text["attention_mask"])


def test_attention_goes_with_the_probes_head_alone():
    tree = {
        "source": {"ref": "bundled:efficientnet-lite0"},
        "data": {"path": "x"},
        "regularizers": {"delta": {"attention": True}},
        "fit": {"start": "random"},
    }
    with pytest.raises(PlanError, match=r"goes with probe alone, not random: set fit\.start"):
        check(tree)
    check(tree | {"fit": {"start": "probe"}})


def test_delta_needs_cuts_and_a_pattern_that_matches(numbers_source):
    source = numbers_source()
    with pytest.raises(PlanError, match=r'"stem" matches no block; there are: one, two'):
        options_class("regularizers", "delta")(blocks=("stem",)).prepare(graft(source, 3), None, None)
    source.blocks = tuple(replace(b, run=None) for b in source.blocks)
    with pytest.raises(PlanError, match=r"cannot be cut"):
        options_class("regularizers", "delta")().prepare(graft(source, 3), None, None)


def test_replay_is_the_source_rows_loss_through_the_old_head(numbers_source):
    source = numbers_source()
    target, replay = setting(source, "replay", strength=0.7)
    with torch.no_grad():
        for p in target.model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    rows, found = Rows(source), batch(target)
    for part in (slice(0, 10), slice(10, 20)):  # a new batch at every call
        logits = source.head(target.model.backbone(rows.x[part]))
        by_hand = 0.7 * torch.nn.functional.cross_entropy(logits, rows.y[part])
        torch.testing.assert_close(replay.term(found), by_hand)
    replay.term(found).backward()
    assert all(p.grad is None for p in source.head.parameters())


@pytest.mark.parametrize("labels", ["true", "sampled"])
def test_ewc_fisher_is_the_mean_of_squared_gradients(numbers_source, labels):
    source = numbers_source()
    rows = Rows(source)
    ewc = options_class("regularizers", "ewc")(examples=24, labels=labels, chunk=7)
    found = fisher(source.backbone, source.head, rows, ewc)
    y, generator = rows.y, torch.Generator().manual_seed(0)
    if labels == "sampled":
        drawn = []
        with torch.no_grad():
            for _, x, _ in rows.batches("fit"):
                p = source.head(source.backbone(x)).double().softmax(1)
                drawn.append(torch.multinomial(p, 1, generator=generator)[:, 0])
        y = torch.cat(drawn)
    params = dict(source.backbone.named_parameters())
    total, of_batch = {n: torch.zeros_like(p) for n, p in params.items()}, {}
    for i in range(24):
        loss = torch.nn.functional.cross_entropy(source.head(source.backbone(rows.x[i : i + 1])), y[i : i + 1])
        for n, g in zip(params, torch.autograd.grad(loss, params.values()), strict=True):
            total[n] += g.square() / 24
            of_batch[n] = of_batch.get(n, 0) + g / 24
    for n in params:
        torch.testing.assert_close(found[n], total[n], atol=1e-6, rtol=1e-5)
    far = max(float((found[n] - of_batch[n].square()).abs().max()) for n in params)
    assert far > 1e-3  # the square of the mean is something else
    part = options_class("regularizers", "ewc")(examples=5, labels="true")
    first = fisher(source.backbone, source.head, rows, part)
    torch.testing.assert_close(first["one.0.bias"], fisher_by_hand(source, rows.x[:5], rows.y[:5], "one.0.bias"))


class Branching(torch.nn.Module):
    """A backbone that looks at its inputs to decide, as attention masks are looked at."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if (x < 100).all() else self.inner(-x)


def test_ewc_fisher_of_a_model_that_branches_is_the_same(numbers_source):
    source = numbers_source()
    ewc = options_class("regularizers", "ewc")(examples=24, labels="true", chunk=7)
    straight = fisher(source.backbone, source.head, Rows(source), ewc)
    found = fisher(Branching(source.backbone), source.head, Rows(source), ewc)
    for name, value in straight.items():
        torch.testing.assert_close(found[f"inner.{name}"], value)


def fisher_by_hand(source, x, y, name):
    squares = []
    for i in range(len(x)):
        loss = torch.nn.functional.cross_entropy(source.head(source.backbone(x[i : i + 1])), y[i : i + 1])
        (g,) = torch.autograd.grad(loss, source.backbone.get_parameter(name))
        squares.append(g.square())
    return torch.stack(squares).mean(0)


def test_ewc_weighs_each_distance_by_its_fisher(numbers_source):
    source = numbers_source()
    target, ewc = setting(source, "ewc", strength=5.0, examples=24)
    with torch.no_grad():
        for p in target.model.backbone.parameters():
            p.add_(0.3)
    f = fisher(source.backbone, source.head, Rows(source), options_class("regularizers", "ewc")(examples=24))
    by_hand = 2.5 * 0.09 * sum(t.sum() for t in f.values())
    torch.testing.assert_close(ewc.term(batch(target)).detach(), by_hand, rtol=1e-4, atol=1e-7)


def test_ewc_and_replay_need_source_data(numbers_source):
    for name in ("ewc", "replay"):
        with pytest.raises(PlanError, match=f'"{name}" needs labelled source data'):
            options_class("regularizers", name)().prepare(graft(numbers_source(), 3), None, None)


def test_training_with_delta_stays_nearer_to_source_features(numbers_source, number_rows):
    source, (examples, targets) = numbers_source(), number_rows(64)
    train = make_batches(examples, targets, source.preprocess, 16)
    task = options_class("tasks", "classification")().make([(str(c),) for c in range(3)], ("y",))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    moved = {}
    for strength in (0.0, 10.0):
        target = graft(source, 3)
        delta = options_class("regularizers", "delta")(strength=strength, beta=0.0)
        chosen = Settings(5, dict.fromkeys(("one", "two", "head"), 0.01))
        fit(target, train, task, chosen, penalties={"delta": delta.prepare(target, None, None)})
        moved[strength] = float((target.model.backbone(x) - source.backbone(x)).detach().norm())
    assert moved[10.0] < moved[0.0] / 2
