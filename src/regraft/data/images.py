"""Images of files: a file becomes 8-bit L, RGB or RGBA, or is refused.

Pillow's own conversions clip 16-bit and float greyscale to white, and show the colour below transparent
pixels. Here greyscale is scaled by its range, and transparency is laid on white.
"""

from __future__ import annotations

import stat
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError
from ..io.hashing import file_digest
from .image_costs import excess
from .types import Example, PictureFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")

MAX_PIXELS = 50_000_000  # by the header, because a small file can unpack to a gigabyte

UNREADABLE = "cannot be read as a picture: "

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "TIFF")  # a JPEG's second frame is a camera's preview

STRIP_PIXELS = 1_000_000  # converted at once

MIN_GREY_STD = 2.0  # grey levels; a flatter image has no perceptual hash

BOX = Image.Resampling.BOX

COSINES = np.cos(np.pi / 32 * (np.arange(32) + 0.5) * np.arange(8)[:, None])  # [8, 32]

# Pillow would warn before it fails; MAX_PIXELS is stricter than its limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_picture(path: str | Path, channels: int = 3) -> Image.Image:
    """Return the first frame of an image file, upright, in mode L, RGB or RGBA for 1, 3 or 4 channels.

    Raises DataError for a file that does not decode completely.
    """
    if channels not in MODES:
        raise ValueError(f"a picture has 1, 3 or 4 channels, not {channels}")
    return _read(path, channels)[0]


def picture_of(content: bytes, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the image in a file's content, as ``read_picture`` does.

    Raises DataError. Raises TooCostlyError, and decodes nothing, where the header claims more than
    ``max_pixels`` or the structure costs too much.
    """
    if not content:
        raise DataError(f"the upload {UNREADABLE}it is empty")
    if why := excess(content):
        raise TooCostlyError(f"the upload {UNREADABLE}{why}")
    return _decode(BytesIO(content), "the upload", channels, max_pixels)[0]


def resized(image: Image.Image, size: int | tuple[int, int], resample: int) -> Image.Image:
    """Return the image resized as by torchvision's Resize. Raises TooCostlyError as ``size_after``."""
    after = size_after(image.size, size)
    return image if after == image.size else image.resize(after, Image.Resampling(resample))


def size_after(size: tuple[int, int], wanted: int | tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) after a resize of the shorter side, or to ``wanted`` = (height, width).

    Raises TooCostlyError where a long and narrow image would have more than MAX_PIXELS.
    """
    width, height = size
    if not isinstance(wanted, int):
        return wanted[1], wanted[0]
    other = int(wanted * max(size) / min(size))
    after = (wanted, other) if width <= height else (other, wanted)
    if after[0] * after[1] > MAX_PIXELS:
        raise TooCostlyError(
            f"{UNREADABLE}its {width} × {height} pixels would become {after[0]} × {after[1]}, more than "
            f"{MAX_PIXELS // 10**6} megapixels: cut it into pieces"
        )
    return after


def facts_of(path: str | Path) -> PictureFacts:
    """Decode an image file once; return its facts. Raises DataError as ``read_picture`` does."""
    image, header = _read(path, 3)
    grey = np.asarray(image.convert("L").resize((32, 32), BOX, reducing_gap=2.0), np.float64)
    plain, mirrored = perceptual_hashes(grey)
    thumb = grey.reshape(16, 2, 16, 2).mean((1, 3)).round().astype(np.uint8)
    return PictureFacts(**header, hash=plain, mirrored=mirrored, thumb=thumb.tobytes())


def perceptual_hashes(grey: NDArray[np.float64]) -> tuple[int | None, int | None]:
    """Return the perceptual hashes of a grey image [32, 32] and of its mirror image; None for a flat one.

    A bit tells whether a coefficient of the cosine transform lies above the median. The coefficients are
    those of the 8 × 8 lowest frequencies without the mean. In a mirror image the odd horizontal ones have
    the opposite sign. In a flat image noise would decide the bits.

    Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions, section 3.2.1.
    """
    if grey.std() < MIN_GREY_STD:
        return None, None
    low = COSINES @ grey @ COSINES.T  # [8, 8], vertical by horizontal frequency
    return _bits(low), _bits(low * (-1.0) ** np.arange(8))


def _bits(low: NDArray[np.float64]) -> int:
    values = low.ravel()[1:]  # 63, without the mean
    return int.from_bytes(np.packbits(values > np.median(values)).tobytes())


def _read(path: str | Path, channels: int) -> tuple[Image.Image, dict[str, Any]]:
    """Return the image and the facts of its header. Raises DataError for a file that does not decode."""
    problem = _problem(Path(path))
    if problem:
        raise DataError(f"{path} {UNREADABLE}{problem}")
    return _decode(Path(path), str(path), channels, MAX_PIXELS)


def _decode(content: Path | BytesIO, name: str, channels: int, max_pixels: int) -> tuple[Image.Image, dict[str, Any]]:
    try:
        with Image.open(content, formats=FORMATS) as file:
            _check_size(file, max_pixels)
            raw = str(file.tile[0][3]) if file.tile else ""  # Pillow reads 16-bit colour as 8 bits
            header = {
                "format": str(file.format),
                "mode": file.mode,
                "size": file.size,
                "deep": ";16" in raw or file.mode[0] in "IF",
                "animated": file.format in ANIMATED_FORMATS and bool(getattr(file, "is_animated", False)),
                "orientation": _orientation(file),
            }
            file.load()
            return _convert(_upright(file), channels), header
    except (TooManyPixelsError, Image.DecompressionBombError) as error:
        raise TooManyPixelsError(f"{name} {UNREADABLE}{_in_words(error)}") from error
    except MemoryError as error:
        raise TooCostlyError(f"{name} {UNREADABLE}it takes more memory than there is") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, … on bad files
        raise DataError(f"{name} {UNREADABLE}{_in_words(error)}") from error


def reason(error: DataError) -> str:
    """Return why an image cannot be read, without its path."""
    return str(error).partition(UNREADABLE)[2]


def _in_words(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is not a {', '.join(FORMATS)} file"
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    if isinstance(error, bombs):  # far beyond MAX_PIXELS, where Pillow refuses first
        return f"it claims more than {MAX_PIXELS // 10**6} megapixels"
    return str(error)


def _problem(path: Path) -> str | None:
    """Return why a path is no file with content. It is not opened, because a pipe may never end."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:  # a loop of links, a name too long, no permission
        return str(error.strerror or error)
    if not stat.S_ISREG(about.st_mode):
        return "it is not a regular file"
    return None if about.st_size else "it is empty"


class TooCostlyError(DataError):
    """An image that costs too much pixels, time or memory to decode."""


class TooManyPixelsError(TooCostlyError):
    """An image whose header claims more pixels than regraft decodes."""


def _check_size(file: Image.Image, max_pixels: int) -> None:
    width, height = file.size
    if width * height > max_pixels:
        raise TooManyPixelsError(f"{width} × {height} pixels are more than {max_pixels / 1_000_000:g} megapixels")


def _orientation(file: Image.Image) -> int:
    try:
        value = int(file.getexif().get(0x0112, 1))
    except Exception:  # as in _upright
        return 1
    return value if 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:  # exif_transpose would copy the pixels
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are complete and only the tag is damaged
        return image


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Convert any mode to L, RGB or RGBA, without clipping, and lay transparency on white."""
    wanted = MODES[channels]
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return _in_strips(image, _scaled(image), "L").convert(wanted)
    if image.has_transparency_data and channels != 4:
        return _in_strips(image, lambda part: _on_white(part).convert(wanted), wanted)
    # A copy, because the pixels must outlive the file.
    return image.convert(wanted) if image.mode != wanted else image.copy()


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image], mode: str) -> Image.Image:
    """Return ``convert(image)``, computed in strips, because intermediate results take much memory."""
    if image.width * image.height <= STRIP_PIXELS:
        return convert(image)
    made = Image.new(mode, image.size)
    for box in _strips(image.size):
        made.paste(convert(image.crop(box)), box)
    return made


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _scaled(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the function that scales this greyscale image of more than 8 bits, or a part of it, to 8 bits.

    It scales by the range of the format: [0, 65535] for 16 bits; [0, 1] or [0, 255] for floats within it.
    Values outside of these are scaled by the image's own least and greatest. Raises ValueError for values
    that are not finite.
    """
    low, high = float("inf"), float("-inf")
    for box in _strips(image.size):
        values = np.asarray(image.crop(box), np.float64)  # [rows, W]
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    limits = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    limit = next((x for x in limits if low >= 0 and high <= x), None)
    least, span = (0.0, limit) if limit is not None else (low, high - low)

    def scale(part: Image.Image) -> Image.Image:
        values = np.asarray(part, np.float64) - least
        return Image.fromarray(np.round(values * (255 / (span or 1))).astype(np.uint8), "L")

    return scale


# ---------------------------------------------------------------- files that change


class KnownFiles:
    """Image files whose content was checked against the data as they were read.

    A file is hashed again only when its inode, size or time has changed.
    """

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, int, int]] = {}  # row's id → inode, bytes, time in ns

    def check(self, example: Example) -> None:
        """Raise DataError for an image file that is missing or has other content than the data had."""
        if example.facts is None:  # no image, or one that was not identified by its content
            return
        path = Path(example.inputs[0])
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):  # its reader refuses it, without waiting for a pipe
                return
            state = (about.st_ino, about.st_size, about.st_mtime_ns)
            if self.states.get(example.id) == state:
                return
            digest = file_digest(path)
        except OSError as error:
            raise DataError(
                f"{path} was there when the data were read and cannot be read now "
                f"({error.strerror or error}): put it back, then go on with --resume"
            ) from error
        if not digest.startswith(example.content):
            raise DataError(
                f"{path} was changed after the data were read: put back what it was and go on with "
                f"--resume, or begin another run"
            )
        self.states[example.id] = state
