"""What every file of report/sections/ keeps."""

from __future__ import annotations

import inspect

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from regraft import plugins
from regraft.report import render

NAMES = plugins.names("report.sections")


@pytest.mark.parametrize("name", NAMES)
def test_a_section_has_a_title_a_place_and_a_template(name):
    section = plugins.module("report.sections", name)
    assert section.TITLE and isinstance(section.ORDER, int)
    assert isinstance(getattr(section, "IN_COMPARISON", False), bool)
    assert list(inspect.signature(section.context).parameters) == ["run"]
    env = Environment(loader=FileSystemLoader(render.HERE), autoescape=True, undefined=StrictUndefined)
    assert env.from_string(section.TEMPLATE)


def test_sections_are_in_the_report_in_their_order():
    shown = render.sections()
    assert {m.__name__.rpartition(".")[2] for m in shown} == set(NAMES)
    assert [m.ORDER for m in shown] == sorted(m.ORDER for m in shown)
