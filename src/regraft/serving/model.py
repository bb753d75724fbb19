"""A run's model behind the server: from a request to a sample, from samples to answers.

Pictures and texts take the path of ``Predictor.predict``: the same reader, transform, tokenizer, backbone and head.
A row computed alone has the same bits; in a batch its sums may round differently.
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
    """Answer of the model to one row."""

    scores: FloatArray  # [C] probabilities, or numbers in their own units
    calibrated: FloatArray | None  # [C] at the run's temperature; None: the run has none
    distance: float | None  # distance to the training data; None: the run cannot tell


@dataclass(frozen=True)
class ServedModel:
    """The model of a run, with its calibration, its measure of distance and notes on both."""

    name: str
    predictor: Predictor
    pairs: bool  # each row is two texts
    calibrated: Predictor | None = None  # the model with calibrated probabilities
    novelty: Novelty | None = None
    notes: tuple[str, ...] = ()  # sentences for the user
    tokenizing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pictures(self) -> bool:
        """Return whether the run takes pictures; else it takes texts."""
        return self.predictor.kind == "image"

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the outputs."""
        return self.predictor.task.classes

    def wanted(self, limits: Limits) -> Wanted:
        """Return the size, channels and limits for decoding a picture."""
        spec = self._preprocessor.spec
        filter_ = Image.Resampling[spec.interpolation.upper()]
        return Wanted(spec.channels, spec.resize, filter_, int(limits.megapixels * 1e6))

    def picture(self, resized: Image.Image) -> Any:
        """Return the sample of a picture decoded by ``wanted``."""
        return self._preprocessor.sized(resized)

    @property
    def _preprocessor(self) -> ImagePreprocessor:
        assert isinstance(self.predictor.preprocessor, ImagePreprocessor)
        return self.predictor.preprocessor

    def text(self, texts: tuple[str, ...]) -> Any:
        """Return the sample of one text, or of two."""
        with self.tokenizing:  # two threads must not change a fast tokenizer's settings at once
            return self.predictor.preprocessor.one(texts)

    def answers(self, samples: Sequence[Any]) -> list[Answer]:
        """Return an answer for each sample. Raises RegraftError for scores that are not finite."""
        p = self.predictor
        with torch.inference_mode():
            inputs = p.compute.to_device(p.preprocessor.collate(samples))
            features = p.model.get_submodule("backbone")(inputs)  # [B, D]
            scores = _scores(p, features)
            calibrated = None if self.calibrated is None else _scores(self.calibrated, features)
        distances = None
        if self.novelty is not None:
            distances = self.novelty.distances(features.float().cpu().numpy())
        if not np.isfinite(scores).all():
            raise RegraftError("the model gives numbers that are not finite for this input")
        return [
            Answer(
                row, None if calibrated is None else calibrated[i], None if distances is None else float(distances[i])
            )
            for i, row in enumerate(scores)
        ]

    def warm_up(self) -> None:
        """Compute one row, so that the first request does not wait for one-time set-up."""
        if self.pictures:
            spec = self._preprocessor.spec
            sample: Any = torch.zeros(spec.channels, *spec.size, dtype=torch.uint8)
        else:
            sample = self.text(("a", "b") if self.pairs else ("a",))
        self.answers([sample])


def _scores(p: Predictor, features: Any) -> FloatArray:
    """Return the task's scores [B, C] of features [B, D]."""
    logits = p.model.get_submodule("head")(features).float().cpu()
    scores: FloatArray = p.task.scores(logits).numpy()
    return scores


def open_run(run: Path, device: str = "cpu") -> ServedModel:
    """Load a run to serve it. Raises UsageError or SourceError for a folder that is no run or cannot be served."""
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
        exists = (run / "model" / FILE).is_file()
        why = "is of other weights" if exists else "is missing: too few rows of val, or an older run"
        notes.append(f"no warning about inputs unlike the training data: its measure {why}")
    temperature = predictor.temperature
    if temperature is None and not predictor.task.has_numbers:
        notes.append(f"probabilities are not calibrated: {predictor.uncalibrated}")
    if predictor.rule is None:
        notes.append(f"answers have no set that holds the truth at a stated rate: {predictor.without_sets}")
    return ServedModel(
        name=run.resolve().name,
        predictor=predictor,
        pairs=predictor.kind == "text" and _pairs(run),
        calibrated=None if temperature is None else predictor.calibrated(),
        novelty=novelty,
        notes=tuple(notes),
    )


def _pairs(run: Path) -> bool:
    """Return whether each row of the run is two texts, by its plan."""
    data = (guarded.read_toml(run, "plan.toml") or {}).get("data")
    columns = data.get("text") if isinstance(data, dict) else None
    return isinstance(columns, list) and len(columns) == 2
