"""A run folder from elsewhere: damaged or made to harm, it is refused in words and reaches nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import regraft


@pytest.fixture(scope="module")
def made(weights: Path, make_pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("damaged")
    data = make_pictures(here / "data", train=6, test=4, noise=170)
    names = ("amber", "navy", "olive")
    for name, other in zip(names, ("navy", "olive", "amber"), strict=True):  # so that some are wrong
        (data / "test" / name / "000.png").rename(data / "test" / other / "moved.png")
    settings = {
        "source.weights": str(weights),
        "source.image_size": 32,
        "run.threads": 1,
        "fit.epochs": 1,
        "fit.batch_size": 8,
        "run.cache": "off",
    }
    return regraft.fit(data, source="timm:test_resnet", out=here / "run", settings=settings).path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def changed(path: Path, value: Any, *keys: Any) -> None:
    """Set a value deep in a JSON file, or the file's own without keys."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    node = tree
    for key in keys[:-1]:
        node = node[key]
    if keys:
        node[keys[-1]] = value
    path.write_text(json.dumps(tree if keys else value), encoding="utf-8")


RESULTS = [
    ("seeds", []),
    ("seeds", 7),
    ("primary", "nothing"),
    ("test", None),
    ("controls", [1]),
    ("task", []),
    ("mean", "x"),
    ("verdict", {}),
    ("timing", None),
    ("rows", 7),
]


@pytest.mark.parametrize(("key", "value"), RESULTS)
def test_a_damaged_result_is_refused_wherever_it_is_shown(run, made, cli, key, value):
    changed(run / "result.json", value, key)
    for args in (["report", run], ["compare", run, made], ["list", run.parent]):
        code, _, err = cli(*args)
        assert code in (0, 2), (args, err)
        assert "unexpected" not in err and "Traceback" not in err
        if code:
            words = ("is damaged, or was made by another version of regraft", "their task differs")
            assert any(w in err for w in words)
    with pytest.raises(regraft.errors.UsageError, match="is damaged"):
        read = regraft.Run.read(run)
        str(read), read.test, read.verdict, read.report()


def test_one_damaged_run_does_not_hide_the_others(run, made, cli):
    shutil.copytree(made, run.parent / "whole")
    changed(run / "result.json", {}, "test")
    code, out, _ = cli("list", run.parent)
    assert code == 0 and "damaged" in out and "accuracy" in out


@pytest.mark.parametrize(
    ("file", "value", "keys"),
    [
        ("check.json", {}, ()),
        ("check.json", ["x"], ("findings",)),
        ("environment.json", 3, ()),
        ("gallery/gallery.json", ["x"], ()),
        ("gallery/gallery.json", [{"picture": 7}], ()),
        ("gallery/suspects.json", [], ()),
        ("gallery/suspects.json", {"why not": ""}, ()),
        ("gallery/suspects.json", {"why not": "", "count": 1, "of": 2, "rows": [{"picture": 7}]}, ()),
        ("loading.json", {"a": 1}, ()),
    ],
)
def test_other_damaged_files_stop_the_report_in_words(run, cli, file, value, keys):
    changed(run / file, value, *keys)
    code, _, err = cli("report", run)
    assert code in (0, 2) and "unexpected" not in err
    assert code == 0 or "is damaged" in err


RECIPES = [
    ("architecture", 7),
    ("architecture", "os:system"),
    ("architecture", None),
    ("image", {}),
    ("source", "run"),
    ("source", "../x"),
    ("image", {"size": [10**6, 10**6], "resize": 32}),
    ("num_classes", []),
]


@pytest.mark.parametrize(("key", "value"), RECIPES)
def test_a_recipe_that_names_no_network_is_refused(run, pictures, cli, key, value):
    changed(run / "model/config.json", value, "recipe", key)
    code, _, err = cli("predict", run, pictures / "test/navy/000.png")
    assert code in (0, 4) and "unexpected" not in err, err
    assert code == 4 or key == "num_classes"


@pytest.mark.parametrize(
    ("value", "keys"), [(7, ()), ("nothing", ("task",)), (["a"], ("classes",)), (None, ("classes",)), ([], ("task",))]
)
def test_labels_that_are_none_are_refused(run, pictures, cli, value, keys):
    changed(run / "model/labels.json", value, *keys)
    code, _, err = cli("predict", run, pictures / "test/navy/000.png")
    assert code == 2 and "is damaged" in err, err


@pytest.mark.parametrize("how", ["absolute", "above", "link", "link to a folder", "long"])
def test_a_foreign_run_puts_no_local_file_into_its_report(run, cli, tmp_path, how):
    import base64

    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"not for others" * 9)
    gallery = json.loads((run / "gallery/gallery.json").read_text(encoding="utf-8"))
    entry = gallery[0]
    if how == "link to a folder":
        shutil.move(run / "gallery", tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / entry["picture"]).write_bytes(secret.read_bytes())
        (run / "gallery").symlink_to(tmp_path / "elsewhere")
    elif how == "long":
        entry["picture"] = "x" * 300
        (run / "gallery/gallery.json").write_text(json.dumps(gallery), encoding="utf-8")
    elif how == "link":
        (run / "gallery" / entry["picture"]).unlink()
        (run / "gallery" / entry["picture"]).symlink_to(secret)
    else:
        entry["picture"] = str(secret) if how == "absolute" else "../../secret.txt"
        (run / "gallery/gallery.json").write_text(json.dumps(gallery), encoding="utf-8")
    code, _, err = cli("report", run)
    if how == "link to a folder":
        assert code == 2 and "gallery is a link" in err and not (run / "report.html").exists()
        return
    assert code == 0, err
    page = (run / "report.html").read_text(encoding="utf-8")
    assert base64.b64encode(secret.read_bytes()).decode() not in page
