import os

import numpy as np
import pytest
import torch
from PIL import Image

from builders import make_batches
from regraft.compute.device import Compute
from regraft.data.ordering import balanced, order
from regraft.data.preprocessing import build
from regraft.data.readers import Tokens
from regraft.data.types import Augment, CallableSpec, Example, ImageSpec, TextSpec
from regraft.errors import DataError

SPEC = ImageSpec(size=(16, 16), resize=20)


def examples(tmp_path, n=13):
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(path)
        found.append(Example(f"id{i}-0", (str(path),), ("x",), path.name))
    return found


def numbers(n):
    return [Example(f"id{i}-0", (str(i),), ("x",), f"row {i}") for i in range(n)]


NUMBER = CallableSpec(lambda inputs: torch.tensor([float(inputs[0])]))


def test_workers_change_no_bit(tmp_path):
    rows, targets = examples(tmp_path), torch.arange(13)
    augment = Augment(randaugment=9)
    none, two = (make_batches(rows, targets, build(SPEC), 4, workers=w, augment=augment, seed=3) for w in (0, 2))
    for one, other in ((none, two), (none.epoch(2), two.epoch(2))):
        for (ids, x, y), (ids2, x2, y2) in zip(one, other, strict=True):
            assert ids == ids2 and torch.equal(x, x2) and torch.equal(y, y2)


def test_an_epoch_has_every_row_once_with_its_target():
    rows = numbers(33)
    batches = make_batches(rows, torch.arange(33), build(NUMBER), 8)
    for epoch in (0, 1):
        seen = list(batches.epoch(epoch))
        assert sorted(i for ids, _, _ in seen for i in ids) == sorted(e.id for e in rows)
        for ids, inputs, targets in seen:
            assert inputs[:, 0].tolist() == targets.tolist()
            assert ids == tuple(rows[i].id for i in targets.tolist())
    assert len(batches) == 33


@pytest.mark.fault(29)
def test_no_batch_of_an_epoch_is_a_single_row():
    sizes = [len(ids) for ids, _, _ in make_batches(numbers(33), torch.arange(33), build(NUMBER), 8)]
    assert len(sizes) == 5 and max(sizes) - min(sizes) <= 1 and max(sizes) <= 8


def test_evaluation_keeps_the_given_order_and_does_not_augment(tmp_path):
    rows = examples(tmp_path, 5)
    p = build(SPEC)
    batches = make_batches(rows, torch.arange(5), p, 2, augment=Augment())
    assert [i for ids, _, _ in batches for i in ids] == [e.id for e in rows]
    seen = torch.cat([x for _, x, _ in batches])
    assert torch.equal(seen, p.collate([p.one(e.inputs) for e in rows]))


def test_order_is_a_function_of_seed_epoch_and_ids():
    ids = [f"id{i}" for i in range(50)]
    first = [ids[i] for i in order(ids, 0, 1)]
    back = ids[::-1]
    assert first == [back[i] for i in order(back, 0, 1)]
    assert sorted(first) == sorted(ids)
    assert first != [ids[i] for i in order(ids, 0, 2)]
    assert first != [ids[i] for i in order(ids, 1, 1)]


def test_iterating_draws_nothing_from_the_callers_generator(tmp_path):
    batches = make_batches(examples(tmp_path, 3), torch.arange(3), build(SPEC), 2, augment=Augment())
    state = torch.get_rng_state()
    list(batches)
    list(batches.epoch(0))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_named_without_a_workers_traceback(tmp_path, workers):
    rows = examples(tmp_path, 4)
    (tmp_path / "2.png").write_text("x")
    with pytest.raises(DataError, match=r"2\.png cannot be read as a picture") as error:
        list(make_batches(rows, torch.arange(4), build(SPEC), 2, workers=workers))
    assert "Traceback" not in str(error.value)


def words_of(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "a": 2}
    raw = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    return build(TextSpec(str(tmp_path), 64))


def test_texts_are_tokenised_once_and_padded_by_batch(tmp_path):
    p = words_of(tmp_path)
    rows = [Example(f"i{n}-0", ("a " * n,), ("x",), str(n)) for n in (1, 4, 2)]
    batches = make_batches(rows, torch.arange(3), p, 2, workers=2)
    p.many = None  # nothing is tokenised after this
    first, second = (inputs["input_ids"].tolist() for _, inputs, _ in batches)
    assert first == [[2, 0], [2, 2]] and second == [[2, 2, 2, 2]]  # by length


def test_the_tokens_of_some_texts_are_those_of_the_texts_alone(tmp_path):
    p = words_of(tmp_path)
    rows = [Example(f"i{n}-0", ("a " * n,), ("x",), str(n)) for n in (1, 4, 2, 3)]
    some = [rows[3], rows[0], rows[1]]
    taken = Tokens.of(p, [e.inputs for e in rows]).take([3, 0, 1])
    given = make_batches(some, torch.arange(3), p, 2, tokens=taken)
    for batch, other in zip(given, make_batches(some, torch.arange(3), p, 2), strict=True):
        assert batch[0] == other[0] and batch[1].keys() == other[1].keys()
        assert all(torch.equal(batch[1][k], other[1][k]) for k in batch[1])


def test_texts_of_like_length_train_together_and_none_is_lost(tmp_path):
    p = words_of(tmp_path)
    rng = np.random.default_rng(0)
    rows = [Example(f"i{k}-0", ("a " * int(n),), ("x",), str(k)) for k, n in enumerate(rng.integers(1, 50, 203))]
    one = list(make_batches(rows, torch.arange(203), p, 8, seed=1).epoch(3))
    back = list(make_batches(rows[::-1], torch.arange(203).flip(0), p, 8, seed=1).epoch(3))
    ids = [i for batch in one for i in batch[0]]
    assert sorted(ids) == sorted(e.id for e in rows)
    assert len(one) == 26  # ceil(203 / 8), what the schedule counts on
    padding = sum(int((x["input_ids"] == 0).sum()) for _, x, _ in one)
    tokens = sum(int((x["input_ids"] == 2).sum()) for _, x, _ in one)
    assert padding < 0.15 * tokens  # in random order it is two thirds of the tokens
    widths = [x["input_ids"].shape[1] for _, x, _ in one]
    assert widths != sorted(widths)
    assert [set(b[0]) for b in one] == [set(b[0]) for b in back]  # whatever the rows' order


def test_no_rows_are_no_batches():
    assert list(make_batches([], torch.zeros(0), build(NUMBER), 4)) == []


def test_targets_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 examples but 3 targets"):
        make_batches(numbers(2), torch.arange(3), build(NUMBER), 4)


def test_balanced_draws_are_equal_by_class_and_use_every_row():
    strata = ["a"] * 30 + ["b"] * 7 + ["c"]
    ids = [f"id{i}" for i in range(38)]
    drawn = balanced(ids, strata, 0, 1)
    rows = [d % 38 for d in drawn]
    assert len(drawn) == len(set(drawn)) == 38  # each draw has a number of its own
    by = [sum(strata[r] == name for r in rows) for name in "abc"]
    assert sorted(by) == [12, 13, 13]
    times = [rows.count(i) for i in range(38)]
    for name in "abc":
        own = [t for t, s in zip(times, strata, strict=True) if s == name]
        assert max(own) - min(own) <= 1
    back = balanced(ids[::-1], strata[::-1], 0, 1)
    assert [(ids[d % 38], d // 38) for d in drawn] == [(ids[::-1][d % 38], d // 38) for d in back]
    assert drawn != balanced(ids, strata, 0, 2)


def test_balanced_draws_are_those_of_a_scan_by_class():
    rng = np.random.default_rng(0)
    strata = [f"class {k}" for k in rng.zipf(1.5, 300) % 40]
    ids = [f"id{i}" for i in range(300)]
    names, expected = sorted(set(strata)), []
    names = [names[k] for k in order(names, 5, 2)]
    for k, name in enumerate(names):
        rows = [i for i in range(300) if strata[i] == name]
        rows = [rows[j] for j in order([ids[i] for i in rows], 5, 2)]
        quota = 300 // len(names) + (k < 300 % len(names))
        expected += [rows[d % len(rows)] + 300 * (d // len(rows)) for d in range(quota)]
    expected = [expected[k] for k in order([f"{ids[d % 300]} {d // 300}" for d in expected], 5, 2)]
    assert balanced(ids, strata, 5, 2) == expected


class Looked(str):
    """A name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Looked.compared += 1
        return str.__eq__(self, other)


def test_balanced_draws_compare_no_row_with_each_class():
    strata = [Looked(f"class {i % 100}") for i in range(1_000)]
    balanced([f"id{i}" for i in range(1_000)], strata, 0, 1)
    assert Looked.compared < 10_000


def test_a_balanced_epoch_augments_a_repeated_row_anew(tmp_path):
    rows, targets = examples(tmp_path, 9), torch.arange(9)
    strata = ["rare"] + ["often"] * 8
    batches = make_batches(rows, targets, build(SPEC), 4, augment=Augment(), strata=strata, workers=2)
    seen = [(i, x, int(y)) for ids, xs, ys in batches.epoch(1) for i, x, y in zip(ids, xs, ys, strict=True)]
    rare = [x for i, x, _ in seen if i == "id0-0"]
    assert len(seen) == 9 and len(rare) in (4, 5)
    assert all(y == int(i[2]) for i, _, y in seen)
    assert all(not torch.equal(rare[0], x) for x in rare[1:])
    assert [i for ids, _, _ in batches for i in ids] == [e.id for e in rows]


def test_balanced_texts_are_padded_and_counted_like_others(tmp_path):
    p = words_of(tmp_path)
    rows = [Example(f"i{n}-0", ("a " * n,), ("x",), str(n)) for n in range(1, 41)]
    strata = ["rare"] * 3 + ["often"] * 37
    found = list(make_batches(rows, torch.arange(40), p, 4, strata=strata).epoch(2))
    ids = [i for batch in found for i in batch[0]]
    assert len(ids) == 40 and sum(i in ("i1-0", "i2-0", "i3-0") for i in ids) == 20
    for names, inputs, targets in found:
        lengths = inputs["attention_mask"].sum(1) if "attention_mask" in inputs else None
        assert lengths is None or lengths.tolist() == [int(n[1:-2]) for n in names]
        assert targets.tolist() == [int(n[1:-2]) - 1 for n in names]


def whose(inputs):
    return torch.tensor([float(os.getpid())])


def test_loader_processes_stay_from_epoch_to_epoch():
    batches = make_batches(numbers(12), torch.arange(12), build(CallableSpec(whose)), 2, workers=2)
    first, second = ({int(x) for _, xs, _ in batches.epoch(n) for x in xs} for n in (1, 2))
    assert first == second and len(first) == 2 and os.getpid() not in first


def test_two_passes_at_once_do_not_mix():
    batches = make_batches(numbers(13), torch.arange(13), build(NUMBER), 2, workers=1)
    for (ids, x, y), (ids2, x2, y2) in zip(batches.epoch(1), batches.epoch(2), strict=True):
        for names, inputs, targets in ((ids, x, y), (ids2, x2, y2)):
            assert inputs[:, 0].tolist() == targets.tolist()
            assert [n[2:-2] for n in names] == [str(int(t)) for t in targets]
    for n in (3, 3):  # a pass that is left in the middle does no harm to the next
        next(iter(batches.epoch(n)))
    assert sorted(i for ids, _, _ in batches.epoch(3) for i in ids) == sorted(e.id for e in batches.examples)


def test_pictures_travel_as_bytes_and_come_in_the_layout(tmp_path):
    rows = examples(tmp_path, 5)
    p = build(SPEC)
    stacked = p.stack([p.one(e.inputs) for e in rows])
    assert stacked.dtype == torch.uint8
    by_hand = stacked.float().div_(255).sub_(0.5).div_(0.5)
    for layout in ("contiguous", "channels_last"):
        ((_, inputs, _),) = make_batches(rows, torch.arange(5), p, 5, compute=Compute(layout=layout))
        assert torch.equal(inputs, by_hand)
        last = inputs.is_contiguous(memory_format=torch.channels_last)
        assert last == (layout == "channels_last")
