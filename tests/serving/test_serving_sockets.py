"""`regraft serve` against clients that do not behave: raw sockets, a server in a thread."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import costly_pictures as costly
import serve_kit as kit
from regraft.data import decoding
from regraft.serving import server
from regraft.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("loopback")

RED = kit.file("red")
TESTS = Path(__file__).parents[1]


def predict(port, body=RED, **headers):
    return kit.request(port, "POST", "/predict", body, content_type="image/png", **headers)


@pytest.mark.fault(82)
def test_slow_clients_stall_nobody_and_are_told():
    """More of them than there are places in the queue or threads."""
    with kit.running(kit.pictures(), Limits(body_seconds=1.0, queue=4)) as port:
        whole = predict(port)
        slow = [kit.connected(port) for _ in range(60)]
        for i, sock in enumerate(slow):
            sock.sendall(whole[: 30 if i % 2 else -5])  # within the headers, or within the body
        for _ in range(5):
            assert kit.sent(port, whole)[0] == 200
        for i, sock in enumerate(slow):
            status, _, body = kit.received(sock)
            assert status == 408
            assert i % 2 or "did not arrive" in json.loads(body)["detail"]
            assert sock.recv(1) == b""  # and the connection is closed
            sock.close()


@pytest.mark.fault(82)
def test_a_client_that_drips_is_not_longer_waited_for():
    with kit.running(kit.pictures(), Limits(body_seconds=0.5)) as port, kit.connected(port) as sock:
        whole = predict(port)
        answer = ThreadPoolExecutor(1).submit(kit.received, sock)
        for byte in whole:
            if answer.done():
                break
            try:
                sock.sendall(bytes([byte]))
            except OSError:  # it has closed
                break
            time.sleep(0.02)
        assert answer.result(10)[0] == 408


@pytest.mark.fault(82)
def test_a_body_that_is_too_large_is_refused_before_it_is_sent():
    with kit.running(kit.pictures(), Limits(megabytes=1)) as port:
        with kit.connected(port) as sock:
            sock.sendall(predict(port, content_length=str(10**12)))
            status, headers, body = kit.received(sock)
            assert status == 413 and headers["connection"] == "close"
            assert "1 MB" in json.loads(body)["detail"]
        with kit.connected(port) as sock:  # and a length that is not said is counted
            sock.sendall(predict(port, b"", content_length=None, transfer_encoding="chunked"))
            chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            for _ in range(20):
                sock.sendall(chunk)
            assert kit.received(sock)[0] == 413
        assert kit.sent(port, predict(port))[0] == 200


@pytest.mark.fault(82)
def test_bodies_together_take_bounded_memory():
    limits = Limits(megabytes=1, held_megabytes=2, body_seconds=20)
    with kit.running(kit.pictures(), limits) as port:
        half = predict(port, b"x" * 900_000)[:-10]
        socks = [kit.connected(port) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda s: s.sendall(half), socks))
            answers = [pool.submit(kit.received, s) for s in socks]
            until = time.monotonic() + 20
            while not any(a.done() for a in answers) and time.monotonic() < until:
                time.sleep(0.01)
            first = next(a for a in answers if a.done()).result()
            assert first[0] == 503 and first[1]["retry-after"] == "1"
            for sock, answer in zip(socks, answers, strict=True):
                if not answer.done():
                    sock.sendall(b"x" * 10)
            assert sorted(a.result(20)[0] for a in answers) == [400, 400, 503]
        for sock in socks:
            sock.close()
        metrics = kit.sent(port, kit.request(port, path="/metrics"))[2].decode()
        assert "regraft_held_bytes 0.0" in metrics


@pytest.mark.fault(82)
def test_a_thousand_at_once_are_all_answered():
    """200 or, over the queue's limit, 429; none is lost."""
    with kit.running(kit.pictures(), Limits(queue=100)) as port:
        socks = [kit.connected(port, 60) for _ in range(1000)]
        gate = threading.Barrier(20)

        def ask(part):
            gate.wait()
            for sock in part:
                sock.sendall(predict(port))
            return [kit.received(sock) for sock in part]

        with ThreadPoolExecutor(20) as pool:
            found = [a for part in pool.map(ask, [socks[i::20] for i in range(20)]) for a in part]
        for sock in socks:
            sock.close()
        statuses = [status for status, _, _ in found]
        assert len(statuses) == 1000 and set(statuses) <= {200, 429}
        assert statuses.count(200) >= 100
        assert all(json.loads(body)["label"] == "red" for s, _, body in found if s == 200)
        assert all(headers["retry-after"] for s, headers, _ in found if s == 429)
        metrics = kit.sent(port, kit.request(port, path="/metrics"))[2].decode()
        assert "regraft_waiting_requests 0.0" in metrics


def test_within_the_queue_each_request_has_its_own_answer():
    colours = ("red", "lime", "blue")
    with kit.running(kit.pictures(), Limits(queue=96)) as port, ThreadPoolExecutor(32) as pool:
        asks = [predict(port, kit.file(colours[i % 3])) for i in range(192)]
        found = list(pool.map(lambda data: kit.sent(port, data), asks))
    wanted = ["red", "green", "blue"] * 64
    assert [json.loads(body)["label"] for _, _, body in found] == wanted


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /%2e%2e/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET //etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 400),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"TRACE /predict HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_odd_requests_are_refused_and_the_server_goes_on(port, data, status):
    with kit.connected(port) as sock:
        sock.sendall(data)
        assert kit.received(sock)[0] == status
    assert kit.sent(port, predict(port))[0] == 200


@pytest.fixture(scope="module")
def port(loopback):
    with kit.running(kit.pictures()) as port:
        yield port


def test_a_client_that_leaves_disturbs_nobody(port):
    for cut in (20, -5, None):
        with kit.connected(port) as sock:
            sock.sendall(predict(port)[:cut])
    assert kit.sent(port, predict(port))[0] == 200


def test_a_stop_answers_what_was_begun(monkeypatch):
    served, go = kit.pictures(), threading.Event()
    real = type(served).answers
    monkeypatch.setattr(type(served), "answers", lambda s, x: (go.wait(20), real(s, x))[1])
    with ThreadPoolExecutor(1) as pool:
        with kit.running(served) as port:
            answer = pool.submit(kit.sent, port, predict(port))
            until = time.monotonic() + 20
            while "regraft_waiting_requests 1.0" not in str(kit.sent(port, kit.request(port, path="/metrics"))[2]):
                assert time.monotonic() < until
            threading.Timer(0.3, go.set).start()
        assert answer.result(20)[0] == 200


# ---------------------------------------------------------------- what costs the server much


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    "twice",
    [
        ("Origin", "http://evil.example", "http://127.0.0.1:{port}"),
        ("Sec-Fetch-Site", "cross-site", "none"),
        ("Host", "evil.example", "127.0.0.1:{port}"),
        ("Content-Length", "0", "{size}"),
        ("Content-Type", "text/plain", "image/png"),
        ("Authorization", "Bearer a", "Bearer b"),
        ("origin", "http://127.0.0.1:{port}", "http://127.0.0.1:{port}"),
    ],
)
def test_a_header_that_decides_stands_there_once(port, twice):
    name, *values = twice
    lines = [f"{name}: {value}\r\n".format(port=port, size=len(RED)).encode() for value in values]
    given = name.lower().replace("-", "_")
    plain = predict(port, **{given: None}) if name in ("Host", "Content-Length") else predict(port)
    if name == "Content-Type":
        lines = lines[:1]
    for both in (lines, lines[::-1]):
        first, rest = plain.split(b"\r\n", 1)
        status, _, body = kit.sent(port, first + b"\r\n" + b"".join(both) + rest)
        assert status == 400, body


@pytest.mark.fault(82)
def test_a_body_in_very_many_parts_is_refused(port):
    with kit.connected(port) as sock:
        sock.sendall(predict(port, b"", content_length=None, transfer_encoding="chunked"))
        with contextlib.suppress(OSError):  # it is closed while parts are on their way
            for _ in range(100):
                sock.sendall(b"1\r\nx\r\n" * 1000)
        assert kit.received(sock)[0] == 400
    with kit.connected(port) as sock:  # some small parts are what clients send
        sock.sendall(predict(port, b"", content_length=None, transfer_encoding="chunked"))
        sock.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in RED) + b"0\r\n\r\n")
        assert kit.received(sock)[0] == 200


@pytest.mark.fault(82)
def test_idle_connections_give_way_to_requests():
    said = []
    with kit.running(kit.pictures(), files=64, complain=said.append) as port:
        idle = [kit.connected(port) for _ in range(200)]
        for _ in range(3):
            assert kit.sent(port, predict(port))[0] == 200
        status, _, body = kit.received(idle[0])
        assert status == 503 and "as many connections as it may" in json.loads(body)["detail"]
        for sock in idle:
            sock.close()
    assert said == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_NOFILE is POSIX's")
def test_a_low_limit_of_files_is_kept(tmp_path):
    """In a process of its own, whose limit it is."""
    code = """
import resource, socket, sys
import numpy  # before there are too few files to import it
import serve_kit as kit
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from regraft.serving.server import open_files
said = []
with kit.running(kit.pictures(), files=open_files(), complain=said.append) as port:
    read, write = sys.stdin, sys.stdout
    print(port, flush=True)
    read.readline()
print(len(said))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    ) as process:
        port = int(process.stdout.readline())
        idle = [kit.connected(port) for _ in range(400)]
        for _ in range(3):
            assert kit.sent(port, predict(port))[0] == 200
        for sock in idle:
            sock.close()
        out, err = process.communicate("\n", timeout=120)
    assert (out, err) == ("0\n", "")


@pytest.mark.fault(82)
def test_a_stop_does_not_wait_for_a_picture_that_costs_much(monkeypatch):
    monkeypatch.setattr(decoding, "QUICK_CPU_S", 0.2)
    monkeypatch.setattr(decoding, "SLOW_CPU_S", 600.0)
    monkeypatch.setattr(server, "GRACE_S", 1)
    with ThreadPoolExecutor(1) as pool:
        with kit.running(kit.pictures(), own=True) as port:
            slow = pool.submit(kit.sent, port, predict(port, costly.gif_of_blocks(18)))
            assert kit.sent(port, predict(port))[0] == 200
            until = time.monotonic() + 20
            while "regraft_waiting_requests 1.0" not in str(kit.sent(port, kit.request(port, path="/metrics"))[2]):
                assert time.monotonic() < until
        status, _, body = slow.result(60)
    assert status == 503 and "stop" in json.loads(body)["detail"]
