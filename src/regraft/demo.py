"""The demo: letters → handwritten digits, offline, from what is inside installed packages.

The source is a small network trained here on letters drawn in matplotlib's own fonts, rotated and
sheared, at the resolution of the target. The target is scikit-learn's handwritten digits (8 × 8
pixels, 1,797 pictures; Alpaydin and Kaynak 1998) with three labelled pictures a class; all others
are the test. Both are written as image folders, so that the demo walks the path that users walk.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .plan import check
from .run import run
from .runfiles import check_new, read_json
from .summary import summary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .arms import Say, Track

SIDE = 8  # pixels, as scikit-learn's digits
LETTERS = string.ascii_uppercase + "abdefghmnqrt"  # lower case where it is another shape
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
         "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic", "cmss10", "cmmi10")  # fmt: skip
EACH_TRAIN, EACH_TEST = 100, 10  # pictures a letter
LABELS = 3  # labelled digits a class
SEEDS = 5


def demo(out: Path, say: Say, track: Track | None = None) -> str:
    """Write data and two runs below ``out``; → what to tell.

    Raises UsageError where ``out`` exists.
    """
    check_new(out)
    say("drawing letters, and writing scikit-learn's digits as picture folders")
    write_letters(out / "letters", seed=0)
    write_digits(out / "digits", LABELS, seed=0)

    say("\n1. a source: a small network learns the letters")
    source = run(
        check({
            "source": {"ref": "random:timm/test_resnet", "image_size": 32, "in_channels": 1},
            "data": {"path": str(out / "letters")},
            "augment": {"scale": [0.7, 1.0], "flip": False},
            "fit": {"epochs": 8, "batch_size": 64, "lr": 3e-3, "head_lr": 3e-3},
            "run": {"out": str(out / "source"), "workers": 0},
        }),
        say=say, track=track,
    )  # fmt: skip
    say(
        f"\n2. the target: {LABELS} labelled digits a class, {SEEDS} seeds, beside the same network from scratch"
    )
    target = run(
        check({
            "source": {"ref": str(source)},
            "data": {"path": str(out / "digits")},
            "augment": {"scale": [0.7, 1.0], "flip": False},
            "fit": {"epochs": 20, "batch_size": 15, "lr": 3e-4, "head_lr": 3e-4},
            "evaluate": {"controls": ["scratch"]},
            "run": {"out": str(out / "transfer"), "seeds": SEEDS, "workers": 0},
        }),
        say=say, track=track,
    )  # fmt: skip
    result = read_json(target / "result.json")
    mean = result["mean"]
    return "\n".join(
        (
            "",
            summary(target, result),
            "",
            f"With {LABELS} labelled pictures a class, the network that had seen letters reads "
            f"{mean['fit']['accuracy']['mean']:.1%} of the digits,",
            f"the same network from scratch {mean['scratch']['accuracy']['mean']:.1%} (means of "
            f"{SEEDS} seeds). Transfer is worth most where labels are few: at ten a class",
            "scratch had nearly caught up when we tried (docs/log.md).",
        )
    )


def write_digits(folder: Path, labels: int, seed: int) -> None:
    """scikit-learn's digits as train/CLASS and test/CLASS, ``labels`` of each class in train."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(digits.target == digit))
        for i, row in enumerate(rows):
            split = "train" if i < labels else "test"
            pixels = np.round(digits.images[row] * 255 / 16).astype(np.uint8)
            save(pixels, folder / split / str(digit) / f"{row:04d}.png")


def write_letters(folder: Path, seed: int) -> None:
    """Letters in matplotlib's fonts: turned up to 15°, sheared, stretched, at SIDE × SIDE pixels.

    Like scikit-learn's digits they keep their proportions, fill the height and stand in the middle.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(seed)
    here = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(here / f"{name}.ttf"), 40) for name in FONTS]
    for letter in LETTERS:
        # names that differ by more than case, for file systems that ignore it
        name = f"{letter}-{'upper' if letter.isupper() else 'lower'}"
        for i in range(EACH_TRAIN + EACH_TEST):
            page = Image.new("L", (96, 96))
            font, stroke = fonts[rng.integers(len(fonts))], int(rng.integers(0, 4))
            ImageDraw.Draw(page).text((48, 48), letter, 255, font, "mm", stroke_width=stroke)
            angle, shear = np.radians(rng.uniform(-15, 15)), rng.uniform(-0.4, 0.4)
            a, b, c, d = np.cos(angle), np.sin(angle) + shear, -np.sin(angle), np.cos(angle)
            a *= rng.uniform(0.8, 1.5)  # narrower or wider, as hands write
            centre = (48 - a * 48 - b * 48, 48 - c * 48 - d * 48)
            turned = page.transform(
                page.size,
                Image.Transform.AFFINE,
                (a, b, centre[0], c, d, centre[1]),
                Image.Resampling.BILINEAR,
            )
            drawn = turned.crop(turned.getbbox())
            width = max(1, min(SIDE, round(SIDE * drawn.width / drawn.height)))
            square = Image.new("L", (SIDE, SIDE))
            square.paste(drawn.resize((width, SIDE), Image.Resampling.BOX), ((SIDE - width) // 2, 0))
            split = "train" if i < EACH_TRAIN else "test"
            save(np.asarray(square), folder / split / name / f"{i:03d}.png")


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
