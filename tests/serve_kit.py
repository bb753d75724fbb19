"""Small models to serve, without a run folder, and a server in a thread."""

from __future__ import annotations

import asyncio
import atexit
import io
import socket
import threading
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import nn

from regraft.data.decoding import Decoders
from regraft.data.preprocessing import build
from regraft.data.types import ImageSpec
from regraft.evidence.ood import fit_novelty
from regraft.model.grafting import Model
from regraft.pipeline.predictor import Predictor
from regraft.runs.guarantees import SetRule, Threshold
from regraft.serving.app import create_app
from regraft.serving.endpoint import bind
from regraft.serving.guard import AccessPolicy
from regraft.serving.limits import Limits
from regraft.serving.model import ServedModel
from regraft.serving.server import Server
from regraft.tasks.classification import Classification
from regraft.tasks.regression import Regression

HERE = AccessPolicy(frozenset({"localhost"}))
HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "$bad_{$ 雪")


class Colour(nn.Module):
    """Pictures [B, 3, 8, 8] → the mean of each channel [B, 3]."""

    def forward(self, x):
        return x.mean((2, 3))


def pictures(*, names=("blue", "green", "red"), task="classification", temperature=2.0, novelty=True, sets=False):
    """Return a model that says which colour a picture has, or how red it is."""
    head = nn.Linear(3, 3 if task == "classification" else 1)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3).flip(0) * 4 if task == "classification" else torch.eye(3)[:1])
        head.bias.zero_()
    if task == "classification":
        assert list(names) == sorted(names)
        of = Classification().make([(n,) for n in names], ("label",))
    else:
        of, temperature = Regression().make([("0",), ("1",), ("2",)], ("redness",)), None
    spec = ImageSpec((8, 8), 8)
    model = Model(Colour(), head).eval()
    bound = {"half_widths": [0.25]} if temperature is None else {"temperature": 3.0, "least_probability": 0.25}
    rule = SetRule(coverage=0.9, rows=30, least_rows=9, **bound) if sets else None
    accepts = Threshold(max_error=0.05, temperature=3.0, threshold=0.4) if sets and temperature else None
    predictor = Predictor(
        model, of, build(spec), "image", torch.device("cpu"), temperature, rule=rule, threshold=accepts
    )
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(40, 3)) * 0.05 + np.eye(3)[c] for c in range(3)]
    near = fit_novelty(np.vstack(rows), np.repeat(range(3), 40), np.vstack([r[::2] for r in rows]))
    return ServedModel(
        "colours", predictor, False, predictor.calibrated() if temperature else None, near if novelty else None
    )


class Words(nn.Module):
    """Token ids [B, T] → [how many are "good", how many "bad"]."""

    def forward(self, inputs):
        ids, here = inputs["input_ids"], inputs["attention_mask"]
        return torch.stack([((ids == t) * here).sum(1).float() for t in (5, 6)], 1)


def texts(folder, *, pairs=False):
    """Return a model that counts two words; its tokenizer is made in ``folder``."""
    from transformers import BertTokenizerFast

    from regraft.data.types import TextSpec

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "the", "film"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "tokenizer")
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        head.bias.zero_()
    of = Classification().make([("bad",), ("good",)], ("label",))
    prep = build(TextSpec(str(folder / "tokenizer"), 32))
    predictor = Predictor(Model(Words(), head).eval(), of, prep, "text", torch.device("cpu"))
    return ServedModel("words", predictor, pairs)


def file(colour, size=(16, 16), kind="PNG", **how):
    """Return the content of a picture file of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **how)
    return out.getvalue()


@cache
def shared():
    """Return the decoders that all servers of these tests share: their processes are started once."""
    found = Decoders()
    atexit.register(found.close)
    return found


@contextmanager
def running(served, limits=None, door=HERE, complain=lambda line: None, own=False, files=16_384):
    """Run a real server on a free port of 127.0.0.1; yield the port."""
    listening = bind("127.0.0.1", 0)
    ready = threading.Event()
    limits = limits or Limits()
    app = create_app(served, door, limits, decoders=None if own else shared(), started=ready.set, complain=complain)
    server = Server(app, limits, files, complain)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


def request(port, method="GET", path="/", body=b"", **headers):
    """Return the bytes of a request."""
    said = {"host": f"127.0.0.1:{port}", "content-length": str(len(body))}
    said |= {k.replace("_", "-"): v for k, v in headers.items()}
    lines = "".join(f"{k}: {v}\r\n" for k, v in said.items() if v is not None)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def connected(port, timeout=30):
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def received(sock):
    """Return what comes until the answer is whole or the connection ends: status, headers, body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            break
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers.get("content-length", 0)):
        part = sock.recv(65536)
        if not part:
            break
        body += part
    return int(first.split()[1]) if first else 0, headers, body


def sent(port, data):
    """Send one request on a connection of its own; return the answer."""
    with connected(port) as sock:
        sock.sendall(data)
        return received(sock)
