"""Reading weights: nothing is executed, nothing is silently random."""

from __future__ import annotations

import argparse
import pickle
import resource
import warnings
import zipfile
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.errors import SourceError
from regraft.sources import _weights


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "executed"))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.fault(68)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    file, trace = tmp_path / "w.safetensors", tmp_path / "trace"
    if zipped:
        torch.save({"weight": Evil(trace)}, file)
    else:
        file.write_bytes(pickle.dumps({"weight": Evil(trace)}))
    with pytest.raises(SourceError, match="refused, nothing executed"):
        _weights.read(file)
    assert not trace.exists()


@pytest.mark.fault(69)
def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"nothing executed.*state_dict"):
        _weights.read(tmp_path / "w.pt")


@pytest.mark.fault(70)
@pytest.mark.parametrize("damage", ["empty", "short", "header", "trailing", "torch"])
def test_damage_is_an_error_with_the_path(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "w.safetensors"
    save_file(net().state_dict(), file)
    data = file.read_bytes()
    if damage == "torch":
        torch.save(net().state_dict(), file)
        data = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "short": data[:-5],
            "header": (2**62).to_bytes(8, "little") + data[8:],
            "trailing": data + b"more",
            "torch": data[: len(data) // 2],
        }[damage]
    )
    with pytest.raises(SourceError, match=r"w\.safetensors"):
        _weights.read(file)


@pytest.mark.fault(73)
def test_nested_weights_and_prefixes_are_unwrapped_and_said(tmp_path: Path) -> None:
    state = {f"module.backbone.{k}": v for k, v in net().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pt")
    read = _weights.read(tmp_path / "w.pt")
    assert '"state_dict"' in read.notes[0]
    tensors, notes = _weights.strip_prefixes(read.tensors, net().state_dict())
    assert tensors.keys() == net().state_dict().keys()
    assert len(notes) == 1 and 'prefix "module.backbone."' in notes[0]


def read(file: Path, **how: Any) -> dict[str, torch.Tensor]:
    """The tensors of a file under the names of ``net``."""
    names = net().state_dict()
    found = _weights.read(file, names, how.pop("key", None))
    return _weights.strip_prefixes(found.tensors, names, **how)[0]


def optimizer_state() -> dict[str, Any]:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def checkpoints() -> dict[str, Any]:
    """Checkpoints as trainers write them, each with one network."""
    state = net().state_dict()

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}{k}": v for k, v in state.items()}

    return {
        "timm": {
            "epoch": 3,
            "arch": "net",
            "state_dict": state,
            "optimizer": optimizer_state(),
            "version": 2,
            "args": argparse.Namespace(lr=0.1, out=Path("/runs")),
            "metric": np.float64(71.2),
        },
        "mae": {"model": state, "scaler": {"scale": torch.ones(1)}, "args": argparse.Namespace()},
        "swav": {"net": state, "acc": torch.tensor(93.1), "epoch": np.int64(9)},
        "lightning": {
            "state_dict": under("model._orig_mod."),
            "hyper_parameters": OrderedDict(lr=1.0),
            "callbacks": {"best": {"score": torch.tensor(1.0)}},
            "optimizer_states": [optimizer_state()],
            "started": datetime(2026, 1, 2),
            "pytorch-lightning_version": "2.5",
        },
        "fabric": {"a": {"b": {"weights": under("_forward_module.")}}},
        "dino": {"teacher": under("backbone."), "dino_loss": {"center": torch.zeros(1, 4)}},
        "swa": {"model_state_dict": {"n_averaged": torch.tensor(3), **under("module.")}},
        "fsdp": under("module._fsdp_wrapped_module."),
        "compiled part": {k.replace("0.", "0._orig_mod."): v for k, v in state.items()},
        "any name": under("classifier_of_birds.trunk."),
    }


@pytest.mark.parametrize("form", checkpoints())
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_under_any_key_and_prefix(tmp_path: Path, form: str, zipped: bool) -> None:
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(checkpoints()[form], file, _use_new_zipfile_serialization=zipped)
    found = read(file, known=None)
    state = net().state_dict()
    assert all(torch.equal(found[k], v) for k, v in state.items())


def test_of_two_networks_in_a_file_the_key_says_which(tmp_path: Path) -> None:
    state, other = net().state_dict(), {k: v + 1 for k, v in net().state_dict().items()}
    file = tmp_path / "w.pt"
    torch.save({"state_dict": state, "state_dict_ema": other, "epoch": 1}, file)
    with pytest.raises(
        SourceError, match=r"2 of its dictionaries fit: state_dict .*state_dict_ema .*source\.weights_key=state_dict"
    ):
        read(file)
    assert torch.equal(read(file, key="state_dict_ema")["0.bias"], other["0.bias"])
    with pytest.raises(SourceError, match=r'weights_key "ema" is no dictionary .*state_dict_ema'):
        read(file, key="ema")
    both = {"student." + k: v for k, v in state.items()} | {"teacher." + k: v for k, v in other.items()}
    torch.save(both, file)
    with pytest.raises(SourceError, match=r'several networks .*"student\." and "teacher\."'):
        read(file)


def test_a_file_without_weights_names_what_is_in_it(tmp_path: Path) -> None:
    torch.save({"acc": 93.1, "epoch": 9, "best": [1]}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match="its keys are acc, epoch, best"):
        read(tmp_path / "w.pt")
    torch.save([net().state_dict()], tmp_path / "w.pt")
    with pytest.raises(SourceError, match="it is a list"):
        read(tmp_path / "w.pt")


class Config:
    """A class of the user's own."""


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (nn.Linear(2, 2), r"a whole module \(torch\.nn\.modules\.linear\.Linear\)"),
        (Config(), r"classes that may run code \([\w.]*Config\)"),
        (torch.relu, "nothing executed"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_foreign_class_is_refused_by_name(tmp_path: Path, beside: Any, words: str, zipped: bool) -> None:
    torch.save({"model": net().state_dict(), "x": beside}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(SourceError, match=words) as caught:
        read(tmp_path / "w.pt")
    assert "state_dict() with safetensors" in str(caught.value)
    assert "weights_only" not in str(caught.value) and "add_safe_globals" not in str(caught.value)


def test_nothing_of_an_allowed_class_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(checkpoints()["timm"], tmp_path / "w.pt")

    def trap(*_: Any, **__: Any) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(argparse.Namespace, "__setattr__", trap)
    monkeypatch.setattr(argparse, "Namespace", trap)
    before = set(torch.serialization.get_safe_globals())
    assert read(tmp_path / "w.pt").keys() == net().state_dict().keys()
    assert set(torch.serialization.get_safe_globals()) == before


def scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.pt", scripted, "TorchScript, a program .*torch.jit.load"),
        ("w.npz", lambda p: np.savez(p, kernel=np.zeros(3)), "npz archive"),
        ("w.h5", b"\x89HDF\r\n\x1a\n", "HDF5 file of Keras"),
        ("w.gguf", b"GGUF\x03\0\0\0", "GGUF"),
        ("m.onnx", b"\x08\x08\x12\x07pytorch", "ONNX graph"),
        ("m.bin", b"\x08\x08\x12\x07pytorch", "ONNX graph"),
        ("model.ckpt.index", b"\0\0\x01\x02", "TensorFlow checkpoint"),
        ("model.ckpt.data-00000-of-00001", b"\1\2\3", "TensorFlow checkpoint"),
        ("saved_model.pb", b"\x22\x01", "TensorFlow graph"),
        ("w.msgpack", b"\x81\xa1", "Flax"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "index of shards"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("w.pth", b"<!DOCTYPE html>", "fetch the file again"),
        ("w.pth.gz", b"\x1f\x8b\x08", "gzip: unpack it"),
        ("w.zip", lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "a"), "zip archive without"),
        ("w.pth", b"", "empty"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path: Path, name: str, content: Any, words: str) -> None:
    file = tmp_path / name
    content(file) if callable(content) else file.write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        read(file)
    assert str(file) in str(caught.value) and "weights_only" not in str(caught.value)


def test_a_fresh_tensor_in_the_backbone_is_an_error_unless_named() -> None:
    state = net().state_dict()
    del state["0.bias"]
    expected = net().state_dict()
    with pytest.raises(SourceError, match=r"1 of 4 tensors.*0\.bias.*allow_fresh"):
        _weights.match(expected, state, where="w", head="1")
    found = _weights.match(expected, state, where="w", head="1", allow_fresh=("0.b*",))
    assert {t.name: t.state for t in found.report}["0.bias"] == "fresh"
    assert "0.bias" not in found.state


@pytest.mark.fault(72)
def test_a_head_of_another_size_is_left_out_a_shape_is_refused() -> None:
    expected, state = net().state_dict(), net().state_dict()
    state["1.weight"], state["1.bias"] = torch.zeros(7, 4), torch.zeros(7)
    found = _weights.match(expected, state, where="w", head="1")
    assert not found.head_kept
    assert {t.state for t in found.report if t.name.startswith("1.")} == {"unused"}
    state["0.weight"] = torch.zeros(9, 3)
    with pytest.raises(SourceError, match=r"0\.weight \(9, 3\) not \(4, 3\)"):
        _weights.match(expected, state, where="w", head="1")


@pytest.mark.fault(71)
@pytest.mark.fault(27)
def test_nothing_matched_and_values_not_finite_are_errors() -> None:
    with pytest.raises(SourceError, match="no tensor matches") as caught:
        _weights.match(net().state_dict(), {"a.b": torch.zeros(1)}, where="w")
    assert caught.value.exit_code == 4
    state = net().state_dict()
    state["0.weight"][0, 0] = float("nan")
    with pytest.raises(SourceError, match=r"0\.weight holds NaN"):
        _weights.match(net().state_dict(), state, where="w")


@pytest.mark.fault(74)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) for k, v in net().state_dict().items()}
    save_file(state, tmp_path / "w")
    found = _weights.match(net().state_dict(), _weights.read(tmp_path / "w").tensors, where="w")
    for name, value in found.state.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


@pytest.mark.fault(74)
def test_a_number_beyond_float32_is_no_weight() -> None:
    state = {k: v.double() for k, v in net().state_dict().items()}
    state["0.bias"][1] = 1e300
    with pytest.raises(SourceError, match=r"0\.bias holds NaN or infinity"):
        _weights.match(net().state_dict(), state, where="w")


@pytest.mark.fault(74)
def test_tied_weights_are_both_there_and_stored_once(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    state = {"a.weight": weight, "b.weight": weight, "c.weight": weight.t(), "d.bias": weight[0]}
    torch.save(state, tmp_path / "w.pt")
    read = _weights.read(tmp_path / "w.pt").tensors
    assert all(torch.equal(read[n], t) for n, t in state.items())
    assert len({t.untyped_storage().data_ptr() for t in read.values()}) == 1
    found = _weights.match({n: t.clone() for n, t in state.items()}, read, where="w")
    assert all(torch.equal(found.state[n], t) for n, t in state.items())


@pytest.mark.fault(74)
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.empty(3, 4, device="meta"), "0.weight has a shape but no values"),
        (torch.zeros(1).expand(10**9), "0.weight claims 1,000,000,000 values where .* holds 1;"),
        (torch.zeros(3, 1, 1).expand(3, 10**5, 10**4), "0.weight claims 3,000,000,000 values"),
        (torch.eye(3).to_sparse(), "0.weight is sparse_coo, which no source here has"),
        (torch.zeros(3, dtype=torch.complex64), "0.weight is complex64"),
    ],
    ids=["meta", "expanded", "expanded in part", "sparse", "complex"],
)
def test_a_tensor_without_values_is_refused_in_bounded_memory(tmp_path: Path, tensor: torch.Tensor, words: str) -> None:
    torch.save({"0.weight": tensor, "0.bias": torch.zeros(2)}, tmp_path / "w.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match=words):
        _weights.read(tmp_path / "w.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.fault(74)
def test_a_small_view_of_fewer_values_is_a_tensor_like_any_other(tmp_path: Path) -> None:
    torch.save({"positions": torch.arange(5).expand(3, 5), "w": torch.ones(2)}, tmp_path / "w.pt")
    assert _weights.read(tmp_path / "w.pt").tensors["positions"].shape == (3, 5)
