"""``regraft serve`` under load: 1,000 requests over 32 connections while slow clients hold connections, then the same
requests one at a time. None may be lost.

    python benchmarks/serve.py RUN FILE… [--requests 1000] [--connections 32] [--repeats 3]

RUN takes pictures and the files are pictures, or it takes texts and each line of the files is one. The server
is a process of its own on this machine, so clients and server share its cores. Prints JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path
from statistics import median

import regraft


def bodies(kind: str, files: list[Path]) -> tuple[list[bytes], str]:
    if kind == "image":
        return [f.read_bytes() for f in files], "application/octet-stream"
    lines = [line for f in files for line in f.read_text().splitlines() if line.strip()]
    return [json.dumps({"text": line}).encode() for line in lines], "application/json"


def round_of(port: int, contents: list[bytes], kind: str, requests: int, connections: int) -> dict:
    """Send requests over persistent connections and return seconds, statuses and latencies."""
    numbers, lock = count(), threading.Lock()
    statuses: dict[str, int] = {}
    latencies: list[float] = []

    def client() -> None:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while (i := next(numbers)) < requests:
            begin = time.perf_counter()
            try:
                link.request("POST", "/predict", contents[i % len(contents)], {"Content-Type": kind})
                reply = link.getresponse()
                reply.read()
                status = str(reply.status)
            except OSError as error:
                status = f"lost: {type(error).__name__}"
                link.close()
            with lock:
                statuses[status] = statuses.get(status, 0) + 1
                latencies.append(time.perf_counter() - begin)
        link.close()

    threads = [threading.Thread(target=client) for _ in range(connections)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    latencies.sort()
    return {
        "requests": requests,
        "connections": connections,
        "seconds": round(seconds, 2),
        "per_second": round(requests / seconds, 1),
        "statuses": statuses,
        "p50_ms": round(1000 * median(latencies), 1),
        "p99_ms": round(1000 * latencies[int(0.99 * (len(latencies) - 1))], 1),
    }


def slow_clients(port: int, number: int) -> list[socket.socket]:
    """Open connections that stop inside a body or inside the headers."""
    made = []
    for i in range(number):
        sock = socket.create_connection(("127.0.0.1", port))
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        sock.sendall(head + (b"\r\n" + b"x" * 100 if i % 2 else b""))
        made.append(sock)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=250, help="requests of a one-at-a-time round")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow", type=int, default=20)
    args = parser.parse_args()
    contents, kind = bodies(regraft.load(args.run).kind, args.files)
    command = [sys.executable, "-m", "regraft", "serve", str(args.run), "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        round_of(port, contents, kind, 50, 4)  # warm
        for repeat in range(args.repeats):
            alone = round_of(port, contents, kind, args.alone, 1)
            held = slow_clients(port, args.slow)
            many = round_of(port, contents, kind, args.requests, args.connections)
            for sock in held:
                sock.close()
            ratio = many["per_second"] / alone["per_second"]
            load = round(os.getloadavg()[0], 1)
            print(
                json.dumps(
                    {
                        "repeat": repeat,
                        "ratio": round(ratio, 2),
                        "alone": alone,
                        "many": many,
                        "slow": args.slow,
                        "load": load,
                    }
                ),
                flush=True,
            )
        link = http.client.HTTPConnection("127.0.0.1", port)
        link.request("GET", "/metrics")
        lines = link.getresponse().read().decode().splitlines()
        of = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("regraft_batch_rows_")}
        mean = of["regraft_batch_rows_sum"] / of["regraft_batch_rows_count"]
        print(json.dumps({"mean_rows_of_a_pass": round(mean, 2)}))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


if __name__ == "__main__":
    main()
