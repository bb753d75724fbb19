"""Explanation of an answer by occlusion: cover each part of the input in turn and compute the answer again.

    importance of a part = evidence with everything − evidence with that part covered

Evidence of a class or label is its log-odds, log p ÷ (1 − p), which still change where p is near 100 %: 0.7
more doubles the odds. Evidence of a number is the number, in its own units.

Occlusion: Zeiler and Fergus 2014, 1311.2901, section 4.2; captum computes it. A square of the mean colour covers
a picture on a coarse grid; the tokenizer's mask covers a text word by word. The number of covered inputs has a
bound for any request: (GRID − 1)² of a picture, MAX_PIECES of a text.
"""

from __future__ import annotations

from io import BytesIO
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..data.preprocessing import TextPreprocessor
from .schemas import Piece

if TYPE_CHECKING:
    from torch import Tensor

    from ..compute.arrays import FloatArray
    from .model import ServedModel


GRID = 8  # cells a side of a picture; a square covers 2 × 2 of them

MAX_PIECES = 64  # pieces of a text; in a longer text neighbouring words share a piece

ROWS_PER_PASS = 16  # covered inputs in a forward pass


def picture_cells(served: ServedModel, sample: Tensor, output: int) -> FloatArray:
    """Return the importance of each cell [GRID, GRID] of a sample [C, H, W]: the mean over its squares."""
    from captum.attr import Occlusion

    inputs = served.predictor.preprocessor.collate([sample])
    assert isinstance(inputs, torch.Tensor)
    channels, height, width = sample.shape
    down, across = max(1, height // GRID), max(1, width // GRID)
    with torch.inference_mode():
        attributions = Occlusion(_score(served, output)).attribute(
            inputs,
            sliding_window_shapes=(channels, 2 * down, 2 * across),
            strides=(channels, down, across),
            baselines=0.0,  # after normalisation: the mean colour
            perturbations_per_eval=ROWS_PER_PASS,
        )
    heat = attributions[0].float().mean(0)  # [H, W]
    cells = torch.nn.functional.adaptive_avg_pool2d(heat[None, None], GRID)[0, 0]
    return np.asarray(cells.numpy(), np.float64)


def draw_heat(sample: Tensor, cells: FloatArray) -> bytes:
    """Return a PNG of the picture as the network gets it: orange cells speak for the answer, blue ones against."""
    pixels = sample.permute(1, 2, 0).numpy()  # [H, W, C]
    flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]
    picture = Image.fromarray(np.ascontiguousarray(flat)).convert("L").convert("RGB")
    strength = float(np.abs(cells).max())
    scaled = (cells / (strength or 1.0)).astype(np.float32)
    heat = Image.fromarray(scaled).resize(picture.size, Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(heat), -1, 1)[..., None]  # [H, W, 1]
    colour = np.where(values > 0, (235.0, 110.0, 0.0), (20.0, 90.0, 220.0))
    share = 0.75 * np.abs(values)
    mixed = (1 - share) * np.asarray(picture, np.float32) + share * colour
    file = BytesIO()
    Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def text_pieces(served: ServedModel, texts: tuple[str, ...], output: int) -> list[Piece]:
    """Return the pieces of the texts that the model read, each with its importance."""
    from captum.attr import FeatureAblation

    p = served.predictor.preprocessor
    assert isinstance(p, TextPreprocessor)
    sample, spans = _spans(served, p, texts)
    if not spans:
        return []
    inputs = p.stack([sample])
    names = [name for name in inputs if name != "input_ids"]
    ids = inputs["input_ids"]  # [1, T]
    special = len(spans)  # one more part holds the tokenizer's own tokens
    mask = torch.full_like(ids, special)
    for part, (tokens, _, _, _) in enumerate(spans):
        mask[0, tokens] = part
    cover = next(
        t for t in (p.tokenizer.mask_token_id, p.tokenizer.unk_token_id, p.tokenizer.pad_token_id) if t is not None
    )
    score = _score(served, output)

    def of(ids: Tensor, *others: Tensor) -> Any:
        return score({"input_ids": ids, **dict(zip(names, others, strict=True))})

    with torch.inference_mode():
        attributions = FeatureAblation(of).attribute(
            ids,
            baselines=cover,
            feature_mask=mask,
            perturbations_per_eval=ROWS_PER_PASS,
            additional_forward_args=tuple(inputs[n] for n in names),
        )
    return [
        Piece(text=texts[which][start:end], importance=float(attributions[0, tokens[0]]), second=which == 1)
        for tokens, which, start, end in spans
    ]


Span = tuple[list[int], int, int, int]  # tokens, index of the text, first letter, letter after the last


def _spans(served: ServedModel, p: TextPreprocessor, texts: tuple[str, ...]) -> tuple[dict[str, list[int]], list[Span]]:
    """Return the sample, and the pieces of the texts with their tokens: words, MAX_PIECES at most."""
    how = {"truncation": True, "max_length": p.spec.max_length}
    with served.tokenizing:
        encoded = p.tokenizer(texts[0], texts[1] if len(texts) == 2 else None, return_offsets_mapping=True, **how)
    offsets = encoded.pop("offset_mapping")
    words, which = encoded.word_ids(), encoded.sequence_ids()
    words_found: list[Span] = []
    for (text, word), group in groupby(range(len(offsets)), key=lambda token: (which[token], words[token])):
        tokens = list(group)
        if text is not None and word is not None:
            words_found.append((tokens, text, offsets[tokens[0]][0], offsets[tokens[-1]][1]))
    size = -(-len(words_found) // MAX_PIECES)
    joined: list[Span] = []
    for text in (0, 1):
        own = [s for s in words_found if s[1] == text]
        for i in range(0, len(own), size or 1):
            some = own[i : i + size]
            begin = joined[-1][3] if joined and joined[-1][1] == text else 0  # with the space before
            joined.append(([t for s in some for t in s[0]], text, begin, some[-1][3]))
    return dict(encoded), joined


def _score(served: ServedModel, output: int) -> Any:
    """Return a function from inputs to the evidence for one output, [B]."""
    p = served.predictor
    others = [i for i in range(p.task.outputs) if i != output]

    def score(inputs: Any) -> Tensor:
        logits: Tensor = p.model(p.compute.to_device(inputs)).float().cpu()
        if p.task.activation == "softmax":
            return logits[:, output] - logits[:, others].logsumexp(1)
        scores = logits if p.task.activation == "sigmoid" else p.task.scores(logits)
        return scores[:, output]

    return score
