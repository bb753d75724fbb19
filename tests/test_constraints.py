"""What is pinned installs on every Python that regraft says it takes."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def test_what_is_pinned_installs_on_the_oldest_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    looked, refused = 0, {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, pinned, version = line.partition("==")
        if not pinned or name.startswith("#"):
            continue
        try:
            found = metadata(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
        wanted = found.get("Requires-Python")
        looked += found["Version"] == version
        if wanted and not SpecifierSet(wanted).contains(oldest):
            refused[name] = wanted
    assert looked > 50
    assert not refused
