"""Reading weights: nothing is executed, nothing is silently random."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path
from typing import Any

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
def test_a_head_of_another_size_is_left_out_and_another_shape_is_an_error() -> None:
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
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str
)
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
def test_a_tensor_without_its_values_is_refused_by_name_in_bounded_memory(
    tmp_path: Path, tensor: torch.Tensor, words: str
) -> None:
    torch.save({"0.weight": tensor, "0.bias": torch.zeros(2)}, tmp_path / "w.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match=words):
        _weights.read(tmp_path / "w.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.fault(74)
def test_a_small_view_of_fewer_values_is_a_tensor_like_any_other(tmp_path: Path) -> None:
    torch.save({"positions": torch.arange(5).expand(3, 5), "w": torch.ones(2)}, tmp_path / "w.pt")
    assert _weights.read(tmp_path / "w.pt").tensors["positions"].shape == (3, 5)
