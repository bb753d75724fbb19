import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from regraft.commands import demo


def pictures(folder):
    """path below the folder → pixels"""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            assert image.mode == "L" and image.size == (demo.SIDE, demo.SIDE), path
            found[path.relative_to(folder).as_posix()] = np.asarray(image).copy()
    return found


def same(a, b):
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(demo, "EACH_TRAIN", 3)
    monkeypatch.setattr(demo, "EACH_TEST", 2)


def test_letters_are_a_function_of_the_seed(tmp_path, few):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.write_letters(tmp_path / name, seed)
    first = pictures(tmp_path / "a")
    assert len(first) == 5 * len(demo.LETTERS)
    assert same(first, pictures(tmp_path / "b"))
    assert not same(first, pictures(tmp_path / "c"))


def test_letters_fill_the_height_in_the_middle_as_the_digits_do(tmp_path, few):
    demo.write_letters(tmp_path, seed=0)
    for name, pixels in pictures(tmp_path).items():
        ink = np.flatnonzero(pixels.any(0))
        assert pixels.any(1).all(), name
        assert abs(ink[0] - (demo.SIDE - 1 - ink[-1])) <= 1, name


def test_letters_are_no_digits_and_differ_by_more_than_case():
    assert demo.LETTERS.isalpha() and demo.LETTERS.isascii()
    assert len(set(demo.LETTERS)) == len(demo.LETTERS)


def test_letter_folders_differ_where_case_is_ignored(tmp_path, few):
    demo.write_letters(tmp_path, seed=0)
    train, test = ({f.name for f in (tmp_path / s).iterdir()} for s in ("train", "test"))
    assert train == test and len({name.lower() for name in train}) == len(demo.LETTERS)


def test_every_digit_of_the_second_half_is_used_once(tmp_path):
    demo.write_digits(tmp_path, 3, seed=0)
    data = load_digits()
    found = pictures(tmp_path)
    assert sorted(int(name[-8:-4]) for name in found) == list(range(898, len(data.images)))
    for name, pixels in found.items():
        row = int(name[-8:-4])
        assert name.split("/")[1] == str(data.target[row])
        assert (np.round(pixels / 255 * 16) == data.images[row]).all()
    train = [name.split("/")[1] for name in found if name.startswith("train/")]
    assert sorted(train) == sorted("0123456789" * 3)


def test_which_digits_are_labelled_is_a_function_of_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.write_digits(tmp_path / name, 3, seed)
    a, b, c = (pictures(tmp_path / name) for name in "abc")
    assert same(a, b) and a.keys() != c.keys()
