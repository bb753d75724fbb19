"""Near duplicates: the search finds what comparing all pairs finds, and confirms only what is alike."""

from __future__ import annotations

import string
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from regraft.checks import _near
from regraft.data.images import facts_of
from regraft.data.types import Example


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Blurred blobs: structure of low frequency, as in a photo."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return image.filter(ImageFilter.GaussianBlur(1))


def example(path, i: int) -> Example:
    return Example(f"{i:016x}-0", (str(path),), ("x",), path.name, None, facts_of(path))


def changed(how: str, image: Image.Image) -> Image.Image:
    if how == "smaller":
        return image.resize((image.width * 2 // 5, image.height * 2 // 5))
    if how == "mirrored":
        return ImageOps.mirror(image)
    return ImageOps.mirror(image.resize((90, 70))) if how == "both" else image


@pytest.mark.fault(41)
@pytest.mark.parametrize("how", ["smaller", "encoded anew", "mirrored", "both"])
def test_a_changed_copy_is_found_and_no_other_picture(tmp_path, how):
    rows = []
    for i in range(40):
        scene(i).save(tmp_path / f"{i}.png")
        rows.append(example(tmp_path / f"{i}.png", i))
    changed(how, scene(7)).save(tmp_path / "copy.jpg", quality=40)
    rows.append(example(tmp_path / "copy.jpg", 40))
    found, more = _near.find_pairs(rows, "image", None)
    assert [(p.first, p.second) for p in found] == [(7, 40)] and not more
    assert ("mirrored" in found[0].reason) == (how in ("mirrored", "both"))


def test_the_hash_of_the_mirror_image_is_the_mirrored_hash(tmp_path):
    for seed in range(20):
        image = scene(seed, (64, 64))
        image.save(tmp_path / "a.png")
        ImageOps.mirror(image).save(tmp_path / "b.png")
        a, b = facts_of(tmp_path / "a.png"), facts_of(tmp_path / "b.png")
        assert (a.hash, a.mirrored) == (b.mirrored, b.hash)


def test_pictures_without_structure_are_not_alike(tmp_path):
    for i in range(3):
        Image.new("RGB", (30, 30), (200 + i, 200, 200)).save(tmp_path / f"{i}.png")
    rows = [example(tmp_path / f"{i}.png", i) for i in range(3)]
    assert rows[0].facts.hash is None
    assert _near.find_pairs(rows, "image", None) == ([], False)


def test_features_may_object(tmp_path):
    scene(1).save(tmp_path / "a.png")
    scene(1).save(tmp_path / "b.jpg", quality=50)
    rows = [example(tmp_path / "a.png", 1), example(tmp_path / "b.jpg", 2)]
    alike = {rows[0].id: np.array([1.0, 0.1]), rows[1].id: np.array([1.0, 0.0])}
    assert len(_near.find_pairs(rows, "image", alike)[0]) == 1
    apart = {rows[0].id: np.array([1.0, 0.0]), rows[1].id: np.array([0.0, 1.0])}
    assert _near.find_pairs(rows, "image", apart)[0] == []


@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(2, 200))
def test_close_hashes_are_those_of_all_pairs(seed, within, size):
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 5, np.uint64)
    flips = np.bitwise_or.reduce(
        np.uint64(1) << rng.integers(0, 63, (size, 6), np.uint64), axis=1
    )  # up to six bits from a centre
    values = centres[rng.integers(0, 5, size)] ^ flips
    plain = int(rng.integers(1, size + 1))
    found, more = _near.close_hashes(values, within, plain)
    expected = {
        (i, j)
        for i in range(plain)
        for j in range(i + 1, size)
        if (int(values[i]) ^ int(values[j])).bit_count() <= within
    }
    assert {tuple(p) for p in found.tolist()} == expected and not more


def test_few_hashes_are_compared_with_each_other(monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**63, 20_000, np.uint64)
    compared, count = [], np.bitwise_count
    monkeypatch.setattr(_near.np, "bitwise_count", lambda x: compared.append(x.size) or count(x))
    _near.close_hashes(values, _near.MAX_DIFFERENT_BITS, 10_000)
    assert sum(compared) < 0.01 * 10_000 * 20_000


def test_close_hashes_among_many_are_those_of_all_pairs():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2**63, 3_000, np.uint64) << np.uint64(1)
    for _ in range(3):  # copies with 1, 2 and 3 times 3 bits changed, some of them twice
        values[rng.integers(0, 3_000, 300)] = values[:300] ^ np.bitwise_or.reduce(
            np.uint64(1) << rng.integers(1, 64, (300, 3)).astype(np.uint64), axis=1
        )
    found, more = _near.close_hashes(values, _near.MAX_DIFFERENT_BITS, 1_700)
    bits = np.bitwise_count(values[:1_700, None] ^ values[None])
    one, two = np.nonzero((bits <= _near.MAX_DIFFERENT_BITS) & (np.arange(1_700)[:, None] < np.arange(3_000)))
    assert found.tolist() == np.stack([one, two], 1).tolist() and len(found) > 500 and not more


def test_pairs_are_bounded_and_that_is_said(monkeypatch):
    monkeypatch.setattr(_near, "MAX_PAIRS", 50)
    found, more = _near.close_hashes(np.full(100, 77, np.uint64), 4, 100)
    assert len(found) == 50 and more


# ---------------------------------------------------------------- texts


def rows_of(texts):
    return [Example(f"{i:016x}-0", (t,), ("x",), f"row {i}") for i, t in enumerate(texts)]


def sentence(seed: int, words: int = 25) -> str:
    rng = np.random.default_rng(seed)
    letters = np.array(list(string.ascii_lowercase))
    return " ".join("".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(words))


@pytest.mark.fault(41)
def test_spaces_case_signs_and_one_word_do_not_hide_a_text():
    texts = [sentence(i) for i in range(60)]
    loud = "  " + texts[3].upper().replace(" ", "\u00a0 ") + " !!"
    word = texts[5].split()
    word[10] = "other"
    found, more = _near.find_pairs(rows_of([*texts, loud, " ".join(word)]), "text", None)
    assert [(p.first, p.second) for p in found] == [(3, 60), (5, 61)] and not more
    assert "case" in found[0].reason
    grams = [{t[i : i + 5] for i in range(len(t) - 4)} for t in (texts[5], " ".join(word))]
    expected = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    assert found[1].reason == f"similarity {expected:.2f}"


def test_one_letter_turned_full_width_is_the_same_text():
    found, _ = _near.find_pairs(rows_of(["ﬁne Ａ day", "fine a day"]), "text", None)
    assert len(found) == 1


def test_short_texts_and_signs_alone_are_compared_as_they_stand():
    found, _ = _near.find_pairs(rows_of(["ab", "AB", "ac", "!!", "??", "😀", "😀 "]), "text", None)
    assert [(p.first, p.second) for p in found] == [(0, 1), (5, 6)]


def test_the_similarity_is_jaccards_of_the_5_grams():
    a, b = sentence(1), sentence(1) + " and more"
    grams = [{t[i : i + 5] for i in range(len(t) - 4)} for t in (a, b)]
    expected = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    ((i, j, value),) = _near.confirm_pairs(rows_of([a, b]), np.array([[0, 1]]))
    assert (i, j) == (0, 1) and value == pytest.approx(expected)


def test_min_hash_estimates_jaccard():
    texts = [sentence(2, 80), sentence(2, 80)[: len(sentence(2, 80)) // 2] + sentence(3, 40)]
    grams = [{t[i : i + 5] for i in range(len(t) - 4)} for t in texts]
    expected = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    one, two = _near.minhash(texts)
    assert abs((one == two).mean() - expected) < 0.15  # 120 draws


def test_bands_have_one_number_where_they_are_equal():
    texts = [sentence(i // 2, 40) + " end" * (i % 2) for i in range(20)]
    bands = _near.minhash(texts).reshape(20, _near.BANDS, _near.BAND_ROWS)
    keys = _near.band_keys(rows_of(texts))
    equal = (bands[:, None] == bands[None]).all(-1)
    assert keys.nbytes == 160 * 20 and equal.sum() > 20 * _near.BANDS
    assert np.array_equal(keys[:, None] == keys[None], equal)


def test_a_crowd_of_alike_texts_is_bounded_and_that_is_said(monkeypatch):
    monkeypatch.setattr(_near, "MAX_BAND_NEIGHBOURS", 3)
    texts = [sentence(1, 60) + f" {i}" for i in range(30)]
    found, more = _near.find_pairs(rows_of(texts), "text", None)
    assert more and 0 < len(found) <= 30 * 3 * _near.BANDS


@given(st.permutations(range(12)))
def test_pairs_do_not_depend_on_the_order_of_rows(order):
    texts = [sentence(i) for i in range(10)] + [sentence(3) + " x", sentence(4).upper()]
    rows = rows_of(texts)
    turned = [rows[i] for i in order]
    found, _ = _near.find_pairs(turned, "text", None)
    names = {frozenset((turned[p.first].where, turned[p.second].where)) for p in found}
    assert names == {frozenset(("row 3", "row 10")), frozenset(("row 4", "row 11"))}


def test_between_keeps_pairs_across_the_border_alone():
    texts = [sentence(1), sentence(1).upper(), sentence(2), sentence(1) + " x", sentence(2).title()]
    found, _ = _near.find_pairs(rows_of(texts), "text", None, between=3)
    assert {(p.first, p.second) for p in found} == {(0, 3), (2, 4)}


def test_a_row_of_another_kind_has_no_pairs():
    assert _near.find_pairs([replace(r, facts=None) for r in rows_of(["a", "b"])], "tensor", None) == ([], False)
