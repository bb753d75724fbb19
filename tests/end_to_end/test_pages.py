"""The pages in a real browser, beside a real run in another process."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from listeners import on_loopback_alone

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fast_processes")]
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def regraft(*args: object, **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "regraft", *map(str, args)]
    return subprocess.Popen(command, env=ENV, text=True, **how)


def fit(pictures: Path, weights: Path, out: Path, *more: object) -> list[object]:
    return [
        "fit",
        pictures,
        "--source",
        "timm:test_resnet",
        "--weights",
        weights,
        "--out",
        out,
        "--set",
        "source.image_size=32",
        "--set",
        "run.threads=1",
        "--batch-size",
        16,
        *more,
    ]


@contextmanager
def page_of(*args: object) -> Iterator[str]:
    """The address at which a command answers."""
    process = regraft(*args, "--no-browser", stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        on_loopback_alone(process.pid)
        yield line.split(": ", 1)[1].split()[0]
    finally:
        process.send_signal(2)  # as Ctrl-C
        assert process.wait(30) == 0
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def browser(address: str, problems: list[str]) -> Iterator[Any]:
    """A page of a real browser; what it complains of or asks elsewhere is a problem."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.fail("this test needs Chromium: apt-get install chromium, or chromium-browser")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=ARGS)
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(120_000)

        def watch(page: Any) -> None:
            page.on("console", lambda message: problems.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: problems.append(f"error: {error}"))
            page.on("dialog", lambda dialog: problems.append("a dialog"))

        def asked(request: Any) -> None:
            if not request.url.startswith((address, "data:")):
                problems.append(f"asked {request.url}")

        context.on("page", watch)
        context.on("request", asked)
        try:
            yield context
        finally:
            chromium.close()


def test_a_run_of_another_process_is_followed_to_its_end(pictures, weights, tmp_path):
    runs = tmp_path / "runs"
    problems: list[str] = []
    quiet = ("-q", "--set", "regularizers.l2_sp.alpha=0.01")
    with page_of("watch", runs / "one") as address, browser(address, problems) as context:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#state.absent")
        job = regraft(*fit(pictures, weights, runs / "one", "--epochs", 40, *quiet))
        try:
            page.wait_for_selector("#state.running")
            assert f"process {job.pid}" in page.inner_text("#state")
            row = "#table tbody tr:nth-child({})"  # the newest epoch is the first
            page.wait_for_selector(row.format(2), state="attached")
            seen = page.locator("#table tbody tr").count()
            page.wait_for_selector(row.format(seen + 1), state="attached")
            assert job.wait(240) == 0
        finally:
            job.kill()
            job.wait()
        page.wait_for_selector("#state.finished")
        assert page.locator("#table tbody tr").count() == 41  # the start too
        assert page.inner_text("#verdict") == "transfer not measured"
        titles = page.locator("#charts figcaption").all_inner_texts()
        assert [t.rsplit(" ", 1)[0] for t in titles] == [
            "val accuracy",
            "val loss",
            "loss term task",
            "loss term l2_sp",
        ]
        drawn = page.locator("#charts path.line").first.get_attribute("d")
        assert drawn.count("L") == 40 and page.locator("#rates .legend li").count() > 2
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert problems == []

    done = regraft(*fit(pictures, weights, runs / "two", "--epochs", 1, "-q"), stdout=subprocess.DEVNULL)
    assert done.wait(240) == 0
    hostile = runs / "<img src=x onerror=alert(1)>"
    hostile.mkdir()
    (hostile / "result.json").write_text("{")
    with page_of("ui", runs) as address, browser(address, problems) as context:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#runs tbody tr")
        assert page.locator("#runs tbody tr").count() == 3
        assert "damaged" in page.locator("#runs tbody tr", has_text="<img src=x").inner_text()
        page.fill("#filter", "TWO finished")
        assert page.locator("#runs tbody tr").count() == 1
        page.fill("#filter", "")
        page.select_option("#which", "broken")
        assert page.locator("#runs tbody tr").count() == 1
        page.select_option("#which", "")
        page.get_by_role("button", name="run", exact=True).click()
        names = page.locator("#runs tbody th").all_inner_texts()
        assert names == [hostile.name, "one", "two"]
        assert page.get_attribute("#compare", "href") is None
        page.get_by_label("compare one").check()
        page.get_by_label("compare two").check()
        with context.expect_page() as opened:
            page.click("#compare")
        other = opened.value
        other.wait_for_selector("h1")
        assert other.inner_text("h1") == "one, two" and "paired on the same rows" in other.inner_text("main")
        with context.expect_page() as opened:
            page.get_by_label("report of one").click()
        other = opened.value
        other.wait_for_selector("h1")
        assert other.inner_text("h1") == "one" and (runs / "one" / "report.html").is_file()
        page.get_by_role("link", name="two", exact=True).click()
        page.wait_for_selector("#state.finished")
        assert page.is_visible("#open-report") and page.is_visible("#back")
    assert problems == []


def test_on_a_terminal_a_fit_shows_terms_best_and_rates(pictures, weights, tmp_path):
    here, there = pty.openpty()
    env = ENV | {"TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    command = [sys.executable, "-m", "regraft", *map(str, fit(pictures, weights, tmp_path / "run", "--epochs", 3))]
    job = subprocess.Popen(command, env=env, stderr=there, stdout=subprocess.DEVNULL)
    os.close(there)
    said = b""
    try:
        while chunk := os.read(here, 65536):
            said += chunk
    except OSError:  # how the end of a terminal reads on Linux
        pass
    finally:
        os.close(here)
        assert job.wait(240) == 0
    text = said.decode(errors="replace")
    for words in ("seed 0, epoch 3", "task ", "best so far on val: ", "learning rates: stem"):
        assert words in text, text[-2000:]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("epoch 3/3") == 1
