"""Preprocessing of images, of texts, or by a function of the user's: from a spec to the network's inputs.

An image becomes a uint8 tensor, sample by sample. Scaling to [0, 1] and normalisation work on the batch, on
its device. Without augmentation the steps equal timm's evaluation transform, bit for bit.

Random steps are keyed. A sample's augmentation is a function of (seed, epoch, id), and the mixing of a batch
is a function of (seed, epoch, step).

MixUp: Zhang et al. 2018, https://arxiv.org/abs/1710.09412
CutMix: Yun et al. 2019, https://arxiv.org/abs/1905.04899
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import DataError, SourceError, shorten
from .ordering import Key, drawing, stable
from .types import Augment, CallableSpec, ImageSpec, Preprocess, TextSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..compute.arrays import Inputs


MAX_DECODED_BYTES = 64_000_000  # of images that a process keeps decoded

TOKENIZER = "tokenizer"  # folder beside a saved spec, with a text source's tokenizer


class Preprocessor(Protocol):
    """Functions of a spec, to be inherited: ``one`` and then ``collate`` make the network's inputs."""

    def one(self, inputs: tuple[str, ...], augment: Augment | None = None, key: Key = ...) -> Any:
        """Return one sample. With ``augment`` it is random, and a function of ``key``."""
        ...

    def collate(self, samples: Sequence[Any]) -> Inputs:
        """Return a batch [B, …], or a dict of batches."""
        return self.finish(self.stack(samples))

    def stack(self, samples: Sequence[Any]) -> Inputs:
        """Join samples to a batch as it travels to the device: images as uint8."""
        import torch

        return torch.stack(list(samples))

    def finish(self, batch: Any) -> Inputs:
        """Return the network's inputs from a stacked batch, on the batch's device; by default the batch."""
        inputs: Inputs = batch
        return inputs


def build(spec: Preprocess) -> Preprocessor:
    """Return the preprocessor of a spec. Raises SourceError for a tokenizer that does not load."""
    if isinstance(spec, ImageSpec):
        return ImagePreprocessor(spec)
    return TextPreprocessor(spec) if isinstance(spec, TextSpec) else CallablePreprocessor(spec)


# ---------------------------------------------------------------- images


class ImagePreprocessor(Preprocessor):
    """A preprocessor of image files.

    Pillow decodes an image and, for evaluation, resizes and crops it. Augmentation works on the tensor that
    results, sample by sample.
    """

    def __init__(self, spec: ImageSpec) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.spec = spec
        self.interpolation = InterpolationMode(spec.interpolation)
        resize = spec.resize if isinstance(spec.resize, int) else list(spec.resize)
        self._plain = v2.Compose(
            [v2.Resize(resize, self.interpolation, antialias=True), v2.CenterCrop(list(spec.size))]
        )
        self._varied: dict[Augment, Any] = {}
        self._decoded: dict[tuple[object, ...], Any] = {}  # path and state of the file → [H, W, C]
        self._free_bytes = MAX_DECODED_BYTES

    def one(self, inputs: tuple[str, ...], augment: Augment | None = None, key: Key = (0, 0, "")) -> Tensor:
        """Return the image [C, H, W], uint8. Raises DataError, naming the file, if it does not read."""
        return self.augmented(self.decoded(inputs, starts_whole(augment)), augment, key)

    def sized(self, picture: Any) -> Tensor:
        """Resize and crop an image of Pillow's as for evaluation; return [C, height, width], uint8."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        from .images import size_after

        size_after(picture.size, self.spec.resize)
        return pil_to_tensor(self._plain(picture))  # type: ignore[no-any-return]

    def decoded(self, inputs: tuple[str, ...], whole: bool) -> Tensor:
        """Return an image before any random step, uint8: as decoded [C, H, W] if ``whole``, else as for
        evaluation [C, height, width].

        Raises DataError, naming the file, if it does not read.
        """
        import torch
        from PIL import Image

        pixels = self._read(inputs[0])  # [H, W, C]
        if whole:
            return torch.from_numpy(pixels).permute(2, 0, 1)
        picture = Image.fromarray(pixels[..., 0] if self.spec.channels == 1 else pixels)
        try:
            return self.sized(picture)
        except DataError as error:
            raise DataError(f"{inputs[0]} {error}") from error

    def augmented(self, picture: Tensor, augment: Augment | None, key: Key) -> Tensor:
        """Return an image that ``decoded`` returned, augmented: [C, height, width], uint8."""
        if augment is None:
            return picture
        with drawing(key):
            return self._augmentation(augment)(picture)  # type: ignore[no-any-return]

    def _read(self, path: str) -> NDArray[np.uint8]:
        """Return the decoded image [H, W, C]. The first MAX_DECODED_BYTES of images stay decoded."""
        try:
            stat = Path(path).stat()
        except OSError:
            return self._pixels(path)  # it raises an error that names the cause
        key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key in self._decoded:
            return self._decoded[key]  # type: ignore[no-any-return]
        pixels = self._pixels(path)
        if pixels.nbytes <= self._free_bytes:
            self._free_bytes -= pixels.nbytes
            self._decoded[key] = pixels
        return pixels

    def _pixels(self, path: str) -> NDArray[np.uint8]:
        import numpy as np

        from .images import read_picture

        pixels = np.array(read_picture(path, self.spec.channels))  # a copy, because torch needs writable memory
        return pixels.reshape(*pixels.shape[:2], self.spec.channels)

    def finish(self, pictures: Tensor) -> Tensor:
        """Scale and normalise images [B, C, H, W] from uint8 to float32, with the same bits on every device."""
        import torch

        def on_device(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=pictures.device)

        shape = (1, self.spec.channels, 1, 1)
        mean, std = on_device(self.spec.mean).view(shape), on_device(self.spec.std).view(shape)
        # CUDA would multiply by the rounded inverse of a Python number; it divides by a tensor
        return pictures.float().div_(on_device(255)).sub_(mean).div_(std)

    def _augmentation(self, augment: Augment) -> Any:
        """Return the transform from uint8 to uint8 of the network's size; it draws from torch's generator."""
        from torchvision.transforms import InterpolationMode, v2

        if augment not in self._varied:
            crop = v2.RandomResizedCrop(
                list(self.spec.size), augment.scale, augment.ratio, self.interpolation, antialias=True
            )
            by_pillow = self.interpolation == InterpolationMode.LANCZOS  # v2 has no Lanczos for tensors
            steps: list[Any] = []
            if augment.random_resized_crop:
                steps = [v2.ToPILImage(), crop, v2.PILToTensor()] if by_pillow else [crop]
            steps += [v2.RandomHorizontalFlip()] if augment.flip else []
            if augment.randaugment:  # 0.5 ms an image by Pillow, 2 ms on tensors
                varied = v2.RandAugment(2, augment.randaugment)
                steps += [v2.ToPILImage(), varied, v2.PILToTensor()]
            self._varied[augment] = v2.Compose(steps or [v2.Identity()])
        return self._varied[augment]


def starts_whole(augment: Augment | None) -> bool:
    """Return whether augmentation starts from the whole image; else it starts from evaluation's crop."""
    return augment is not None and augment.random_resized_crop


def mix(
    inputs: Inputs, targets: Tensor, outputs: int, augment: Augment, seed: int, epoch: int, step: int
) -> tuple[Inputs, Tensor]:
    """Apply MixUp or CutMix to a batch; return inputs [B, C, H, W] and targets [B, outputs], float.

    Class numbers [B] become one-hot rows before mixing. A batch for which neither is set is returned
    unchanged. The result is a function of (seed, epoch, step). Raises ValueError for inputs that are no
    images.
    """
    import numpy as np
    import torch
    from torch.nn.functional import one_hot

    if not augment.mixup and not augment.cutmix:
        return inputs, targets
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != 4:
        raise ValueError("MixUp and CutMix need pictures [B, C, H, W]")
    rng = np.random.default_rng(stable("mix", seed, epoch, step))
    soft = targets if targets.is_floating_point() else one_hot(targets, outputs).float()
    cut = bool(augment.cutmix) and (not augment.mixup or rng.random() < 0.5)
    alpha = augment.cutmix if cut else augment.mixup
    share = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(inputs))).to(inputs.device)
    if cut:
        height, width = inputs.shape[-2:]
        side = (1 - share) ** 0.5
        y, x = int(rng.integers(height)), int(rng.integers(width))
        top, bottom = (int(np.clip(y + s * side * height / 2, 0, height)) for s in (-1, 1))
        left, right = (int(np.clip(x + s * side * width / 2, 0, width)) for s in (-1, 1))
        mixed = inputs.clone()
        mixed[..., top:bottom, left:right] = inputs[other, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)  # of the box after clipping
    else:
        mixed = inputs * share + inputs[other] * (1 - share)
    return mixed, soft * share + soft[other.to(soft.device)] * (1 - share)


# ---------------------------------------------------------------- texts


class TextPreprocessor(Preprocessor):
    """A preprocessor of texts, or of pairs of texts, by a source's tokenizer."""

    def __init__(self, spec: TextSpec) -> None:
        from ..io.foreign_code import tokenizer_of

        self.spec = spec
        self.tokenizer = tokenizer_of(spec.tokenizer)
        if self.tokenizer.pad_token is None:  # as in GPT-2; the mask hides the padding
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token is None:
            raise SourceError(f"{spec.tokenizer}: its tokenizer has no token to pad with: give it a pad_token")
        try:
            known = self.tokenizer.pad_token_id is not None
        except RecursionError:  # the token for unknown tokens is itself unknown
            known = False
        if not known:
            raise SourceError(
                f"{spec.tokenizer}: its token to pad with is not in its vocabulary; one of its files is damaged"
            )
        # `many` tokenises once and `collate` pads each batch, so this advice does not apply
        self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True

    def many(self, inputs: Sequence[tuple[str, ...]]) -> list[dict[str, list[int]]]:
        """Return token ids, masks and so on of each row, cut to ``max_length``; a pair loses of its longer text.

        Raises DataError for rows without a token, because a model's output for them is NaN or that of the
        padding. Raises SourceError for a tokenizer that does not cut, because the model has no more positions.
        """
        limit = self.spec.max_length
        encoded = self._encode(inputs, truncation=True, max_length=limit)
        longest = max(map(len, encoded["input_ids"]), default=0)
        if longest > limit:
            raise SourceError(
                f"{self.spec.tokenizer}: its tokenizer makes {longest} tokens of a text where {limit} are the "
                "limit; tokenizer.json is damaged"
            )
        mute = [i for i, row in enumerate(encoded["input_ids"]) if not row]
        if mute:
            some = shorten([repr(inputs[i][0][:40]) for i in mute], 3)
            raise DataError(f"the source's tokenizer makes no token of {len(mute)} texts: {some}")
        return [{k: v[i] for k, v in encoded.items()} for i in range(len(inputs))]

    def one(
        self, inputs: tuple[str, ...], augment: Augment | None = None, key: Key = (0, 0, "")
    ) -> dict[str, list[int]]:
        """Return one row of ``many``. A text has no augmentation."""
        return self.many([inputs])[0]

    def stack(self, samples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return [B, T] by name, int64, padded to the longest text of the batch."""
        return dict(self.tokenizer.pad(list(samples), return_tensors="pt"))

    def lengths(self, inputs: Sequence[tuple[str, ...]]) -> list[int]:
        """Return the number of tokens of each row before it is cut."""
        counts: list[int] = []
        for start in range(0, len(inputs), 1024):
            part = self._encode(inputs[start : start + 1024], truncation=False, verbose=False)
            counts += [len(row) for row in part["input_ids"]]
        return counts

    def _encode(self, inputs: Sequence[tuple[str, ...]], **how: Any) -> dict[str, Any]:
        first = [row[0] for row in inputs]
        second = [row[1] for row in inputs] if inputs and len(inputs[0]) == 2 else None
        if not inputs:
            return {"input_ids": []}
        try:
            return dict(self.tokenizer(first, second, **how))
        except BaseException as error:  # the libraries raise errors of all kinds, Exception itself too
            # a panic of Rust is no Exception; KeyboardInterrupt and SystemExit are none either and pass
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise SourceError(
                f"{self.spec.tokenizer}: its tokenizer fails on a text, one of its files is damaged ({why})"
            ) from error


def save_tokenizer(spec: TextSpec, folder: Path) -> None:
    """Write the tokenizer's files to the place where ``from_json(…, folder)`` looks for them."""
    TextPreprocessor(spec).tokenizer.save_pretrained(folder / TOKENIZER)


# ---------------------------------------------------------------- a function


class CallablePreprocessor(Preprocessor):
    """A preprocessor that calls a function of the user's."""

    def __init__(self, spec: CallableSpec) -> None:
        self.spec = spec

    def one(self, inputs: tuple[str, ...], augment: Augment | None = None, key: Key = (0, 0, "")) -> Tensor:
        """Return the function's value. Random numbers that it draws from torch depend on ``key`` alone."""
        with drawing(key):
            return self.spec.one(inputs)


# ---------------------------------------------------------------- JSON


def to_json(spec: Preprocess) -> dict[str, Any]:
    """Return a spec as plain JSON. Of a function it keeps only that there is one."""
    if isinstance(spec, ImageSpec):
        return {"kind": "image", **asdict(spec)}
    if isinstance(spec, TextSpec):  # save_tokenizer writes the tokenizer
        return {"kind": "text", "max_length": spec.max_length}
    return {"kind": "callable"}


def from_json(values: dict[str, Any], folder: Path) -> Preprocess:
    """Return the spec that ``to_json`` wrote; a text's tokenizer is the one in the folder.

    Raises SourceError for other values, and for a function, which is not saved.
    """
    from pydantic import TypeAdapter, ValidationError

    plain = dict(values)
    kind = plain.pop("kind", None)
    try:
        if kind == "image":
            return TypeAdapter(ImageSpec).validate_python(plain)
        if kind == "text":
            return TextSpec(str(folder / TOKENIZER), int(plain["max_length"]))
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{folder}: the preprocessing does not read: {error}") from error
    if kind == "callable":
        raise SourceError(f"{folder} was fitted with preprocessing of one's own, which is not saved; pass it in")
    raise SourceError(f'{folder}: unknown preprocessing "{kind}"')
