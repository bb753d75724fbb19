"""`regraft serve` as a process, in a browser, and against its own schema."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import costly_pictures as costly
import regraft
import serve_kit as kit
from listeners import on_loopback_alone
from regraft.evidence.ood import FILE
from regraft.serving.guard import AccessPolicy
from regraft.serving.model import open_run

pytestmark = pytest.mark.usefixtures("loopback")

QUICK = {"fit.epochs": 1, "fit.batch_size": 16, "run.device": "cpu", "run.workers": 0, "probe.strengths": [1e-2]}
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures_with_val, weights):
    out = tmp_path_factory.mktemp("runs") / "colours"
    how = QUICK | {"source.weights": str(weights), "source.image_size": 32, "run.out": str(out)}
    regraft.fit(pictures_with_val, source="timm:test_resnet", out=out, settings=how)
    return out


@pytest.fixture(scope="module")
def pictures_with_val(tmp_path_factory, make_pictures):
    """96 training pictures, of which a fifth becomes val: 19 are enough for a threshold."""
    return make_pictures(tmp_path_factory.mktemp("pictures") / "colours", train=34, test=4)


# ---------------------------------------------------------------- a run


def test_a_run_is_served_with_the_numbers_of_predict(run, pictures_with_val):
    served = open_run(run)
    assert served.notes == () and served.novelty is not None
    paths = sorted((pictures_with_val / "test").rglob("*.png"))
    plain = regraft.load(run)
    wanted = served.wanted(kit.Limits())
    decoded = [kit.shared().submit(p.read_bytes(), wanted).result(60) for p in paths]
    samples = [served.picture(picture) for picture in decoded]
    for path, sample in zip(paths, samples, strict=True):
        alone = served.answers([sample])[0]
        names = served.classes
        of = dict(zip(names, alone.scores.tolist(), strict=True))
        sharp = dict(zip(names, alone.calibrated.tolist(), strict=True))
        assert of == plain.predict([path])[0].scores
        assert sharp == plain.calibrated().predict([path])[0].scores
    together = served.answers(samples)  # sums in a batch may round otherwise
    for found, one in zip(together, plain.predict(paths), strict=True):
        assert found.scores.tolist() == pytest.approx(list(one.scores.values()), abs=1e-6)


def test_a_fit_keeps_what_the_warning_needs_bound_to_its_weights(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    assert open_run(tmp_path / "copy").novelty.held_out >= 19
    weights = tmp_path / "copy" / "model" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    state["head.bias"] += 1
    save_file(state, weights)
    served = open_run(tmp_path / "copy")
    assert served.novelty is None and "other weights" in served.notes[0]
    (tmp_path / "copy" / "model" / FILE).unlink()
    assert "too few rows of val" in open_run(tmp_path / "copy").notes[0]
    (tmp_path / "copy" / "model" / FILE).write_bytes(b"damaged")
    assert "cannot be read" in open_run(tmp_path / "copy").notes[0]


@pytest.mark.slow
def test_a_bundle_has_the_measure_too(run, tmp_path):
    regraft.export(run, "bundle", tmp_path / "bundle")
    assert open_run(tmp_path / "bundle").novelty.threshold == open_run(run).novelty.threshold


def test_what_can_not_be_served_is_said(cli, tmp_path, run):
    code, _, err = cli("serve", tmp_path, "--port", "0")
    assert code == 2 and "holds no model" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = cli("serve", run, "--port", taken.getsockname()[1])
        assert code == 2 and "is taken" in err and "--port 0" in err
    code, _, err = cli("serve", run, "--port", "0", "--queue", "0")
    assert code == 2 and "--queue must be above 0" in err
    code, _, err = cli("serve", run, "--host", "0.0.0.0", "--token", "short", "--port", "0")
    assert code == 2 and "16" in err


@pytest.mark.slow
@pytest.mark.fault(90)
@pytest.mark.usefixtures("fast_processes")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(run, stop):
    wide = stop == signal.SIGINT  # on all interfaces where that is asked for, else on loopback alone
    command = [
        sys.executable,
        "-m",
        "regraft",
        "serve",
        str(run),
        "--port",
        "0",
        "--json",
        *(["--host", "0.0.0.0"] if wide else []),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        line = json.loads(p.stdout.readline())
        port, token = line["port"], line.get("token")
        assert line["pid"] == p.pid and line["host"] == ("0.0.0.0" if wide else "127.0.0.1")
        if not wide:
            on_loopback_alone(p.pid)
        head = {"content_type": "image/png", "authorization": f"Bearer {token}"}
        body = kit.file("navy", (32, 32))
        status, _, found = kit.sent(port, kit.request(port, "POST", "/predict", body, **head))
        assert status == 200 and json.loads(found)["label"] == "navy"
        assert kit.sent(port, kit.request(port, path="/about"))[0] == (401 if wide else 200)
        busy = []
        if stop == signal.SIGTERM:  # whatever is going on
            for content in (costly.jpeg_of_scans(3000, 20_000), costly.gif_of_blocks(18)):
                busy.append(kit.connected(port))
                busy[-1].sendall(kit.request(port, "POST", "/predict", content, **head))
        p.send_signal(stop)
        out, err = p.communicate(timeout=30)
        for sock in busy:
            sock.close()
        assert out == "" and "Traceback" not in err and ("TLS" in err) == wide
        assert p.returncode == (0 if stop == signal.SIGINT else -signal.SIGTERM)
        assert stop == signal.SIGTERM or "stopped" in err


# ---------------------------------------------------------------- the schema


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["picture", "text", "pair"])
def test_schemathesis_finds_nothing(kind, tmp_path):
    import requests
    import schemathesis
    from hypothesis import HealthCheck, Phase, assume, given, settings
    from hypothesis import strategies as st
    from schemathesis import GenerationMode

    from regraft.serving.schemas import PICTURES, RAW

    token = "a-token-of-many-letters"
    served = kit.pictures() if kind == "picture" else kit.texts(tmp_path, pairs=kind == "pair")
    door = AccessPolicy(frozenset({"localhost"}), token=token)
    content = st.sampled_from([kit.file(c, kind=k) for c in ("red", "blue") for k in ("PNG", "JPEG")])
    schemathesis.openapi.format("binary", content)
    for media in {*PICTURES, *RAW}:
        schemathesis.openapi.media_type(media, content)
    seen = set()
    with kit.running(served, door=door) as port, requests.Session() as http:
        address = f"http://127.0.0.1:{port}"
        head = {"Authorization": f"Bearer {token}"}
        spec = http.get(f"{address}/openapi.json", headers=head).json()
        assert http.get(f"{address}/about").status_code == 401
        # Every case is sent with the token, so that leaving it out is none of what is varied here;
        # what is refused without it has tests of its own.
        del spec["components"]["securitySchemes"]
        for operations in spec["paths"].values():
            for operation in operations.values():
                operation.pop("security", None)
        schema = schemathesis.openapi.from_dict(spec)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            for result in schema.get_all_operations():
                operation = result.ok()
                if mode == GenerationMode.NEGATIVE and operation.method != "post":
                    continue  # it has nothing that could be wrong

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=30,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                def check(case):
                    # an empty list or null has no part in a form, so the request would be a valid one
                    assume(not isinstance(case.body, dict) or all(v not in ([], None) for v in case.body.values()))
                    case.headers.update(head)
                    reply = case.call_and_validate(session=http, base_url=address)
                    seen.add((case.operation.label, reply.status_code))

                check()
    assert {("POST /predict", 200), ("POST /explain", 200), ("GET /about", 200), ("GET /metrics", 200)} <= seen
    assert any(label == "POST /predict" and status in (415, 422) for label, status in seen)


# ---------------------------------------------------------------- a browser


@pytest.fixture
def browser():
    """Chromium, with everything that pages said and asked for."""
    from playwright.sync_api import sync_playwright

    assert Path(CHROMIUM).exists(), (
        f"{CHROMIUM} is not there: install it (Debian: apt-get install chromium), or name another with CHROMIUM=/path"
    )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def opened(browser, address, width=1280):
    """A page with the lists of what it said and of what it asked for."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("dialog", lambda d: (said.append(f"dialog {d.message}"), d.dismiss()))
    page.on("request", lambda r: asked.append(r.url))
    page.goto(address)
    return page, said, asked


DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  for (const kind of ["dragover", "drop"])
    document.getElementById("drop").dispatchEvent(
      new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""


def ours(urls, port):
    return all(u.startswith((f"http://127.0.0.1:{port}/", "blob:", "data:")) for u in urls)


@pytest.mark.slow
def test_a_browser_drops_a_picture_and_reads_the_right_class(browser):
    with kit.running(kit.pictures(sets=True)) as port:
        page, said, asked = opened(browser, f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#drop")
        for colour, name in (((20, 30, 220), "blue"), ((230, 60, 30), "red")):
            data = base64.b64encode(kit.file(colour, (48, 48))).decode()
            page.evaluate(DROP, [data, f"{name}.png"])
            page.wait_for_function("n => document.getElementById('label').textContent === n", arg=name)
        assert page.locator("#scores-body tr").count() == 3
        assert "calibrated confidence" in page.text_content("#confidence")
        assert page.text_content("#set") == "90.0 % set: red; confident enough to be accepted"
        page.set_input_files(
            "#file", {"name": "n.png", "mimeType": "image/png", "buffer": kit.file((90, 90, 90), (48, 48))}
        )
        page.wait_for_function("() => document.getElementById('caption').textContent === 'n.png'")
        assert page.locator("#unlike").is_visible()  # no class has that colour
        page.click("#explain")
        page.wait_for_selector("#heat-picture[src^='data:image/png']")
        assert page.evaluate("document.getElementById('heat-picture').naturalWidth") == 8
        assert said == [] and ours(asked, port)
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@pytest.mark.fault(79)
def test_hostile_class_names_and_file_names_do_not_run(browser):
    with kit.running(kit.pictures(names=tuple(sorted(kit.HOSTILE)), sets=True)) as port:
        page, said, asked = opened(browser, f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#drop")
        data = base64.b64encode(kit.file("red")).decode()
        page.evaluate(DROP, [data, "<img src=x onerror=alert(3)>.png"])
        page.wait_for_selector("#scores-body tr")
        page.click("#explain")
        page.wait_for_selector("#heat-picture[src^='data:']")
        shown = set(page.locator("#scores-body th").all_text_contents())
        assert shown == set(kit.HOSTILE)
        assert page.locator("#scores-body img, #label img, #caption img").count() == 0
        assert said == [] and ours(asked, port)


@pytest.mark.slow
def test_a_text_is_typed_by_keyboard_alone_and_explained(tmp_path, browser):
    with kit.running(kit.texts(tmp_path)) as port:
        page, said, asked = opened(browser, f"http://127.0.0.1:{port}/", width=360)
        page.wait_for_selector("#for-text")
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "text":
                break
        page.keyboard.type("the <b>good</b> film")
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => document.getElementById('label').textContent === 'good'")
        assert page.text_content("#status") == "Answer: good"  # a live region: it is read aloud
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "explain":
                break
        page.keyboard.press("Enter")
        page.wait_for_selector("#pieces mark")
        assert page.text_content("#pieces") == "the <b>good</b> film"
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert said == [] and ours(asked, port)


@pytest.mark.slow
def test_the_token_in_the_address_is_used_and_leaves_it(browser):
    token = "a-token-of-many-letters"
    with kit.running(kit.pictures(), door=AccessPolicy(frozenset(), token=token)) as port:
        address = f"http://127.0.0.1:{port}/"
        page, said, asked = opened(browser, f"{address}#token={token}")
        page.wait_for_selector("#drop")
        assert page.url == address and not [u for u in asked if token in u.partition("#")[0]]
        assert said == []
        other, _, _ = opened(browser, address)  # one without it is asked for it
        other.fill("#token", token)
        other.keyboard.press("Enter")
        other.wait_for_selector("#drop")
        other.reload()
        other.wait_for_selector("#drop")


@pytest.mark.slow
@pytest.mark.fault(82)
def test_a_page_of_another_site_can_not_ask(browser):
    with kit.running(kit.pictures()) as port, kit.running(kit.pictures()) as elsewhere:
        page, _, _ = opened(browser, f"http://localhost:{elsewhere}/")
        script = f"""async () => {{
          const form = new FormData(); form.append("file", new Blob(["x"]));
          try {{ await fetch("http://127.0.0.1:{port}/predict", {{ method: "POST", body: form }}); return "read"; }}
          catch (e) {{ return "refused"; }}
        }}"""
        assert page.evaluate(script) == "refused"
        metrics = kit.sent(port, kit.request(port, path="/metrics"))[2].decode()
        assert 'path="/predict",status="200"' not in metrics
