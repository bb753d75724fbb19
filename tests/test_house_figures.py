"""The rule on a docstring's first word, and that every room keeps it."""

from __future__ import annotations

import pytest

import house_figures

SHARE = 0.95  # of a room's docstrings that open as the rule says

IMPERATIVE = (
    "Return the rows of a split.",
    "Yield (module, function) of every method.",
    "Write the file, then rename it.",
    "Raise DataError where a row is empty.",
    "Read, check and close the file.",
    "Name the rows that are missing.",
    "Number each row's group from 0.",
    "Count files and folders.",
    "Fit a linear probe on features [N, D].",
    "Fine-tune the target.",
    "Pass the record on.",
    "Feed damaged input to every reader.",
    "Label every suspect.",
    "Map ids to rows.",
    "Test one split.",
    "Let one process compute.",
    "Wait for rank 0.",
    "Mask padding.",
    "Pack bytes.",
    "Return per-class counts.",
)
NOT_IMPERATIVE = (
    "The rows of a split.",
    "Rows of a split.",
    "Raises DataError where a row is empty.",
    "What a batch gave.",
    "Whether a row is empty.",
    "How many rows are left.",
    "Mean of the rows.",
    "Answer that the server gave.",
    "Name, size and date.",
    "Count: rows by class.",
    "Wilson's interval.",
    "V_rows of the difference.",
    "[P, 2] of positions.",
    "``function`` at each resample.",
    "Told by rank 0.",
    "Whole rows.",
    "Equal on every rank.",
    "English by rule.",
    "Per bin of confidence: its rows.",
    "Inside, nothing is printed.",
)
NOUNS = (
    "A row of a table.",
    "Rows of a table.",
    "ECE: expected calibration error.",
    "Batch-norm statistics.",
    "``regraft check``: findings in data.",
    "Label errors.",
    "Frozen blocks.",
)
NO_NOUNS = (
    "What a row holds.",
    "How rows are read.",
    "Where a run stands.",
    "Read a table.",
    "Something that a check found.",
    "Does transfer help?",
    "``label`` is a class name.",
    "Shows progress.",
)


@pytest.mark.parametrize("text", [*IMPERATIVE, *NOT_IMPERATIVE])
def test_a_verb_in_the_imperative_is_known(text: str) -> None:
    assert house_figures.is_imperative(text) == (text in IMPERATIVE)


@pytest.mark.parametrize("text", [*NOUNS, *NO_NOUNS])
def test_a_noun_phrase_is_known(text: str) -> None:
    assert house_figures.is_noun_phrase(text) == (text in NOUNS)


def test_docstrings_of_each_room_open_with_verb_or_noun() -> None:
    good, others = house_figures.openings(house_figures.PACKAGE)
    for room in {place.partition(":")[0].partition("/")[0] for place in others}:
        good_here, others_here = ([p for p in places if p.startswith(room)] for places in (good, others))
        assert len(good_here) >= SHARE * len(good_here + others_here), "\n".join(others_here)


def test_no_room_but_tasks_names_a_task() -> None:
    assert house_figures.task_names(house_figures.PACKAGE) == []


def test_lines_of_code_leave_out_text(tmp_path):
    text = '"""A module.\n\nMore.\n"""\n\n# a comment\nx = [\n    1,\n]  # two\n\n\n'
    text += 'def f():\n    """Do it."""\n    return x\n'
    (tmp_path / "a.py").write_text(text)
    assert house_figures.code_lines(tmp_path) == 5  # three of the list, def and return


def test_functions_stay_small_and_files_in_no_circle() -> None:
    package = house_figures.PACKAGE
    assert house_figures.whole_job(package) <= 15
    assert house_figures.most_parameters(package)[0][0] <= 9
    assert house_figures.circles(package) == 0
    assert not house_figures.look_ups(package)
