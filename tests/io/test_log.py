"""The logger of a run: its lines go where they are asked to, and nowhere else."""

from __future__ import annotations

import logging

import pytest

from regraft.io.log import LOGGER, PROGRESS, lines_to, silence


@pytest.fixture
def root(caplog):
    """The records that a program's own handler gets, at WARNING as logging's default is."""
    logging.getLogger().setLevel(logging.WARNING)
    caplog.handler.setLevel(logging.NOTSET)
    return caplog


def test_lines_of_a_block_go_to_its_writer_alone(root):
    lines = []
    LOGGER.info("before")
    with lines_to(lines.append):
        LOGGER.info("rate %g", 0.1)
        LOGGER.debug("detail")
        PROGRESS.info("5 of 9 rows")
    LOGGER.info("after")
    assert lines == ["rate 0.1", "5 of 9 rows"]
    assert root.messages == []  # the program asked for warnings
    assert LOGGER.propagate and not LOGGER.isEnabledFor(logging.INFO)


def test_a_program_gets_the_levels_that_it_asked_for(root):
    with lines_to(lambda line: None):
        LOGGER.warning("careful")
    logging.getLogger().setLevel(logging.INFO)
    with lines_to(lambda line: None):
        LOGGER.info("done")
    assert root.messages == ["careful", "done"]


def test_blocks_in_one_another_all_get_a_line():
    outer, inner = [], []
    with lines_to(outer.append), lines_to(inner.append, progress=False):
        LOGGER.info("a")
        PROGRESS.info("b")
    with lines_to(outer.append):
        LOGGER.info("c")
    assert (outer, inner) == (["a", "b", "c"], ["a"])


def test_a_silent_block_reports_nothing():
    lines = []
    with lines_to(lines.append):
        with silence():
            LOGGER.error("rank 1")
            PROGRESS.info("rank 1")
        LOGGER.info("rank 0")
    assert lines == ["rank 0"]


def test_an_error_of_the_writer_is_raised():
    def full(line):
        raise OSError("no space left")

    with lines_to(full), pytest.raises(OSError, match="no space"):
        LOGGER.info("a")
