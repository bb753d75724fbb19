"""Planted faults that ``regraft check`` should find.  python benchmarks/check_folder.py PHOTOS OUT [SOURCE]

PHOTOS is a folder of train/CLASS and test/CLASS photos (17 flowers). 400 of them are copied to OUT, by a
hash of their names; 10 labels are flipped, and 5 exact duplicates and 5 near ones across the splits, 3
conflicting labels and one of each kind of broken file are planted. Then check runs on it, what it found is
scored, and check runs on PHOTOS as they are, whose pairs are for eyes to judge. OUT must not exist.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import regraft
from regraft.pipeline.findings import CheckReport

PICTURES, TEST_SHARE, FLIPS = 400, 0.2, 10


@dataclass
class Planted:
    """File names by what they are."""

    exact: list[str] = field(default_factory=list)
    near: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    flips: list[str] = field(default_factory=list)
    kinds: dict[str, tuple[str, str]] = field(default_factory=dict)  # name → check, words


def main(photos: Path, out: Path, source: str) -> None:
    planted = make(photos, out)
    begin = time.monotonic()
    found = regraft.check(out, source=source)
    print(f"check of {out.name}: {sum(found.rows.values())} rows in {time.monotonic() - begin:.0f} s")
    score(planted, found)
    begin = time.monotonic()
    found = regraft.check(photos, source=source)
    print(f"\ncheck of {photos.name}: {sum(found.rows.values())} rows in {time.monotonic() - begin:.0f} s")
    for f in found.findings:
        print(f"  {f.severity} {f.check}: {f.count} of {f.of} {f.what}")
        for example in f.examples if f.check == "near_duplicates" else f.examples[:3]:
            print(f"    {example}")


# ---------------------------------------------------------------- planted faults


def make(photos: Path, out: Path) -> Planted:
    classes = sorted(p.name for p in (photos / "train").iterdir())
    by_class = {c: sorted(photos.glob(f"*/{c}/*.jpg"), key=place) for c in classes}
    # round robin over classes, each in the order of a hash
    turns = [files[i] for i in range(PICTURES) for files in by_class.values() if i < len(files)]
    rows = [(p.parent.name, p) for p in turns[:PICTURES]]
    test = int(PICTURES * TEST_SHARE)
    for i, (label, path) in enumerate(rows):
        copy(path, out / ("test" if i < test else "train") / label / path.name)
    train = rows[test:]
    done = Planted()
    for k, (label, path) in enumerate(train[:FLIPS]):
        wrong = classes[(classes.index(label) + 1 + k) % len(classes)]
        wrong = classes[0] if wrong == label else wrong
        to = out / "train" / wrong / path.name
        (out / "train" / label / path.name).rename(to)
        done.flips.append(to.name)
    for label, path in train[20:25]:
        copy(path, out / "test" / label / f"exact-{path.name}")
        done.exact.append(f"exact-{path.name}")
    for k, (label, path) in enumerate(train[30:35]):
        name = f"near-{k}-{path.stem}.{'png' if k == 4 else 'jpg'}"
        near(k, path, out / "test" / label / name)
        done.near.append(name)
    for label, path in train[40:43]:
        other = classes[(classes.index(label) + 3) % len(classes)]
        copy(path, out / "train" / other / f"conflict-{path.name}")
        done.conflicts.append(f"conflict-{path.name}")
    label, path = train[50]
    where = out / "train" / label
    for name, check, words, write in broken(path):
        write(where / name)
        done.kinds[name] = (check, words)
    return done


def near(k: int, path: Path, to: Path) -> None:
    """Write near copies of a picture: smaller; encoded again; mirrored; all three; smaller, as PNG."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    small = (image.width * 3 // 5, image.height * 3 // 5)
    if k in (0, 3, 4):
        image = image.resize(small, Image.Resampling.BICUBIC)
    if k in (2, 3):
        image = ImageOps.mirror(image)
    image.save(to, **({} if to.suffix == ".png" else {"quality": 40 if k in (1, 3) else 90}))


def broken(photo: Path) -> Iterator[tuple[str, str, str, object]]:
    """Return (name, check that should find it, words of its message, writer) of each fault."""
    data = photo.read_bytes()
    with Image.open(photo) as file:
        image = file.convert("RGB")
    image = image.crop((10, 10, image.width - 30, image.height - 50))  # no duplicate of the photo
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.asarray(image.convert("L"), np.uint16) * 257
    frames = [image.rotate(a) for a in (5, 10)]
    looped = "a link that leads nowhere"
    yield "empty.jpg", "unreadable", "empty", lambda p: p.touch()
    yield ("truncated.jpg", "unreadable", "truncated", lambda p: p.write_bytes(data[: len(data) // 2]))
    yield "text.jpg", "unreadable", "not a JPEG", lambda p: p.write_text("<html>not found</html>")
    yield "bomb.ppm", "unreadable", "megapixels", lambda p: p.write_bytes(b"P6 60000 60000 255\n")
    yield "cmyk.jpg", "picture_kinds", "CMYK", lambda p: image.rotate(180).convert("CMYK").save(p)
    yield "deep.png", "picture_kinds", "8 bits", lambda p: Image.fromarray(grey).rotate(90).save(p)
    moving = {"save_all": True, "append_images": frames[1:]}
    yield "animated.gif", "picture_kinds", "animated", lambda p: frames[0].save(p, **moving)
    yield "turned.jpg", "picture_kinds", "EXIF", lambda p: image.rotate(45).save(p, exif=exif)
    yield "really-png.jpg", "picture_kinds", "extension", lambda p: image.rotate(20).save(p, "PNG")
    yield "folder.jpg", "left_out", "a folder named like a picture", lambda p: p.mkdir()
    yield "pipe.jpg", "left_out", "not a regular file", os.mkfifo
    yield "loop.jpg", "left_out", looped, lambda p: p.symlink_to(p.name)
    yield ("outside.jpg", "left_out", "out of the data folder", lambda p: p.symlink_to(photo.resolve()))


def copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def place(path: Path) -> str:
    return hashlib.sha256(path.name.encode()).hexdigest()


# ---------------------------------------------------------------- findings


def score(planted: Planted, found: CheckReport) -> None:
    def hits(names: list[str], check: str, words: str = "") -> list[str]:
        texts = [e for f in found.findings if f.check == check and words in f.what for e in f.examples]
        return [n for n in names if any(n in text for text in texts)]

    for what, names, check, words in (
        ("exact duplicates across splits", planted.exact, "exact_duplicates", "rows of test"),
        ("near duplicates across splits", planted.near, "near_duplicates", "of test"),
        ("conflicting labels", planted.conflicts, "conflicting_labels", ""),
        ("flipped labels", planted.flips, "label_errors", ""),
    ):
        got = hits(names, check, words)
        missed = ", ".join(sorted(set(names) - set(got)))
        print(f"  {what}: {len(got)} of {len(names)}" + (f" (missed: {missed})" if missed else ""))
    for f in found.findings:
        if f.check in ("near_duplicates", "label_errors"):
            others = [e for e in f.examples if not any(n in e for n in vars(planted)["near"] + planted.flips)]
            print(f"  {f.check}: {f.count} {f.what}; not planted there: {len(others)}")
            for example in others[:12]:
                print(f"    {example}")
    for name, (check, words) in planted.kinds.items():
        there = any(
            name in e and words in f"{f.what} {e}" for f in found.findings if f.check == check for e in f.examples
        )
        print(f"  {name:<16} {'found' if there else 'MISSED'} by {check}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), (sys.argv[3:] or ["bundled:efficientnet-lite0"])[0])
