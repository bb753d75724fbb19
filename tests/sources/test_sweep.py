"""The sweep over timm's families: a tenth of it, of small ones; and a worker that dies is replaced."""

from __future__ import annotations

import io
import json
import sys

import pytest

import sweep_timm
import sweeping

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


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_a_family_passes_from_load_to_predict(family: str) -> None:
    outcome = sweep_timm.attempt(family, SMALL[family], False)
    assert outcome.whole, outcome.line()


def test_a_family_is_a_name_before_its_size() -> None:
    names = ("regnety_002", "vit_relpos_small_patch16_224", "resnet50", "seresnext26t_32x4d", "coat_tiny")
    assert [sweep_timm.family(n) for n in names] == ["regnety", "vit_relpos", "resnet", "seresnext", "coat"]


def test_a_worker_that_dies_or_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "START_TIMEOUT_S", 20)
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
