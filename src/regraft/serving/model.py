"""A run's model as the server asks it: request → sample → answer.

Pictures and texts take the path of ``Predictor.predict``: the same reader, transform, tokenizer, backbone
and head. A row that is computed alone has the same bits; in a batch its sums may round otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..data.decoding import Wanted
from ..data.preprocessing import ImagePreprocessor
from ..errors import RegraftError, SourceError, UsageError
from ..evidence.ood import FILE, Novelty, read_novelty
from ..io import guarded
from ..pipeline.predictor import Predictor, load
from .limits import Limits

if TYPE_CHECKING:
    from ..compute.arrays import FloatArray


@dataclass(frozen=True)
class Answer:
    """What the model said about one row."""

    scores: FloatArray  # [C] probabilities, or numbers in their own units
    calibrated: FloatArray | None  # [C] at the run's temperature, where it has one
    distance: float | None  # to the training data, where the run can tell


@dataclass(frozen=True)
class ServedModel:
    """The model of a run, and what it was found to be like."""

    name: str
    predictor: Predictor
    pairs: bool  # a row is two texts
    sharper: Predictor | None = None  # the same with calibrated probabilities
    novelty: Novelty | None = None
    notes: tuple[str, ...] = ()  # what the user should know
    tokenizing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pictures(self) -> bool:
        return self.predictor.kind == "image"

    @property
    def task(self) -> str:
        return self.predictor.task.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.task.classes

    def wanted(self, limits: Limits) -> Wanted:
        """Return how a picture is to be decoded."""
        spec = self._preprocessor.spec
        filter_ = Image.Resampling[spec.interpolation.upper()]
        return Wanted(spec.channels, spec.resize, filter_, int(limits.megapixels * 1e6))

    def picture(self, resized: Image.Image) -> Any:
        """Return the sample of a picture that was decoded as ``wanted`` says."""
        return self._preprocessor.sized(resized)

    @property
    def _preprocessor(self) -> ImagePreprocessor:
        assert isinstance(self.predictor.preprocessor, ImagePreprocessor)
        return self.predictor.preprocessor

    def text(self, texts: tuple[str, ...]) -> Any:
        """One text, or two → a sample."""
        with self.tokenizing:  # a fast tokenizer's settings are not to be changed by two threads
            return self.predictor.preprocessor.one(texts)

    def answers(self, samples: Sequence[Any]) -> list[Answer]:
        """Raises RegraftError for scores that are not finite."""
        p = self.predictor
        with torch.inference_mode():
            inputs = p.compute.to_device(p.preprocessor.collate(samples))
            features = p.model.get_submodule("backbone")(inputs)  # [B, D]
            scores = _scores(p, features)
            sharp = None if self.sharper is None else _scores(self.sharper, features)
        far = None
        if self.novelty is not None:
            far = self.novelty.distances(features.float().cpu().numpy())
        if not np.isfinite(scores).all():
            raise RegraftError("the model gives numbers that are not finite for this input")
        return [
            Answer(row, None if sharp is None else sharp[i], None if far is None else float(far[i]))
            for i, row in enumerate(scores)
        ]

    def warm_up(self) -> None:
        """One row, so that the first request does not pay for what is made once."""
        if self.pictures:
            height, width = self.predictor.preprocessor.spec.size  # type: ignore[attr-defined]
            channels = self.predictor.preprocessor.spec.channels  # type: ignore[attr-defined]
            sample: Any = torch.zeros(channels, height, width, dtype=torch.uint8)
        else:
            sample = self.text(("a", "b") if self.pairs else ("a",))
        self.answers([sample])


def _scores(p: Predictor, features: Any) -> FloatArray:
    logits = p.model.get_submodule("head")(features).float().cpu()
    found: FloatArray = p.task.scores(logits).numpy()
    return found


def open_run(run: Path, device: str = "cpu") -> ServedModel:
    """Raises UsageError or SourceError for a folder that is no run, or one that cannot be served."""
    predictor = load(run, device=device)
    if predictor.kind not in ("image", "text"):
        raise UsageError(f"{run} takes neither pictures nor texts: use regraft.load from Python")
    notes: list[str] = []
    try:
        novelty = read_novelty(run / "model")
    except SourceError as error:
        novelty = None
        notes.append(f"no warning about inputs unlike the training data: {error}")
    if novelty is None and not notes:
        there = (run / "model" / FILE).is_file()
        why = "is of other weights" if there else "was not kept: too few rows of val, or an older run"
        notes.append(f"no warning about inputs unlike the training data: its measure {why}")
    temperature = predictor.temperature
    if temperature is None and not predictor.task.has_numbers:
        notes.append("probabilities are not calibrated: the run fitted no temperature")
    return ServedModel(
        name=run.resolve().name,
        predictor=predictor,
        pairs=predictor.kind == "text" and _pairs(run),
        sharper=None if temperature is None else predictor.calibrated(),
        novelty=novelty,
        notes=tuple(notes),
    )


def _pairs(run: Path) -> bool:
    """Whether the run's rows are two texts each; its plan says so. Nothing else of it is looked at."""
    data = (guarded.read_toml(run, "plan.toml") or {}).get("data")
    columns = data.get("text") if isinstance(data, dict) else None
    return isinstance(columns, list) and len(columns) == 2
