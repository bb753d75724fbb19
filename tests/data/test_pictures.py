import numpy as np
import pytest
from PIL import Image, ImageFile

from regraft.data import images as pictures
from regraft.data.images import facts_of, read_picture, reason
from regraft.errors import DataError


@pytest.mark.fault(49)
@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 65535), (np.float32, 1.0), (np.int32, 1e6)])
def test_deep_greyscale_is_scaled_and_not_clipped(tmp_path, dtype, top):
    ramp = np.linspace(0, top, 256).astype(dtype)[None].repeat(2, 0)
    Image.fromarray(ramp).save(tmp_path / "a.tiff")
    seen = np.asarray(read_picture(tmp_path / "a.tiff", 1))
    assert np.abs(seen[0].astype(int) - np.arange(256)).max() <= 1


def test_16_bit_png_has_a_range_of_its_own_format(tmp_path):  # not of the picture
    Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png", 3)).tolist() == [[[100] * 3] * 4] * 4


@pytest.mark.fault(48)
def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    Image.new("P", (2, 2), 0).save(tmp_path / "p.gif", transparency=0)
    for name in ("rgba.png", "la.png", "p.gif"):
        for channels, mode in ((1, "L"), (3, "RGB")):
            image = read_picture(tmp_path / name, channels)
            assert image.mode == mode and np.asarray(image).min() == 255, name
    assert read_picture(tmp_path / "rgba.png", 4).getpixel((0, 0)) == (0, 0, 0, 0)


@pytest.mark.fault(48)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_mode_reads_as_every_number_of_channels(tmp_path, mode):
    Image.new("RGB", (3, 2), "white").convert(mode).save(tmp_path / "a.tiff")
    for channels, wanted in pictures.MODES.items():
        image = read_picture(tmp_path / "a.tiff", channels)
        assert image.mode == wanted and image.size == (3, 2)
        assert np.asarray(image).min() >= 254


STORED = {  # EXIF orientation → how a camera stores what stands upright
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.fault(51)
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_upright(tmp_path, orientation):
    upright = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert (np.asarray(read_picture(tmp_path / "a.png")) == upright).all()


def test_a_broken_orientation_tag_does_not_cost_the_picture(tmp_path, monkeypatch):
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(pictures.ImageOps, "exif_transpose", lambda image: 1 / 0)
    assert read_picture(tmp_path / "a.jpg").size == (4, 2)


@pytest.mark.fault(50)
def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.fault(47)
def test_what_does_not_decode_whole_is_refused_with_the_reason(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.fromarray(noise).save(tmp_path / "other.ico")
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    why = {
        "cut.jpg": "truncated",
        "empty.jpg": "it is empty",
        "text.jpg": "it is not a JPEG, PNG",
        "other.ico": "it is not a JPEG, PNG",
        "nan.tiff": "not finite",
        "none.jpg": "there is no such file",
        ".": "not a regular file",
    }
    for name, words in why.items():
        for read in (read_picture, facts_of):
            with pytest.raises(DataError, match="cannot be read as a picture: ") as caught:
                read(tmp_path / name)
            assert words in reason(caught.value), name
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.fault(53)
def test_size_is_checked_on_the_header(tmp_path):
    # a header that claims so many pixels; there are none to decode. Pillow itself stops at the second.
    for side in (8_000, 60_000):
        (tmp_path / "a.ppm").write_bytes(f"P6 {side} {side} 255\n".encode())
        for read in (read_picture, facts_of):
            with pytest.raises(DataError, match="more than 50 megapixels"):
                read(tmp_path / "a.ppm")
