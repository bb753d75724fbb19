"""The sweep over timm's families: a tenth of it, of small ones; and a worker that dies is replaced."""

from __future__ import annotations

import io
import json
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
SMALL = {
    "starnet_s": "starnet_s050",
    "mobilevit": "mobilevit_xxs",
    "edgenext_xx": "edgenext_xx_small",
    "mobilenetv": "mobilenetv3_small_050",
    "lcnet": "lcnet_035",
    "dla": "dla46x_c",
    "efficientvit_m": "efficientvit_m0",
    "test_nfnet": "test_nfnet",
    "test_byobnet": "test_byobnet",
    "test_vit_relpos": "test_vit_relpos",
    "test_maxvit": "test_maxvit",
    "xcit": "xcit_nano_12_p8_224",
    "levit": "levit_128s",
}


def tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_a_family_passes_from_load_to_predict(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool("sweeping", monkeypatch)
    outcome = tool("sweep_timm", monkeypatch).attempt(family, SMALL[family], False)
    assert outcome.whole, outcome.line()


def test_a_family_is_a_name_before_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tool("sweeping", monkeypatch)
    family = tool("sweep_timm", monkeypatch).family
    names = ("regnety_002", "vit_relpos_small_patch16_224", "resnet50", "seresnext26t_32x4d", "coat_tiny")
    assert [family(n) for n in names] == ["regnety", "vit_relpos", "resnet", "seresnext", "coat"]


def test_a_worker_that_dies_or_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeping = tool("sweeping", monkeypatch)
    monkeypatch.setattr(sweeping, "START_S", 20)
    code = (
        "import json, sys, time\n"
        "for line in sys.stdin:\n"
        "    family, name = json.loads(line)\n"
        "    if name == 'dies': sys.exit(3)\n"
        "    if name == 'hangs': time.sleep(60)\n"
        "    print(json.dumps({'family': family, 'name': name, 'passed': ['predict']}), flush=True)\n"
    )
    todo = [("a", "fine"), ("b", "dies"), ("c", "fine"), ("d", "hangs"), ("e", "fine")]
    lines = io.StringIO()
    outcomes = list(sweeping.sweep([sys.executable, "-c", code], todo, 1, lines))
    assert [o.whole for o in outcomes] == [True, False, True, False, True]
    assert "ended (3)" in outcomes[1].failed and "longer than 1 s" in outcomes[3].failed
    assert len([json.loads(x) for x in lines.getvalue().splitlines()]) == 5
    assert "5 families: 3 pass" in sweeping.report(outcomes)
