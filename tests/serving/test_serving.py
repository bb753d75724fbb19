"""`regraft serve`: the contract of its routes, and who is let in. Sockets are in test_serving_sockets.py."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import serve_kit as kit
from regraft.errors import UsageError
from regraft.evidence.calibration import rescale
from regraft.serving.app import PAGE, create_app
from regraft.serving.batching import Batcher
from regraft.serving.endpoint import bind, chosen_token, names, url
from regraft.serving.guard import AccessPolicy
from regraft.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("loopback")

PNG = {"content-type": "image/png"}


def client(served=None, door=kit.HERE, limits=None, complain=lambda line: None):
    app = create_app(served or kit.pictures(), door, limits, decoders=kit.shared(), complain=complain)
    return TestClient(app, base_url="http://127.0.0.1:8000")


@pytest.fixture
def http():
    with client() as c:
        yield c


@pytest.fixture
def words(tmp_path):
    with client(kit.texts(tmp_path)) as c:
        yield c


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("way", ["multipart", "raw", "octets"])
def test_a_picture_is_answered_as_predict_answers_its_file(http, tmp_path, way):
    served = kit.pictures()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    if way == "multipart":
        reply = http.post("/predict", files={"file": ("../../etc/passwd", content)})
    else:
        kind = "image/png" if way == "raw" else "application/octet-stream"
        reply = http.post("/predict", content=content, headers={"content-type": kind})
    found = reply.json()
    plain = served.predictor.predict([tmp_path / "x.png"])[0]
    sharp = served.calibrated.predict([tmp_path / "x.png"])[0]
    assert reply.status_code == 200
    assert found["label"] == plain.label
    assert {s["label"]: s["value"] for s in found["scores"]} == plain.scores  # to the last bit
    assert {s["label"]: s["calibrated"] for s in found["scores"]} == sharp.scores
    values = [s["value"] for s in found["scores"]]
    assert values == sorted(values, reverse=True)


def test_calibrated_probabilities_use_the_runs_temperature(http):
    scores = http.post("/predict", content=kit.file("red"), headers=PNG).json()["scores"]
    plain = np.array([[s["value"] for s in scores]])
    np.testing.assert_allclose([s["calibrated"] for s in scores], rescale(plain, 2.0)[0], rtol=1e-5)


def test_a_served_set_is_that_of_predict(tmp_path):
    served = kit.pictures(sets=True)
    sizes = set()
    with client(served) as http:
        assert http.get("/about").json()["coverage"] == 0.9
        for i, colour in enumerate(("red", (255, 160, 100), (255, 255, 0), (128, 128, 128))):
            (tmp_path / f"{i}.png").write_bytes(kit.file(colour))
            reply = http.post("/predict", content=kit.file(colour), headers=PNG).json()
            found = reply["set"]
            plain = served.predictor.predict([tmp_path / f"{i}.png"], sets=True)[0]
            cool = served.calibrated.predict([tmp_path / f"{i}.png"], sets=True)[0]
            assert found == {"coverage": 0.9, "classes": list(plain.classes), "intervals": None}
            assert cool.classes == plain.classes
            p = rescale(np.array([list(plain.scores.values())]), 3.0)[0]
            assert set(plain.classes) == {c for c, v in zip(plain.scores, p, strict=True) if v >= 0.25}
            assert reply["accepted"] is plain.accepted is cool.accepted is bool(p.max() > 0.4)
            sizes.add(len(plain.classes))
    assert sizes == {1, 2, 3}


def test_a_served_interval_is_that_of_predict(tmp_path):
    served = kit.pictures(task="regression", novelty=False, sets=True)
    (tmp_path / "x.png").write_bytes(kit.file("red"))
    with client(served) as http:
        found = http.post("/predict", content=kit.file("red"), headers=PNG).json()["set"]
    low, high = served.predictor.predict([tmp_path / "x.png"], sets=True)[0].intervals["redness"]
    assert found["intervals"] == [{"label": "redness", "low": low, "high": high}] and found["classes"] is None
    assert high - low == pytest.approx(0.5)


def test_without_sets_there_are_none(http, tmp_path):
    assert http.post("/predict", content=kit.file("red"), headers=PNG).json()["set"] is None
    assert http.get("/about").json()["coverage"] is None
    with pytest.raises(UsageError, match="sets: this run has none"):
        kit.pictures().predictor.predict([tmp_path / "x.png"], sets=True)


def test_a_number_is_answered_in_its_own_units():
    served = kit.pictures(task="regression", novelty=False)
    with client(served) as http:
        found = http.post("/predict", content=kit.file("red"), headers=PNG).json()
        heat = http.post("/explain", content=kit.file("red"), headers=PNG).json()
    assert found["scores"][0]["label"] == "redness" and found["scores"][0]["calibrated"] is None
    assert found["training_data"] is None
    assert heat["score"] == found["scores"][0]["value"]


def test_a_text_is_answered(words):
    found = words.post("/predict", json={"text": "good good film"}).json()
    assert found["label"] == "good"
    assert found["scores"][0]["value"] == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_pair_is_answered_and_needs_both_texts(tmp_path):
    with client(kit.texts(tmp_path, pairs=True)) as http:
        both = {"text": "good day", "text_pair": "bad bad"}
        assert http.post("/predict", json=both).json()["label"] == "bad"
        assert http.post("/predict", json={"text": "good"}).status_code == 422
        pieces = http.post("/explain", json=both).json()["pieces"]
    assert [(p["text"], p["second"]) for p in pieces] == [
        ("good", False),
        (" day", False),
        ("bad", True),
        (" bad", True),
    ]


def test_the_warning_is_for_what_lies_elsewhere(http):
    far = http.post("/predict", content=kit.file((90, 90, 90)), headers=PNG).json()["training_data"]
    near = http.post("/predict", content=kit.file((255, 127, 127)), headers=PNG).json()["training_data"]
    assert far["unlike"] and far["distance"] > far["threshold"] == near["threshold"]
    assert not near["unlike"]
    assert "regraft_unlike_training_data_total 1.0" in http.get("/metrics").text


def test_without_a_measure_there_is_no_warning_and_it_is_said():
    with client(kit.pictures(novelty=False)) as http:
        assert http.post("/predict", content=kit.file("red"), headers=PNG).json()["training_data"] is None
        assert http.get("/about").json()["false_alarms"] is None


# ---------------------------------------------------------------- explanations


def test_an_explanation_finds_the_part_that_the_answer_rests_on(http):
    picture = Image.new("RGB", (8, 8), (128, 128, 128))
    picture.paste((255, 0, 0), (0, 0, 2, 2))
    out = kit.io.BytesIO()
    picture.save(out, "PNG")
    found = http.post("/explain?label=red", content=out.getvalue(), headers=PNG).json()
    cells = np.array(found["cells"])
    assert found["label"] == "red" and cells.shape == (8, 8)
    assert np.unravel_index(cells.argmax(), cells.shape) == (0, 0)
    assert abs(cells[4:, 4:]).max() < 0.01 * cells.max()
    assert found["picture"].startswith("data:image/png;base64,")


def test_an_explanation_of_a_text_is_what_each_word_adds(words):
    found = words.post("/explain", json={"text": "the good  bad film"}).json()
    pieces = {p["text"].strip(): p["importance"] for p in found["pieces"]}
    assert "".join(p["text"] for p in found["pieces"]) == "the good  bad film"
    assert found["label"] == "bad" and found["score"] == pytest.approx(0.5)
    # the log-odds of "bad" are how often it stands there, less how often "good" does
    assert pieces == pytest.approx({"the": 0, "good": -1, "bad": 1, "film": 0}, abs=1e-6)


def test_the_cost_of_an_explanation_does_not_grow_with_the_text(tmp_path):
    served = kit.texts(tmp_path)
    object.__setattr__(served.predictor.preprocessor, "spec", kit_spec(served, 2000))
    calls = []
    body = served.predictor.model.backbone
    body.register_forward_hook(lambda m, i, o: calls.append(len(o)))
    with client(served) as http:
        found = http.post("/explain", json={"text": "good day " * 900}).json()
    assert len(found["pieces"]) <= 64
    assert sum(calls) <= 64 + 5
    assert "".join(p["text"] for p in found["pieces"]) == ("good day " * 900).strip()


def kit_spec(served, length):
    from dataclasses import replace

    return replace(served.predictor.preprocessor.spec, max_length=length)


def test_an_unknown_label_is_refused(http):
    reply = http.post("/explain?label=mauve", content=kit.file("red"), headers=PNG)
    assert reply.status_code == 422 and "mauve" in reply.json()["detail"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b'{"text": "good"}', 415),
        ("text/plain", b"good", 415),
        ("image/svg+xml", b"<svg/>", 415),
        ("", b"x", 415),
        ("image/png", b"", 400),
        ("image/png", b"no picture", 400),
        ("image/png", kit.file("red")[:45], 400),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=x", b"garbage", 400),
        ("application/x-www-form-urlencoded", b"url=http%3A%2F%2F169.254.169.254%2F", 415),
    ],
)
def test_what_is_no_picture_is_refused(http, kind, body, status):
    reply = http.post("/predict", content=body, headers={"content-type": kind})
    assert reply.status_code == status
    assert isinstance(reply.json()["detail"], str)


@pytest.mark.fault(83)
@pytest.mark.parametrize("address", ["file:///etc/passwd", "http://169.254.169.254/latest"])
def test_no_address_is_ever_fetched(http, words, address):
    for form in ({"url": (None, address)}, {"file": (None, address)}):
        assert http.post("/predict", files=form).status_code == 422
    assert http.post("/predict", json={"url": address}).status_code == 415
    assert words.post("/predict", json={"text": "x", "url": address}).status_code == 422
    assert words.post("/predict", json={"text": address}).status_code == 200  # it is a text


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("image/png", kit.file("red"), 415),
        ("application/json", b"", 422),
        ("application/json", b'{"text": ""}', 422),
        ("application/json", b'{"text": 3}', 422),
        ("application/json", b'{"text": ["good"]}', 422),
        ("application/json", b'{"text": "a", "text_pair": "b"}', 422),
        ("application/json", b'"good"', 422),
        ("application/json", b'{"text": "\\ud800"}', 422),
        ("application/json", b'{"text": "\xff"}', 422),
        ("application/json", b"[" * 100_000, 422),
        ("application/json", b'{"text": "' + b"x" * 100_001 + b'"}', 422),
    ],
)
def test_what_is_no_text_is_refused(words, kind, body, status):
    reply = words.post("/predict", content=body, headers={"content-type": kind})
    assert reply.status_code == status
    assert isinstance(reply.json()["detail"], str)


def test_a_compressed_body_is_refused(http):
    reply = http.post("/predict", content=kit.file("red"), headers=PNG | {"content-encoding": "gzip"})
    assert reply.status_code == 415


def bomb(width, height):
    """A PNG whose header claims more than its body has."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.fault(82)
@pytest.mark.parametrize("size", [(8_000, 8_000), (100_000, 100_000)])
def test_a_picture_of_too_many_pixels_is_not_decoded(http, monkeypatch, size):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    reply = http.post("/predict", content=bomb(*size), headers=PNG)
    assert reply.status_code == 413 and "megapixels" in reply.json()["detail"]


def test_the_limit_of_pixels_is_the_servers_own():
    with client(limits=Limits(megapixels=0.0001)) as http:
        assert http.post("/predict", content=kit.file("red", (10, 10)), headers=PNG).status_code == 200
        assert http.post("/predict", content=kit.file("red", (11, 10)), headers=PNG).status_code == 413


@pytest.mark.fault(82)
def test_a_body_that_is_too_large_is_refused():
    with client(limits=Limits(megabytes=0.01)) as http:
        assert http.post("/predict", content=b"x" * 10_001, headers=PNG).status_code == 413
        chunks = http.post("/predict", content=iter([b"x" * 6_000] * 2), headers=PNG)
        assert chunks.status_code == 413
        assert http.post("/predict", content=b"x" * 10_000, headers=PNG).status_code == 400


def test_a_model_that_gives_no_numbers_is_no_answer():
    served = kit.pictures()
    served.predictor.model.head.weight.data.fill_(float("nan"))
    with client(served) as http:
        reply = http.post("/predict", content=kit.file("red"), headers=PNG)
    assert reply.status_code == 500 and "not finite" in reply.json()["detail"]


def test_a_server_error_is_one_log_line_hidden_from_the_client(monkeypatch):
    said = []
    served = kit.pictures()
    monkeypatch.setattr(type(served), "answers", lambda self, samples: 1 / 0)
    with client(served, complain=said.append) as http:
        reply = http.post("/predict", content=kit.file("red"), headers=PNG)
        assert reply.status_code == 500 and "division" not in reply.text
        assert http.get("/health").status_code == 200  # the worker lives on
    assert said == ["POST /predict: unexpected ZeroDivisionError: division by zero"]


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/app.js",
        "/app.js/../server.py",
        "/docs",
        "/redoc",
        "/static/app.js",
        "//etc/passwd",
    ],
)
def test_only_the_named_paths_are_there(http, path):
    assert http.get(path).status_code == 404


# ---------------------------------------------------------------- who is let in


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:9", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("evil.example:8000", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("192.168.1.5", 400),
        ("", 400),
    ],
)
def test_only_its_own_names_are_answered(http, host, status):
    for path in ("/about", "/"):
        assert http.get(path, headers={"host": host}).status_code == status


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_another_sites_page_can_not_use_the_server(http, headers, status):
    reply = http.post("/predict", content=kit.file("red"), headers=PNG | headers)
    assert reply.status_code == status
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.fault(82)
def test_a_preflight_gets_no_permission(http):
    asks = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    reply = http.options("/predict", headers=asks)
    assert reply.status_code == 403
    assert not [name for name in reply.headers if name.startswith("access-control")]


TOKEN = "a-token-of-many-letters"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer wrong", 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer ü", 401),
        (None, 401),
    ],
)
def test_everything_of_the_run_asks_for_the_token(given, status):
    with client(door=AccessPolicy(frozenset({"localhost"}), token=TOKEN)) as http:
        headers = {} if given is None else {"authorization": given.encode("latin-1")}
        for path in ("/about", "/metrics", "/openapi.json"):
            assert http.get(path, headers=headers).status_code == status
        reply = http.post("/predict", content=kit.file("red"), headers=headers | PNG)
        assert reply.status_code == status
        assert status == 200 or reply.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/app.js", "/style.css", "/health"):
            assert http.get(path).status_code == 200


def test_a_token_is_no_cookie_and_no_part_of_an_address():
    with client(door=AccessPolicy(frozenset({"localhost"}), token=TOKEN)) as http:
        assert http.get(f"/about?token={TOKEN}").status_code == 401
        assert http.get("/about", headers={"cookie": f"token={TOKEN}"}).status_code == 401
        good = http.get("/about", headers={"authorization": f"Bearer {TOKEN}"})
        assert "set-cookie" not in good.headers


def test_elsewhere_a_token_is_made_and_on_loopback_not(monkeypatch):
    monkeypatch.delenv("REGRAFT_TOKEN", raising=False)
    assert chosen_token("127.0.0.1", None) == (None, False)
    assert chosen_token("localhost", None) == (None, False)
    first, second = chosen_token("0.0.0.0", None), chosen_token("0.0.0.0", None)
    assert first[1] and len(first[0]) >= 32 and first != second
    assert chosen_token("0.0.0.0", TOKEN) == chosen_token("127.0.0.1", TOKEN) == (TOKEN, False)
    monkeypatch.setenv("REGRAFT_TOKEN", TOKEN)
    assert chosen_token("0.0.0.0", None) == (TOKEN, False)
    for bad in ("", "short", "with a space in it all", "ümlautümlautümlaut"):
        with pytest.raises(UsageError, match="16"):
            chosen_token("0.0.0.0", bad)


def test_beyond_loopback_only_literal_addresses_are_host_names():
    door = AccessPolicy(names("0.0.0.0", ["Models.example"]), addresses=True, token=TOKEN)
    known = ["192.168.1.5:8000", "[fe80::1]:8000", "models.example", "localhost"]
    assert all(map(door.knows, known))
    assert not door.knows("evil.example")
    assert not AccessPolicy(names("127.0.0.1", [])).knows("192.168.1.5")


def test_a_port_that_is_taken_is_one_sentence_with_the_remedy(monkeypatch):
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} on 127.0.0.1 is taken.*--port 0"):
            bind("127.0.0.1", port)
    for host, port, words in [("127.0.0.1", 70000, "--port"), ("192.0.2.1", 0, "no address")]:
        with pytest.raises(UsageError, match=words):
            bind(host, port)
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with monkeypatch.context() as resolver:
        resolver.setattr(socket, "getaddrinfo", Mock(side_effect=unknown))
        with pytest.raises(UsageError, match="no such host"):
            bind("no such host", 0)
    assert url("127.0.0.1", 8) == "http://127.0.0.1:8/" and url("::1", 8) == "http://[::1]:8/"


@pytest.mark.parametrize("path", ["/", "/app.js", "/about", "/nowhere", "/health"])
def test_every_answer_carries_the_policy(http, path):
    headers = http.get(path).headers
    policy = dict(p.strip().split(" ", 1) for p in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_the_page_names_no_other_host_and_makes_no_markup():
    html, script, style = ((PAGE / n).read_text() for n in ("index.html", "app.js", "style.css"))
    for text in (html, script, style):
        assert "http:" not in text and "https:" not in text
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "eval(" not in script
    assert " style=" not in html and " onclick=" not in html and "<script>" not in html


# ---------------------------------------------------------------- limits and metrics


def test_a_full_queue_is_said_and_the_rest_is_answered(monkeypatch):
    served, go = kit.pictures(), threading.Event()
    real = type(served).answers
    monkeypatch.setattr(type(served), "answers", lambda s, x: (go.wait(20), real(s, x))[1])
    with client(served, limits=Limits(queue=3, batch=1)) as http:
        replies = []

        def ask():
            replies.append(http.post("/predict", content=kit.file("red"), headers=PNG))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while len(replies) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        go.set()
        for thread in threads:
            thread.join()
    assert sorted(r.status_code for r in replies) == [200] * 3 + [429] * 5
    assert all(r.headers["retry-after"] for r in replies if r.status_code == 429)


def test_an_answer_that_takes_too_long_is_given_up(monkeypatch):
    served, go = kit.pictures(), threading.Event()
    real = type(served).answers
    monkeypatch.setattr(type(served), "answers", lambda s, x: (go.wait(20), real(s, x))[1])
    with client(served, limits=Limits(seconds=0.2)) as http:
        assert http.post("/predict", content=kit.file("red"), headers=PNG).status_code == 504
        go.set()
        assert http.post("/predict", content=kit.file("red"), headers=PNG).status_code == 200


def test_requests_that_come_together_share_a_pass():
    sizes, go = [], threading.Event()
    batcher = Batcher(lambda x: (go.wait(10), list(x))[1], size=8, wait=0, seen=sizes.append)
    batcher.start()
    first = batcher.submit(0)
    while not first.running():
        time.sleep(0.001)
    rest = [batcher.submit(i) for i in range(1, 12)]
    rest[3].cancel()
    go.set()
    assert [f.result(10) for f in (first, *rest) if not f.cancelled()] == [0, 1, 2, 3, *range(5, 12)]
    batcher.close()
    assert sizes == [1, 7, 3]  # the one that was cancelled is not computed
    with pytest.raises(RuntimeError, match="stopping"):
        batcher.submit(0)


def test_a_request_waits_for_others_only_while_they_arrive():
    waited = []
    for coming in (0, 1):
        batcher = Batcher(list, size=2, wait=0.3, coming=lambda coming=coming: coming)
        batcher.start()
        begin = time.monotonic()
        batcher.submit(0).result(10)
        waited.append(time.monotonic() - begin)
        batcher.close()
    assert waited[0] < waited[1] and waited[1] >= 0.3


def test_closing_answers_what_is_queued():
    batcher = Batcher(list, size=2, wait=0)
    batcher.start()
    futures = [batcher.submit(i) for i in range(9)]
    batcher.close()
    assert [f.result(0) for f in futures] == list(range(9))


def test_metrics_count_by_known_paths_alone(http):
    http.post("/predict", content=kit.file("red"), headers=PNG)
    http.post("/predict", content=b"x", headers=PNG)
    for i in range(5):
        http.get(f"/made-up-{i}")
    text = http.get("/metrics").text
    assert 'regraft_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'regraft_requests_total{path="/predict",status="400"} 1.0' in text
    assert 'regraft_requests_total{path="other",status="404"} 5.0' in text
    assert "made-up" not in text
    assert "regraft_batch_rows_count 1.0" in text and "regraft_held_bytes 0.0" in text


@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_is_above_zero(value):
    with pytest.raises(ValueError, match="queue"):
        Limits(queue=value)


@pytest.mark.fault(79)
def test_hostile_class_names_stay_text():
    with client(kit.pictures(names=tuple(sorted(kit.HOSTILE)))) as http:
        reply = http.post("/predict", content=kit.file("red"), headers=PNG)
        assert reply.headers["content-type"] == "application/json"
        assert {s["label"] for s in json.loads(reply.text)["scores"]} == set(kit.HOSTILE)
        assert not any(name in http.get("/").text for name in kit.HOSTILE)


def test_the_schema_says_what_the_run_takes(http, words):
    content = http.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "image/jpeg", "image/png"} <= content.keys()
    assert "application/json" not in content
    content = words.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert list(content) == ["application/json"]
