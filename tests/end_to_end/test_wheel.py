"""What `make dist` builds, installed where nothing of the checkout can be seen.

The clean environment borrows the installed dependencies by a .pth file: it does not download gigabytes of torch again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Clean(NamedTuple):
    bin: Path
    packages: Path  # its site-packages
    wheel: Path
    sdist: Path

    def environment(self, cwd: Path) -> dict[str, str]:
        """No variable that points elsewhere."""
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(cwd),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "REGRAFT_STATE": str(cwd / "state"),
            "REGRAFT_CACHE": str(cwd / "cache"),
        }

    def run(self, *command: str, cwd: Path) -> str:
        """stdout of a program of this environment."""
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=cwd,
            env=self.environment(cwd),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Build from a copy, sdist first and the wheel from it, and install the wheel alone."""
    here = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "src", here / "copy" / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, here / "copy")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(here / "out")]
    done = subprocess.run([*build, str(here / "copy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = (here / "out").glob("*.whl"), (here / "out").glob("*.tar.gz")

    venv.create(here / "venv", with_pip=False, symlinks=True)
    python = here / "venv" / "bin" / "python"

    shutil.rmtree(here / "copy")  # it must not be found either
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    offline = ["--no-index", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run([*pip, *offline], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(here / "venv")}))
    borrowed = [p for p in sys.path if Path(p).name == "site-packages"]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return Clean(python.parent, packages, wheel, sdist)


def test_the_wheel_holds_every_file_of_the_package(clean: Clean) -> None:
    kept = {".py", ".html", ".js", ".css", ".svg", ".toml", ".typed"}
    src = ROOT / "src"
    wanted = {p.relative_to(src).as_posix() for p in src.rglob("*") if p.suffix in kept or p.name == "py.typed"}
    with zipfile.ZipFile(clean.wheel) as wheel:
        assert wanted <= set(wheel.namelist())
        assert not [n for n in wheel.namelist() if not n.startswith("regraft")]
    with tarfile.open(clean.sdist) as sdist:
        inside = {n.partition("/src/")[2] for n in sdist.getnames() if "/src/" in n}
    assert wanted <= inside
    strays = [
        p
        for p in (src / "regraft").rglob("*")
        if p.is_file() and p.suffix not in kept | {".pyc"} and p.name != "py.typed"
    ]
    assert not strays, "a kind of file that the wheel leaves out: add it to package-data"


def test_the_wheel_is_what_runs(clean: Clean, tmp_path: Path) -> None:
    said = clean.run("python", "-c", "import regraft, sys; print(regraft.__file__, *sys.path)", cwd=tmp_path)
    file, *paths = said.split()
    assert Path(file).is_relative_to(clean.packages)
    assert not [p for p in paths if Path(p).is_relative_to(ROOT) and Path(p).name != "site-packages"]


def test_every_command_of_the_wheel_has_its_help(clean: Clean, tmp_path: Path) -> None:
    said = clean.run("regraft", "--help", cwd=tmp_path)
    commands = re.findall(r"^│ ([a-z][a-z-]*)  ", said, re.M)
    assert {"demo", "fit", "report"} <= set(commands)
    for command in commands:
        assert "Usage: regraft" in clean.run("regraft", command, "--help", cwd=tmp_path)


ASK = """
import sys, urllib.request as r
for path in ("", "app.js", "style.css", "health"):
    with r.urlopen(sys.argv[1].rstrip("/") + "/" + path, timeout=30) as answer:
        assert answer.status == 200 and answer.read(), path
"""


def serves(clean: Clean, run: Path, cwd: Path) -> None:
    """`regraft serve` of the wheel gives its page with the files of it, and says that it is well."""
    command = [str(clean.bin / "regraft"), "serve", str(run), "--port", "0", "--json"]
    env = clean.environment(cwd)
    with subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            clean.run("python", "-c", ASK, json.loads(server.stdout.readline())["url"], cwd=cwd)
        finally:
            server.terminate()


def test_the_demo_of_the_wheel_shows_that_transfer_helps(clean: Clean, tmp_path: Path) -> None:
    text = clean.run("regraft", "demo", "--quiet", "--out", "demo", cwd=tmp_path)
    result = json.loads((tmp_path / "demo" / "transfer" / "result.json").read_text())
    assert result["verdict"]["words"] == "transfer helps"
    assert "transfer helps" in text.lower()
    kept = result["retention"]  # of the letters
    assert kept["kind"] == "source data" and kept["claim"] and kept["before"]["n"] == 228
    assert "FRONTIER" in text and "forgetting" in text
    for run in ("source", "transfer"):
        files = {p.name for p in (tmp_path / "demo" / run).iterdir()}
        assert {"plan.toml", "result.json", "predictions.csv", "history.jsonl", "model"} <= files

    shown = tmp_path / "demo" / "transfer" / "report.html"
    assert text.rstrip().endswith(os.path.relpath(shown, tmp_path)) and shown.stat().st_size < 2e6
    clean.run("regraft", "report", "demo/source", cwd=tmp_path)
    assert "<title>" in (tmp_path / "demo" / "source" / "report.html").read_text()
    serves(clean, tmp_path / "demo" / "transfer", tmp_path)
