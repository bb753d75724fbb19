"""Every strategy of freezing/: pure, and a set of blocks that ends with the head."""

import pytest

from regraft.plugins import make, names, options_class

BLOCKS = ["stem", "a", "b", "c", "head"]


def strategy(name, **options):
    made, problems = make(options_class("freezing", name), options, "freezing")
    assert not problems
    return made


@pytest.mark.parametrize("name", names("freezing"))
def test_a_strategy_is_pure_and_names_blocks_that_are(name):
    for blocks in (BLOCKS, ["body", "head"]):
        first = [strategy(name)(blocks, epoch) for epoch in range(1, 9)]
        assert first == [strategy(name)(blocks, epoch) for epoch in range(1, 9)]
        assert all(s <= set(blocks) and "head" in s for s in first)
        assert all(isinstance(s, frozenset) for s in first)


@pytest.mark.parametrize("folder", ["freezing", "regularizers", "tasks"])
def test_a_misspelt_option_is_never_dropped(folder):
    for name in names(folder):
        _, problems = make(options_class(folder, name), {"misspelt": 1}, folder)
        assert problems and "misspelt: unknown key" in problems[0], name


def test_strategies_say_what_the_names_promise():
    assert strategy("head_only")(BLOCKS, 5) == {"head"}
    assert strategy("everything")(BLOCKS, 1) == set(BLOCKS)
    assert strategy("last_blocks", blocks=2)(BLOCKS, 1) == {"b", "c", "head"}
    assert strategy("last_blocks", blocks=99)(BLOCKS, 1) == set(BLOCKS)
    gradual = strategy("gradual", blocks_per_stage=2, epochs_per_stage=3)
    assert [len(gradual(BLOCKS, e)) for e in range(1, 9)] == [1, 1, 1, 3, 3, 3, 5, 5]


def test_unknown_names_list_what_exists():
    with pytest.raises(LookupError, match=r'did you mean "gradual"'):
        options_class("freezing", "gradua")
