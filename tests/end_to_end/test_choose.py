"""``regraft choose`` on pictures: the table, JSON, the features' way to a later fit, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from .conftest import Cli

FLAGS = ["--device", "cpu", "--set", "run.threads=1", "--set", "source.image_size=32"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders as timm writes them: two networks, and a copy of the first."""
    root, refs = tmp_path_factory.mktemp("sources"), {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        net = timm.create_model("test_resnet", pretrained=False)
        folder = root / name
        folder.mkdir()
        save_file(net.state_dict(), folder / "model.safetensors")
        config = {"architecture": "test_resnet", "num_classes": net.num_classes, "pretrained_cfg": {}}
        (folder / "config.json").write_text(json.dumps(config))
        refs[name] = f"timm:local-dir:{folder}"
    shutil.copytree(root / "first", root / "copy")
    return refs | {"copy": f"timm:local-dir:{root / 'copy'}"}


@pytest.mark.slow
def test_sources_are_compared_and_a_fit_finds_the_features(
    cli: Cli, pictures: Path, sources: dict[str, str], tmp_path: Path
) -> None:
    named = [word for ref in sources.values() for word in ("--source", ref)]
    code, out, err = cli("choose", pictures, *named, *FLAGS, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {c["source"] for c in found["candidates"]} == set(sources.values())
    assert (found["rows"], found["folds"], found["primary"]) == (60, 5, "accuracy")
    each = {c["source"]: c for c in found["candidates"]}
    first, copy = each[sources["first"]], each[sources["copy"]]
    assert (first["value"], first["loss"]) == (copy["value"], copy["loss"])
    if found["leader"] in (sources["first"], sources["copy"]):
        assert {sources["first"], sources["copy"]} - {found["leader"]} <= set(found["ties"])

    code, out, err = cli("choose", pictures, *named, *FLAGS)
    assert code == 0, err
    assert f"→ {found['leader']}" in out and "By number of parameters one would take" in out
    assert out.rstrip().endswith(f"next: {found['next']}")

    words = shlex.split(found["next"])
    words[words.index("--out") + 1] = str(tmp_path / "fit")
    code, _, err = cli(*words[1:], "--epochs", 1, "-q")
    assert code == 0, err
    log = (tmp_path / "fit" / "log.txt").read_text(encoding="utf-8")
    for split in ("train", "val"):
        assert f"features of {split}: " in log and "from the feature cache" in log.split(f"features of {split}: ")[1]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--source", "random:timm/test_resnet"], 2, "two sources or more"),
        ([], 2, "--source auto"),
        (["--source", "timm:resnet1", "--source", "timm:resnet2", "--offline"], 4, "0 of 2 sources can be used"),
        (["--source", "bundled:all-minilm-l6-v2", "--source", "timm:resnet1", "--offline"], 4, "it takes texts"),
        (["--source", "a", "--source", "b", "--most", "1"], 2, "--most takes 2 or more"),
    ],
)
def test_a_bad_list_of_sources_is_one_sentence(
    cli: Cli, pictures: Path, words: list[str], code: int, says: str
) -> None:
    ended, out, err = cli("choose", pictures, *words, *FLAGS, "-q")
    assert (ended, out) == (code, "") and says in err and "Traceback" not in err and err.count("\n") == 1
