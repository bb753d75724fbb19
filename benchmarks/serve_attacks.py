"""``regraft serve`` under pictures that cost much to decode: an honest request, memory, and shutdown.

    python benchmarks/serve_attacks.py RUN PICTURE [--only NAME] [--seconds 20]

RUN takes pictures; PICTURE is the honest request. Each attack has a server of its own. So many connections
send its file again and again. Meanwhile the honest request is sent each second, and the memory of the server
with its workers is read (the sum of PSS, in which each shared page counts once). Then SIGTERM is sent. Prints
a line of JSON for each attack.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import costly_pictures as costly

SIDE = 7000  # 49 megapixels
ATTACKS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "none": (0, bytes),
    "PPM of comments, 8 MB": (2, lambda: costly.ppm_of_comments(8)),
    "progressive JPEG, 20,000 scans, 49 MP": (2, lambda: costly.jpeg_of_scans(SIDE, 20_000)),
    "progressive JPEG, 90 scans, 49 MP": (8, lambda: costly.jpeg_of_scans(SIDE, 90)),
    "progressive colour JPEG, 49 MP": (8, lambda: costly.colour_jpeg(SIDE)),
    "PNG with 1.6 M empty chunks": (2, lambda: costly.png_of_chunks(19.2)),
    "16-bit grey PNG, 49 MP": (8, lambda: costly.deep_png(SIDE, SIDE)),
    "GIF comment in 9 M blocks": (8, lambda: costly.gif_of_blocks(18)),
}


def ask(port: int, content: bytes) -> tuple[str, float]:
    """Return the status of a prediction and its seconds."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begin = time.perf_counter()
    try:
        link.request("POST", "/predict", content, {"Content-Type": "application/octet-stream"})
        status = str(link.getresponse().status)
    except OSError as error:
        status = type(error).__name__
    finally:
        link.close()
    return status, time.perf_counter() - begin


def memory(server: psutil.Process) -> int:
    """Return the bytes that the server and its workers hold."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total


def attacked(run: Path, honest: bytes, name: str, seconds: float) -> dict[str, object]:
    connections, make = ATTACKS[name]
    content = make()
    command = [sys.executable, "-m", "regraft", "serve", str(run), "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = json.loads(server.stdout.readline())["port"]
    process, over = psutil.Process(server.pid), threading.Event()
    ask(port, honest)
    begin, peak = memory(process), [0]
    answers: Counter[str] = Counter()

    def attack() -> None:
        while not over.is_set():
            status = ask(port, content)[0]
            answers[status] += 1
            if status == "ConnectionRefusedError":  # the server has stopped
                break

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], memory(process))

    for target in [attack] * connections + [watch]:
        threading.Thread(target=target, daemon=True).start()
    until, times, statuses = time.monotonic() + seconds, [], Counter[str]()
    while time.monotonic() < until:
        status, took = ask(port, honest)
        statuses[status] += 1
        times.append(took)
        time.sleep(max(0.0, 1 - took))
    before_end = dict(answers)
    sent = time.monotonic()
    server.send_signal(signal.SIGTERM)
    code = server.wait(120)
    ended = time.monotonic() - sent
    over.set()
    return {
        "attack": name,
        "connections": connections,
        "MB": round(len(content) / 1e6, 2),
        "attack_answers": before_end,
        "honest": dict(statuses),
        "honest_median_s": round(sorted(times)[len(times) // 2], 2),
        "honest_max_s": round(max(times), 2),
        "pss_begin_GB": round(begin / 1e9, 2),
        "pss_peak_GB": round(peak[0] / 1e9, 2),
        "sigterm_s": round(ended, 1),
        "exit": code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--only", choices=ATTACKS)
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    for name in [args.only] if args.only else ATTACKS:
        found = attacked(args.run, args.picture.read_bytes(), name, args.seconds)
        print(json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
