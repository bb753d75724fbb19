"""The worst errors: what is kept of their pictures."""

from PIL import Image

from regraft.pipeline.gallery import SIDE, thumbnail


def test_a_thumbnail_is_small_and_carries_nothing_of_the_file(tmp_path):
    image = Image.new("RGB", (400, 200), (200, 30, 30))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    image.save(tmp_path / "in.jpg", exif=exif, comment=b"my secret")
    thumbnail(str(tmp_path / "in.jpg"), tmp_path / "gallery" / "0.jpg")
    data = (tmp_path / "gallery" / "0.jpg").read_bytes()
    with Image.open(tmp_path / "gallery" / "0.jpg") as made:
        assert made.size == (SIDE, SIDE // 2) and not made.getexif()
        assert abs(made.getpixel((5, 5))[0] - 200) < 8
    assert b"secret" not in data and b"home" not in data
