"""From a spec to what the network sees: pictures, texts, or a function of one's own.

A picture becomes an uint8 tensor sample by sample; scaling to [0, 1] and normalisation work on the
batch, on its device. Without augmentation the steps are timm's evaluation transform, bit for bit.

What is random is keyed: a sample's augmentation is a function of (seed, epoch, id), drawn under a
forked generator, and the mixing of a batch is one of (seed, epoch, step).

MixUp: Zhang et al. 2018, https://arxiv.org/abs/1710.09412
CutMix: Yun et al. 2019, https://arxiv.org/abs/1905.04899
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import DataError, SourceError, shorten
from .keyed_random import Key, drawing, stable
from .types import Augment, CallableSpec, ImageSpec, Preprocess, TextSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..compute.arrays import Inputs


DECODED = 64_000_000  # bytes of decoded pictures that a process keeps

TOKENIZER = "tokenizer"  # the folder beside a saved spec that holds a text source's tokenizer


class Preprocessor(Protocol):
    """What a spec becomes; ``one`` then ``collate`` give the network's inputs."""

    def one(self, inputs: tuple[str, ...], augment: Augment | None = None, key: Key = ...) -> Any:
        """One sample. Random only with ``augment``, and then a function of ``key``."""
        ...

    def collate(self, samples: Sequence[Any]) -> Inputs:
        """Samples → a batch [B, …], or a dict of such: ``finish(stack(samples))``."""
        ...

    def stack(self, samples: Sequence[Any]) -> Inputs:
        """Samples → a batch as it travels: pictures as uint8."""
        ...

    def finish(self, batch: Any) -> Inputs:
        """A batch that has travelled → the network's inputs, on the device where it lies."""
        ...


def build(spec: Preprocess) -> ImagePreprocessor | TextPreprocessor | CallablePreprocessor:
    """The functions of a spec. Raises SourceError for a tokenizer that does not load."""
    if isinstance(spec, ImageSpec):
        return ImagePreprocessor(spec)
    return TextPreprocessor(spec) if isinstance(spec, TextSpec) else CallablePreprocessor(spec)


# ---------------------------------------------------------------- pictures


class ImagePreprocessor:
    """A picture is decoded and, for evaluation, resized and cropped by Pillow; what is random works on
    the tensor that this gives, sample by sample."""

    def __init__(self, spec: ImageSpec) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.spec = spec
        self.interpolation = InterpolationMode(spec.interpolation)
        resize = spec.resize if isinstance(spec.resize, int) else list(spec.resize)
        self._plain = v2.Compose(
            [v2.Resize(resize, self.interpolation, antialias=True), v2.CenterCrop(list(spec.size))]
        )
        self._varied: dict[Augment, Any] = {}
        self._decoded: dict[tuple[object, ...], Any] = {}  # by path and state of the file
        self._room = DECODED

    def one(self, inputs: tuple[str, ...], augment: Augment | None = None, key: Key = (0, 0, "")) -> Tensor:
        """The picture [C, H, W], uint8. Raises DataError, naming the file, if it does not read."""
        return self.varied(self.certain(inputs, whole_for(augment)), augment, key)

    def sized(self, picture: Any) -> Tensor:
        """A decoded picture, Pillow's, as evaluation sees it: [C, height, width], uint8."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        from .images import size_after

        size_after(picture.size, self.spec.resize)
        return pil_to_tensor(self._plain(picture))  # type: ignore[no-any-return]

    def certain(self, inputs: tuple[str, ...], whole: bool) -> Tensor:
        """What nothing random decides, uint8: the picture as it is decoded [C, H, W], or as evaluation
        sees it [C, height, width]. Raises DataError, naming the file, if it does not read."""
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

    def varied(self, picture: Tensor, augment: Augment | None, key: Key) -> Tensor:
        """What ``certain`` gave, augmented: [C, height, width], uint8."""
        if augment is None:
            return picture
        with drawing(key):
            return self._augmenting(augment)(picture)  # type: ignore[no-any-return]

    def _read(self, path: str) -> NDArray[np.uint8]:
        """The decoded picture [H, W, C]. The first ones that fit into DECODED bytes stay decoded."""
        try:
            stat = Path(path).stat()
        except OSError:
            return self._pixels(path)  # which says what is wrong
        key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key in self._decoded:
            return self._decoded[key]  # type: ignore[no-any-return]
        pixels = self._pixels(path)
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._decoded[key] = pixels
        return pixels

    def _pixels(self, path: str) -> NDArray[np.uint8]:
        import numpy as np

        from .images import read_picture

        pixels = np.array(read_picture(path, self.spec.channels))  # a copy, which may be written to
        return pixels.reshape(*pixels.shape[:2], self.spec.channels)

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        """[B, C, H, W], float32, normalised."""
        return self.finish(self.stack(samples))

    def stack(self, samples: Sequence[Tensor]) -> Tensor:
        """[B, C, H, W], uint8."""
        import torch

        return torch.stack(list(samples))

    def finish(self, pictures: Tensor) -> Tensor:
        """uint8 [B, C, H, W] → float32, normalised, where they lie: the same bits on every device."""
        import torch

        def lies(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=pictures.device)

        shape = (1, self.spec.channels, 1, 1)
        mean, std = lies(self.spec.mean).view(shape), lies(self.spec.std).view(shape)
        # by a plain number CUDA would not divide, but multiply by its rounded inverse
        return pictures.float().div_(lies(255)).sub_(mean).div_(std)

    def _augmenting(self, augment: Augment) -> Any:
        """uint8 → uint8 of the network's size, drawing from torch's global generator."""
        from torchvision.transforms import InterpolationMode, v2

        if augment not in self._varied:
            crop = v2.RandomResizedCrop(
                list(self.spec.size), augment.scale, augment.ratio, self.interpolation, antialias=True
            )
            by_pillow = self.interpolation == InterpolationMode.LANCZOS  # tensors have none
            steps: list[Any] = []
            if augment.random_resized_crop:
                steps = [v2.ToPILImage(), crop, v2.PILToTensor()] if by_pillow else [crop]
            steps += [v2.RandomHorizontalFlip()] if augment.flip else []
            if augment.randaugment:  # 0.5 ms a picture by Pillow, 2 on tensors
                varied = v2.RandAugment(2, augment.randaugment)
                steps += [v2.ToPILImage(), varied, v2.PILToTensor()]
            self._varied[augment] = v2.Compose(steps or [v2.Identity()])
        return self._varied[augment]


def whole_for(augment: Augment | None) -> bool:
    """Whether augmentation begins with the whole picture, not with what evaluation sees of it."""
    return augment is not None and augment.random_resized_crop


def mix(
    inputs: Inputs, targets: Tensor, outputs: int, augment: Augment, seed: int, epoch: int, step: int
) -> tuple[Inputs, Tensor]:
    """MixUp or CutMix of a batch: (inputs [B, C, H, W], targets [B, outputs] float).

    Class numbers [B] become one-hot rows before mixing. Without either the batch is returned as it
    is. A function of (seed, epoch, step). Raises ValueError for inputs that are not pictures.
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
        share = 1 - (bottom - top) * (right - left) / (height * width)  # as clipped at the border
    else:
        mixed = inputs * share + inputs[other] * (1 - share)
    return mixed, soft * share + soft[other.to(soft.device)] * (1 - share)


# ---------------------------------------------------------------- texts


class TextPreprocessor:
    def __init__(self, spec: TextSpec) -> None:
        from ..io.foreign_code import tokenizer_of

        self.spec = spec
        self.tokenizer = tokenizer_of(spec.tokenizer)
        if self.tokenizer.pad_token is None:  # as in GPT-2; the mask hides what is padded
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token is None:
            raise SourceError(f"{spec.tokenizer}: its tokenizer has no token to pad with: give it a pad_token")
        try:
            known = self.tokenizer.pad_token_id is not None
        except RecursionError:  # the token for the unknown is unknown itself
            known = False
        if not known:
            raise SourceError(
                f"{spec.tokenizer}: its token to pad with is not in its vocabulary; one of its files is damaged"
            )
        # `many` tokenises once and `collate` pads later, on purpose
        self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True

    def many(self, inputs: Sequence[tuple[str, ...]]) -> list[dict[str, list[int]]]:
        """Return token ids, masks and so on of each row, cut to ``max_length``; pairs lose the longer.

        Raises DataError for rows without a token, of which a model gives NaN or the padding's answer, and
        SourceError for a tokenizer that does not cut: the model has no positions beyond.
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
        """One row of ``many``; a text has no augmentation."""
        return self.many([inputs])[0]

    def collate(self, samples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """[B, T] each, int64, padded to the longest of the batch."""
        return dict(self.tokenizer.pad(list(samples), return_tensors="pt"))

    stack = collate

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Texts travel as they are."""
        return batch

    def lengths(self, inputs: Sequence[tuple[str, ...]]) -> list[int]:
        """Tokens of each row before anything is cut."""
        found: list[int] = []
        for start in range(0, len(inputs), 1024):
            part = self._encode(inputs[start : start + 1024], truncation=False, verbose=False)
            found += [len(row) for row in part["input_ids"]]
        return found

    def _encode(self, inputs: Sequence[tuple[str, ...]], **how: Any) -> dict[str, Any]:
        first = [row[0] for row in inputs]
        second = [row[1] for row in inputs] if inputs and len(inputs[0]) == 2 else None
        if not inputs:
            return {"input_ids": []}
        try:
            return dict(self.tokenizer(first, second, **how))
        except BaseException as error:  # the libraries raise all kinds, Exception itself too
            # Rust's panic is no Exception; what stops the process is none either, and goes on
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise SourceError(
                f"{self.spec.tokenizer}: its tokenizer fails on a text, one of its files is damaged ({why})"
            ) from error


def save_tokenizer(spec: TextSpec, folder: Path) -> None:
    """Writes the tokenizer's files where ``from_json(…, folder)`` looks for them."""
    TextPreprocessor(spec).tokenizer.save_pretrained(folder / TOKENIZER)


# ---------------------------------------------------------------- one's own


class CallablePreprocessor:
    def __init__(self, spec: CallableSpec) -> None:
        self.spec = spec

    def one(self, inputs: tuple[str, ...], augment: Augment | None = None, key: Key = (0, 0, "")) -> Tensor:
        """What the function returns; where it draws from torch, a function of ``key``."""

        with drawing(key):
            return self.spec.one(inputs)

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        import torch

        return torch.stack(list(samples))

    stack = collate

    def finish(self, batch: Tensor) -> Tensor:
        """What the function gave travels as it is."""
        return batch


# ---------------------------------------------------------------- JSON


def to_json(spec: Preprocess) -> dict[str, Any]:
    """A spec as plain JSON. Of a function of one's own only the fact is kept."""
    if isinstance(spec, ImageSpec):
        return {"kind": "image", **asdict(spec)}
    if isinstance(spec, TextSpec):  # the tokenizer is saved beside it, see save_tokenizer
        return {"kind": "text", "max_length": spec.max_length}
    return {"kind": "callable"}


def from_json(values: dict[str, Any], folder: Path) -> Preprocess:
    """The spec of ``to_json``; a text's tokenizer is the one saved in the folder.

    Raises SourceError for anything else, and for preprocessing of one's own.
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
