"""Plug-ins are found by file name, and their options forbid what they do not know."""

from __future__ import annotations

import dataclasses

import pytest

from regraft import plugins
from regraft.data.types import Augment, DataOptions

OPTIONS = [(f, n) for f in ("tasks", "freezing", "regularizers") for n in plugins.names(f)]


@pytest.mark.parametrize("folder", plugins.FOLDERS)
def test_a_folder_lists_its_public_files(folder):
    found = plugins.names(folder)
    assert found == sorted(found)
    assert found
    assert not [n for n in found if n.startswith("_")]
    for name in found:
        assert plugins.module(folder, name).__doc__


@pytest.mark.parametrize(("folder", "name"), OPTIONS)
def test_options_are_strict_and_forbid_misspelt_keys(folder, name):
    cls = plugins.options_class(folder, name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    made, problems = plugins.make(cls, {}, "here")
    assert problems == []
    assert made == cls()
    made, problems = plugins.make(cls, {"no_such_key": 1}, "here")
    assert made is None
    assert problems[0].startswith("here.no_such_key: unknown key")
    for field in dataclasses.fields(cls):
        wrong = 3 if isinstance(field.default, str) else "3"
        if isinstance(field.default, int | float | str):
            assert plugins.make(cls, {field.name: wrong}, "here")[1], f"{field.name} is not strict"


@pytest.mark.parametrize("cls", [Augment, DataOptions])
def test_records_of_the_plan_forbid_misspelt_keys(cls):
    given = {"path": "x"} if cls is DataOptions else {}
    assert plugins.make(cls, given, "x")[1] == []
    assert "unknown key" in plugins.make(cls, {**given, "no_such_key": 1}, "x")[1][0]


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(LookupError, match='did you mean "last_blocks"'):
        plugins.module("freezing", "last_block")
    with pytest.raises(LookupError, match="everything, gradual, head_only, last_blocks"):
        plugins.module("freezing", "zzz")
    with pytest.raises(LookupError):
        plugins.module("sources", "_weights")


def test_a_dotted_path_runs_only_with_leave():
    name = "regraft.regularizers.l2:L2"
    with pytest.raises(LookupError, match="--allow-code"):
        plugins.options_class("regularizers", name)
    assert plugins.options_class("regularizers", name, allow_code=True).__name__ == "L2"
    with pytest.raises(LookupError, match="cannot be imported"):
        plugins.options_class("regularizers", "no_such_module:X", allow_code=True)
    with pytest.raises(LookupError, match="cannot be imported"):
        plugins.options_class("regularizers", "regraft.model.types:Nope", allow_code=True)
