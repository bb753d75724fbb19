"""The demo: letters → handwritten digits, offline, from what is inside installed packages.

The source is a small network trained here on letters drawn in matplotlib's own fonts, turned,
sheared and bent, at the resolution of the target; no digit is drawn. The target is scikit-learn's
handwritten digits (8 × 8 pixels; Alpaydin and Kaynak 1998) with three labelled pictures a class; all
others are the test. Of the 1,797 digits the demo shows the second half; its settings were chosen on
the first, which other people wrote. Both are written as image folders, so that the demo walks the
path that users walk.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..io.log import LOGGER
from ..pipeline.run import RunOptions, run
from ..plan.read import check
from ..plan.schema import Plan
from ..report.render import report
from ..runs.folder import check_new
from ..runs.result import finished
from ..runs.summary import summary

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import ImageFont

    from ..pipeline.arms import ProgressDisplay


SIDE = 8  # pixels, as scikit-learn's digits

PAGE = 64  # pixels that a letter is drawn on

LETTERS = string.ascii_uppercase + "abdefghmnqrt"  # lower case where it is another shape

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmti10",
    "cmmi10",
)

EACH_TRAIN, EACH_TEST = 159, 6  # pictures a letter; 228 in test: enough to claim what was forgotten

LABELS = 3  # labelled digits a class

SEEDS = 5

SHOWN = slice(898, None)  # digits of the demo; those before are for choosing its settings

THREADS = 1  # two are far slower beside other work on the same two cores

# Set what regraft would else choose by timing: results depend on it, and a busy machine could choose otherwise.
FIXED = {
    "workers": 0,
    "threads": THREADS,
    "layout": "channels_last",
    "precision": "float32",
    "feature_precision": "float32",
}


def demo(out: Path, track: ProgressDisplay | None = None) -> str:
    """Write data and two runs below ``out``, and return the text to print.

    Raises UsageError where ``out`` exists.
    """
    check_new(out)
    LOGGER.info("drawing letters, and writing scikit-learn's digits as picture folders")
    write_letters(out / "letters", seed=0)
    write_digits(out / "digits", LABELS, seed=0)

    LOGGER.info("\n1. a source: a small network learns the letters")
    source = run(source_plan(out / "letters", out / "source"), RunOptions(track=track))
    text = "\n2. the target: %d labelled digits a class, %d seeds, beside the same network from scratch"
    LOGGER.info(text, LABELS, SEEDS)
    target = run(target_plan(source, out / "digits", out / "transfer"), RunOptions(track=track))
    result = finished(target)
    shown = report([target])
    fit, scratch = (result.mean[arm][result.primary].mean for arm in ("fit", "scratch"))
    return "\n".join(
        (
            "",
            summary(target, result),
            "",
            f"With {LABELS} labelled pictures a class, the network that had seen letters reads "
            f"{fit:.1%} of the digits,",
            f"the same network from scratch {scratch:.1%} (means of "
            f"{SEEDS} seeds). Transfer is worth most where labels are few.",
            "",
            f"All of it on one page, for a browser: {shown}",
        )
    )


def source_plan(letters: Path, out: Path) -> Plan:
    return check(
        {
            "source": {"ref": "random:timm/test_resnet", "image_size": 32, "in_channels": 1},
            "data": {"path": str(letters)},
            "augment": {"random_resized_crop": False, "flip": False},  # no two are drawn alike
            "fit": {"epochs": 6, "batch_size": 64, "lr": 3e-3, "head_lr": 3e-3},
            "run": {"out": str(out), **FIXED},
        }
    )


def target_plan(source: Path, digits: Path, out: Path) -> Plan:
    """Return the plan of the target. Its settings were chosen on digits that the demo never shows (docs/log.md)."""
    return check(
        {
            "source": {"ref": str(source)},
            "data": {"path": str(digits)},
            "augment": {"scale": [0.7, 1.0], "flip": False},
            # The control tries 0.3, 1 and 3 times scratch_lr (and beyond), the rate that taught it letters.
            "fit": {
                "epochs": 20,
                "batch_size": 15,
                "lr": 2e-3,
                "head_lr": 2e-3,
                "layer_decay": 0.7,
                "scratch_lr": 3e-3,
            },
            "evaluate": {"controls": ["scratch"]},
            "run": {"out": str(out), "seeds": SEEDS, **FIXED},
        }
    )


def write_digits(folder: Path, labels: int, seed: int, part: slice = SHOWN) -> None:
    """Write a part of scikit-learn's digits as train/CLASS and test/CLASS, with ``labels`` of each class in train."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    shown = np.arange(len(digits.target))[part]
    for digit in range(10):
        rows = rng.permutation(shown[digits.target[shown] == digit])
        for i, row in enumerate(rows):
            split = "train" if i < labels else "test"
            pixels = np.round(digits.images[row] * 255 / 16).astype(np.uint8)
            save(pixels, folder / split / str(digit) / f"{row:04d}.png")


def write_letters(folder: Path, seed: int) -> None:
    """Write LETTERS as train/CLASS and test/CLASS. Each picture has another font, pen, turn and bend."""
    import matplotlib
    from PIL import ImageFont

    rng = np.random.default_rng(seed)
    here = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(here / f"{name}.ttf", PAGE / 2) for name in FONTS]
    for letter in LETTERS:
        # names that differ by more than case, for file systems that ignore it
        name = f"{letter}-{'upper' if letter.isupper() else 'lower'}"
        for i in range(EACH_TRAIN + EACH_TEST):
            split = "train" if i < EACH_TRAIN else "test"
            save(draw(letter, fonts[rng.integers(len(fonts))], rng), folder / split / name / f"{i:03d}.png")


def draw(letter: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a letter turned up to 15°, sheared up to 0.3, stretched and bent: [SIDE, SIDE].

    Like scikit-learn's digits it is black or white at four times the side, as high as the box, in
    its middle, and each pixel is the mean of 4 × 4.
    """
    from PIL import Image, ImageDraw
    from scipy.ndimage import map_coordinates

    page = Image.new("L", (PAGE, PAGE))
    middle, pen = PAGE / 2, rng.uniform(0, 2)
    ImageDraw.Draw(page).text((middle, middle), letter, 255, font, "mm", stroke_width=pen)
    angle, shear = np.radians(rng.uniform(-15, 15)), rng.uniform(-0.3, 0.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle) + shear, np.cos(angle)]])
    turn = turn * rng.uniform(0.8, 1.25, 2)
    grid = np.indices((PAGE, PAGE)) - middle  # [2, PAGE, PAGE]
    coarse = rng.normal(0, 1.5, (2, 4, 4)).astype(np.float32)  # pixels of the page
    bend = [Image.fromarray(c).resize((PAGE, PAGE), Image.Resampling.BICUBIC) for c in coarse]
    at = np.einsum("ij,jhw->ihw", turn, grid) + middle + np.stack([np.asarray(b) for b in bend])
    ink = map_coordinates(np.asarray(page, dtype=np.float32), at, order=1) > 80  # of 255

    high, wide = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    crop = Image.fromarray(ink[high[0] : high[-1] + 1, wide[0] : wide[-1] + 1].astype(np.uint8) * 255)
    full = 4 * SIDE
    width = min(full, max(3, round(crop.width * full / crop.height)))
    box = Image.new("L", (full, full))
    box.paste(crop.resize((width, full), Image.Resampling.BILINEAR), ((full - width) // 2, 0))
    return np.asarray(box.resize((SIDE, SIDE), Image.Resampling.BOX))


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
