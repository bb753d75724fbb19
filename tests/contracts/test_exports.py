"""What every file of exports/ keeps."""

from __future__ import annotations

import inspect

import pytest

from regraft import plugins


@pytest.fixture(params=plugins.names("exports"))
def format(request):
    return plugins.module("exports", request.param)


def test_it_says_what_it_needs_and_how_it_is_checked(format):
    assert isinstance(format.needs, tuple)
    assert isinstance(format.with_regraft, bool)
    assert isinstance(format.folds, bool)
    for name, parameters in (("refusal", 1), ("write", 2), ("snippet", 1)):
        assert len(inspect.signature(getattr(format, name)).parameters) == parameters


def test_only_what_keeps_the_task_leaves_scaling_to_regraft(format):
    assert format.folds or format.with_regraft
