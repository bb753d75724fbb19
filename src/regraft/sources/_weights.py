"""Read a weights file safely, and account for every tensor in it.

A file is read by content, not by name: safetensors, else ``torch.load(weights_only=True)``. There
is no fallback to unsafe loading: what holds code is refused and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SourceError, shorten
from ..types import LoadedTensor

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which trainers nest weights
EXPANDED = 1_000_000  # values that a view may claim beyond what is stored
PREFIXES = ("module.", "backbone.", "model.")  # what wrappers put before every name


@dataclass(frozen=True)
class Weights:
    tensors: dict[str, Tensor]
    digest: str  # sha256 of the file, hex
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """``state`` holds what can be loaded, under the model's names, in float32."""

    state: dict[str, Tensor]
    report: list[LoadedTensor]
    head_kept: bool


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Weights:
    """The tensors of a safetensors or torch file.

    Raises SourceError for a file that is absent, damaged, of another kind, or holds code.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such weights file")
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # safetensors: 8 bytes of header length, then JSON
        return Weights(sound(read_safetensors(path), path), sha256(path))
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        tensors, notes = unwrap(read_torch(path), path)
        return Weights(sound(tensors, path), sha256(path), notes)
    raise SourceError(f"{path}: neither a safetensors nor a torch weights file, or cut short")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # type: ignore[no-any-return]
    except (SafetensorError, ValueError, OSError) as error:
        raise SourceError(f"{path}: damaged safetensors file ({error}); fetch it again") from error


def read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on the pickle's age; the outcome decides
            # by content: given a path, torch also looks at its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path}: refused, nothing executed: it holds more than tensors (code or a whole "
            "module) or is damaged; remedy: where you trust it, load it in a sandbox and save its "
            "state_dict() with safetensors.torch.save_file"
        ) from error
    except Exception as error:  # as many kinds as there are ways for a file to be damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path}: damaged torch file ({reason}); fetch it again") from error


def unwrap(loaded: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a possibly nested checkpoint, and what was unwrapped."""
    notes: list[str] = []
    while isinstance(loaded, Mapping) and not any(isinstance(v, Tensor) for v in loaded.values()):
        key = next((k for k in WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if key is None:
            break
        notes.append(f'weights taken from "{key}" of {path.name}')
        loaded = loaded[key]
    tensors = (
        {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
        if isinstance(loaded, Mapping)
        else {}
    )
    if not tensors:
        raise SourceError(f"{path}: holds no tensors by name; expected a state_dict")
    return tensors, tuple(notes)


def sound(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, each with the values that its shape claims.

    Raises SourceError naming one without values (meta), in a layout or of numbers that no network here
    has, or with far more values than the file holds: a view of one value may claim a gigabyte, and
    takes it as soon as it is copied. Tied weights are views of a storage that holds all of them.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            problem = "has a shape but no values"
        elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            problem = f"is {str(kind).removeprefix('torch.')}, which no source here has"
        else:
            stored = tensor.untyped_storage().nbytes() // tensor.element_size()
            if tensor.numel() <= max(stored, EXPANDED):
                continue
            problem = f"claims {tensor.numel():,} values where the file holds {stored:,}"
        raise SourceError(
            f"{path}: {name} {problem}; save it again from a state_dict() of ordinary tensors"
        )
    return tensors


def strip_prefixes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Without the prefixes whose removal makes more names match; what was removed, in words."""
    best = dict(tensors)
    notes: list[str] = []
    while True:
        hits = len(best.keys() & expected.keys())
        tries = {p: {k.removeprefix(p): v for k, v in best.items()} for p in PREFIXES}
        prefix = max(tries, key=lambda p: len(tries[p].keys() & expected.keys()))
        if len(tries[prefix].keys() & expected.keys()) > hits:
            best = tries[prefix]
        else:  # two wrappers in a row: the first one's removal alone matches nothing more
            wrapped = next((p for p in PREFIXES if all(k.startswith(p) for k in best)), None)
            if hits or wrapped is None:
                return best, tuple(notes)
            prefix, best = wrapped, tries[wrapped]
        notes.append(f'prefix "{prefix}" stripped from the weights\' names')


def match(
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    where: str,
    head: str = "",
    allow_fresh: Sequence[str] = (),
    resized: Mapping[str, str] | None = None,
) -> Match:
    """Every tensor kept, fresh, resized or unused.

    ``expected`` is the whole model's state, ``head`` the dotted name of its head. ``resized`` names
    tensors that were adapted before the call, with how. A head whose shapes differ or that is
    absent is left out (``head_kept`` False). A counter (num_batches_tracked) may be absent: no
    output depends on it, and old files lack it.

    Raises SourceError where nothing matches, a shape differs, a value is not finite, or a tensor
    of the backbone would be fresh and ``allow_fresh`` (fnmatch patterns) does not name it.
    """
    resized = resized or {}
    in_head = {n for n in expected if head and n.startswith(f"{head}.")}
    fits = {n for n in expected if n in weights and weights[n].shape == expected[n].shape}
    if expected and not (fits - in_head) & fits:
        raise SourceError(
            f"{where}: no tensor matches the architecture; it has {shorten(sorted(weights), 3)}, "
            f"expected {shorten(sorted(expected), 3)}"
        )
    wrong = [n for n in expected if n in weights and n not in fits and n not in in_head]
    if wrong:
        pairs = [f"{n} {tuple(weights[n].shape)} not {tuple(expected[n].shape)}" for n in wrong]
        raise SourceError(f"{where}: {len(wrong)} shapes differ: {shorten(pairs, 3)}")
    head_kept = bool(in_head) and in_head <= fits

    state: dict[str, Tensor] = {}
    report: list[LoadedTensor] = []
    missing: list[str] = []
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        if name in fits and (head_kept or name not in in_head):
            state[name] = ready(weights[name], tensor, name, where)
            how = resized.get(name, "")
            report.append(LoadedTensor(name, "resized" if how else "kept", shape, how))
        elif name in in_head:  # left out with the head; what the file has of it is unused
            if name in weights:
                note = f"the file's is {tuple(weights[name].shape)}"
                report.append(LoadedTensor(name, "unused", tuple(weights[name].shape), note))
        elif name.endswith("num_batches_tracked"):
            report.append(LoadedTensor(name, "fresh", shape, "a counter; no output depends on it"))
        else:
            report.append(LoadedTensor(name, "fresh", shape))
            if not any(fnmatchcase(name, pattern) for pattern in allow_fresh):
                missing.append(name)
    if missing:
        raise SourceError(
            f"{where}: {len(missing)} of {len(expected)} tensors of the backbone are not in the "
            f"weights and would be random: {shorten(missing)}; name them under allow_fresh, or "
            "use weights of this architecture"
        )
    report += [
        LoadedTensor(n, "unused", tuple(t.shape)) for n, t in weights.items() if n not in expected
    ]
    return Match(state, report, head_kept)


def ready(tensor: Tensor, like: Tensor, name: str, where: str) -> Tensor:
    """A finite tensor in the model's type (fp16 and bf16 become float32).

    Raises SourceError naming a tensor with NaN or infinity, or without values (meta).
    """
    if tensor.is_meta:
        raise SourceError(f"{where}: {name} has a shape but no values")
    if tensor.is_floating_point() and not like.is_floating_point():
        kinds = " where the network has ".join(
            str(t.dtype).removeprefix("torch.") for t in (tensor, like)
        )
        if not bool((tensor == tensor.to(like.dtype)).all()):
            raise SourceError(f"{where}: {name} holds {kinds}")
    # after the conversion: a number of 64 bits may be beyond 32, and 8 bits know no isfinite
    values = tensor.to(like.dtype).contiguous()
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise SourceError(f"{where}: {name} holds NaN or infinity; the weights are damaged")
    return values
