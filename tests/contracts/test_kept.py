"""What is kept is what was judged: every freezing strategy on small sources of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from regraft.model.grafting import graft
from regraft.model.trainable import set_trainable
from regraft.model.types import Source, SourceOptions
from regraft.pipeline import predictor
from regraft.pipeline.finish import save_model
from regraft.plugins import make, names, options_class
from regraft.runs.folder import RunFolder
from regraft.sources import load_source
from regraft.tasks.classification import Classification

SOURCES = ("test_resnet", "test_vit", "test_nfnet")


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp(request.param) / "w"
    net = timm.create_model(request.param)
    with torch.no_grad():
        for tensor in net.parameters():
            if not tensor.any():
                tensor.normal_(std=0.02)
    save_file({k: v.contiguous().clone() for k, v in net.state_dict().items()}, file)
    return load_source(f"timm:{request.param}", SourceOptions(weights=file, image_size=64))


@pytest.mark.parametrize("name", names("freezing"))
def test_the_model_that_is_loaded_gives_what_was_judged(source: Source, name: str, tmp_path: Path) -> None:
    made, problems = make(options_class("freezing", name), {}, "freezing")
    assert not problems
    strategy: Any = made
    x = source.example
    assert x is not None
    target = graft(source, 2)
    start = target.model.eval()(x).detach()
    adapted = strategy.adapted(target, 0) if hasattr(strategy, "adapted") else None
    fitted = adapted.__enter__() if adapted else target
    blocks = [b.name for b in fitted.blocks]
    for epoch in (1, 2, 3):
        set_trainable(fitted, strategy(blocks, epoch), "train")
        parameters = [p for p in fitted.model.parameters() if p.requires_grad]
        loss = torch.nn.functional.cross_entropy(fitted.model(x), torch.tensor([0, 1]))
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if g is not None:
                p.data -= 0.05 * g / (g.norm() + 1e-12)
        judged = fitted.model.eval()(x).detach()  # after each epoch, as a fit does
    if adapted:
        adapted.__exit__(None, None, None)
    torch.testing.assert_close(target.model.eval()(x), judged, rtol=1e-4, atol=1e-5)
    assert not torch.equal(start, judged)
    task = Classification().make([("a",), ("b",)], ("label",))
    with RunFolder(tmp_path / "run") as run:
        save_model(run, target, task)
    with torch.no_grad():
        assert torch.equal(predictor.load(tmp_path / "run").model(x), target.model(x))
