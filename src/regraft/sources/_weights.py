"""Weights files: read without running code, with an account of every tensor.

regraft reads a file by content, not by name: as safetensors, else with ``torch.load(weights_only=True)``. There is no
fallback to unsafe loading. A file that holds code is refused, and nothing in it is executed. A checkpoint may nest its
weights and hold records beside them.
"""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from ..errors import SourceError, shorten
from ..io.hashing import file_digest
from ..model.types import LoadedTensor
from . import _foreign

MAX_EXPANDED_VALUES = 1_000_000  # that a view may claim beyond its storage

MAX_NESTING = 6  # levels of dictionaries in a checkpoint

RIVAL_SHARE = 0.5  # of the best dictionary's or prefix's hits; another with as many makes the choice ambiguous

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")

PREFIXES = (
    "module",
    "model",
    "backbone",
    "encoder",
    "net",
    "network",
    "teacher",
    "student",
    "ema",
    "ema_model",
    "model_ema",
    "module_ema",
    "encoder_q",
    "encoder_k",
    "base_encoder",
    "momentum_encoder",
)

STEMS = ("optimizer", "optim", "lr_sched", "scheduler", "scaler", "amp", "rng", "callbacks", "loops")


@dataclass(frozen=True)
class Weights:
    """Tensors of a file, with its digest."""

    tensors: dict[str, Tensor]
    digest: str  # sha256 of the file, hex
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """Result of matching a file with a model.

    ``state`` holds what can be loaded, under the model's names, in float32.
    """

    state: dict[str, Tensor]
    report: list[LoadedTensor]
    head_kept: bool


def read(path: Path, expected: Collection[str] = (), key: str | None = None) -> Weights:
    """Return the tensors of a safetensors or torch file.

    ``expected`` holds the architecture's names, which decide between the dictionaries of a checkpoint.
    ``key`` names one of those dictionaries.

    Raises SourceError for a file that is absent, damaged or of another kind, that holds code, or that has
    several dictionaries which fit.
    """
    if not path.is_file():
        missing = "a folder; name a weights file in it" if path.is_dir() else "no such weights file"
        raise SourceError(f"{path}: {missing}")
    if problem := _foreign.describe_problem(path):
        raise SourceError(f"{path}: {problem}")
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # safetensors: 8 bytes of header length, then JSON
        if key:
            raise SourceError(f'{path}: a safetensors file has no dictionary "{key}"')
        return Weights(check_values(read_safetensors(path), path), file_digest(path))
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        tensors, notes = find_state_dict(read_torch(path), path, expected, key)
        return Weights(check_values(tensors, path), file_digest(path), notes)
    raise SourceError(f"{path}: neither a safetensors nor a torch weights file, or truncated")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises SourceError for a damaged one."""
    try:
        return load_file(path)  # type: ignore[no-any-return]
    except (SafetensorError, ValueError, OSError) as error:
        raise SourceError(f"{path}: damaged safetensors file ({error}); fetch it again") from error


def read_torch(path: Path) -> Any:
    """Return the content of a torch file. Raises SourceError for a damaged one, or one that holds code."""
    with safe_globals(_foreign.allowed()):
        try:
            with path.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch warns about old pickles
                # Pass an open file, because torch would also judge a path by its suffix.
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise SourceError(f"{path}: {_foreign.describe_refusal(path, error)}") from error
        except Exception as error:  # a damaged file raises errors of many kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SourceError(f"{path}: damaged torch file ({reason}); fetch it again") from error


def find_state_dict(
    loaded: Any, path: Path, expected: Collection[str], key: str | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the checkpoint's dictionary of tensors to use, and a note on its place.

    ``key`` names one of several dictionaries; without it, the only one that fits is used. Where no names match,
    as for names of another repository, the number of tensors decides.

    Raises SourceError that names the keys where none or several fit.
    """
    candidates = dict(dictionaries(loaded))
    if not candidates:
        keys = (
            f"its keys are {shorten([str(k) for k in loaded])}"
            if isinstance(loaded, Mapping)
            else f"it is a {type(loaded).__name__}"
        )
        raise SourceError(f"{path}: holds no tensors by name; {keys}; expected a state_dict")
    if key is None:
        key = choose_dictionary(candidates, path, expected)
    elif key not in candidates:
        raise SourceError(
            f'{path}: source.weights_key "{key}" is no dictionary of tensors in it; there are: '
            f"{shorten([k or 'the file itself' for k in candidates], 8)}"
        )
    return candidates[key], (f'weights taken from "{key}" of {path.name}',) if key else ()


def dictionaries(loaded: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each dictionary of named tensors in a checkpoint with its dotted key, "" for the file's own.

    An optimizer's state is left out: its tensors go by numbers, or it has param_groups.
    """
    if not isinstance(loaded, Mapping) or "param_groups" in loaded or depth > MAX_NESTING:
        return
    tensors = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in loaded.items():
        if isinstance(name, str) and not name.startswith(STEMS):
            yield from dictionaries(value, f"{key}.{name}" if key else name, depth + 1)


def choose_dictionary(candidates: Mapping[str, Mapping[str, Tensor]], path: Path, expected: Collection[str]) -> str:
    """Return the key of the only dictionary that fits. Raises SourceError where several do."""
    hits = {k: max(prefix_hits(t, expected).values(), default=0) for k, t in candidates.items()}
    if not max(hits.values()):
        hits = {k: len(t) for k, t in candidates.items()}
    best = max(hits.values())
    rivals = [k for k, n in hits.items() if n >= RIVAL_SHARE * best]
    if len(rivals) > 1:
        named = [f"{k or 'the file itself'} ({len(candidates[k])} tensors)" for k in rivals]
        raise SourceError(
            f"{path}: {len(rivals)} of its dictionaries fit: {shorten(named, 8)}; name the one to use "
            f"with --set source.weights_key={next(k for k in rivals if k)}"
        )
    return rivals[0]


def check_values(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors, after a check that each holds the values that its shape claims.

    Raises SourceError that names a tensor without values (meta), in a layout or number type that no network here has,
    or with far more values than the file stores. A view of one value may claim a gigabyte and takes that memory once
    it is copied. Tied weights are views of a storage that holds all of their values.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            problem = "has a shape but no values"
        elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            problem = f"is {str(kind).removeprefix('torch.')}, which no source here has"
        else:
            stored = tensor.untyped_storage().nbytes() // tensor.element_size()
            if tensor.numel() <= max(stored, MAX_EXPANDED_VALUES):
                continue
            problem = f"claims {tensor.numel():,} values where the file holds {stored:,}"
        raise SourceError(f"{path}: {name} {problem}; save it again from a state_dict() of ordinary tensors")
    return tensors


def strip_prefixes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Any], known: Collection[str] | None = PREFIXES
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors without the prefixes that wrappers put before their names, and notes on them.

    A wrapper's component, such as torch.compile's, may be anywhere in a name. A prefix of any depth is stripped
    where more names match without it. ``known`` holds the components that a prefix may have; None allows any.

    Raises SourceError where two prefixes each lead to a network, such as a teacher's and a student's.
    """
    best, wrapped = strip_wrappers(tensors, expected)
    notes = [f'"{w}." stripped from the weights\' names' for w in wrapped]
    hits = prefix_hits(best, expected, known)
    prefix = max(hits, key=lambda p: (hits[p], -len(p)), default="")
    rivals = [p for p, n in hits.items() if n >= RIVAL_SHARE * hits[prefix] and p != prefix]
    if not prefix:
        return best, tuple(notes)
    if rivals:
        names = " and ".join(f'"{p}"' if p else "none" for p in (prefix, *rivals))
        raise SourceError(
            f"the weights hold several networks that fit, with the prefixes {names}: save one of them to "
            "a file of its own"
        )
    stripped = {k.removeprefix(prefix): v for k, v in best.items() if k.startswith(prefix)}
    notes.append(f'prefix "{prefix}" stripped from the weights\' names')
    return {**{k: v for k, v in best.items() if not k.startswith(prefix)}, **stripped}, tuple(notes)


def strip_wrappers(tensors: Mapping[str, Tensor], expected: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without the name components of compiled or sharded modules, and these components."""
    own = {part for name in expected for part in name.split(".")}
    components = {part for name in tensors for part in name.split(".")}
    wrapped = [w for w in WRAPPERS if w in components and w not in own]
    if not wrapped:
        return dict(tensors), []
    return {
        ".".join(p for p in name.split(".") if p not in wrapped): tensor for name, tensor in tensors.items()
    }, wrapped


def prefix_hits(
    tensors: Mapping[str, Any], expected: Collection[str], known: Collection[str] | None = None
) -> Counter[str]:
    """Count the names that match without each prefix; "" is no prefix."""
    hits: Counter[str] = Counter()
    for name in tensors:
        parts = [p for p in name.split(".") if p not in WRAPPERS]
        for i in range(len(parts)):
            if known is not None and i and parts[i - 1] not in known:
                break
            if ".".join(parts[i:]) in expected:
                hits["".join(f"{p}." for p in parts[:i])] += 1
    return hits


def match(
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    where: str,
    head: str | Sequence[str] = "",
    allow_fresh: Sequence[str] = (),
    resized: Mapping[str, str] | None = None,
) -> Match:
    """Return the state to load, and for every tensor whether it is kept, fresh, resized or unused.

    ``expected`` is the whole model's state. ``head`` is the dotted name of its head, or of several. ``resized`` maps
    tensors that were adapted before the call to a note. A head that is absent, or whose shapes differ, is left
    out (``head_kept`` is False). A counter (num_batches_tracked) may be absent, because no output depends on it
    and old files lack it.

    Raises SourceError where nothing matches, a shape differs, a value is not finite, or a tensor of the backbone
    would be fresh and no pattern of ``allow_fresh`` (fnmatch) matches it.
    """
    resized = resized or {}
    heads = tuple(f"{h}." for h in ([head] if isinstance(head, str) else head) if h)
    in_head = {n for n in expected if n.startswith(heads)}
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
            state[name] = convert(weights[name], tensor, name, where)
            note = resized.get(name, "")
            report.append(LoadedTensor(name, "resized" if note else "kept", shape, note))
        elif name in in_head:  # left out with the head, so the file's tensor is unused
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
    report += [LoadedTensor(n, "unused", tuple(t.shape)) for n, t in weights.items() if n not in expected]
    return Match(state, report, head_kept)


def convert(tensor: Tensor, like: Tensor, name: str, where: str) -> Tensor:
    """Return a finite tensor in the type of the model's tensor (fp16 and bf16 become float32).

    Raises SourceError that names a tensor with NaN or infinity, or one without values (meta).
    """
    if tensor.is_meta:
        raise SourceError(f"{where}: {name} has a shape but no values")
    if tensor.is_floating_point() and not like.is_floating_point():
        kinds = " where the network has ".join(str(t.dtype).removeprefix("torch.") for t in (tensor, like))
        if not bool((tensor == tensor.to(like.dtype)).all()):
            raise SourceError(f"{where}: {name} holds {kinds}")
    # Check after the conversion: a 64-bit number may overflow 32 bits, and 8-bit floats lack isfinite.
    values = tensor.to(like.dtype).contiguous()
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise SourceError(f"{where}: {name} holds NaN or infinity; the weights are damaged")
    return values
