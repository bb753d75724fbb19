"""What holds for the whole suite: no network, nothing left behind, tiny sources made here."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

import preloaded
from builders import FLOATS
from regraft.data.types import Example
from regraft.model.types import Source

settings.register_profile("shared machine", deadline=None)  # no test asserts a time
settings.load_profile("shared machine")


CALLS = (
    "socket.connect",
    "socket.sendto",
    "socket.sendmsg",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
allowed: list[str] = []  # hosts that the test in progress may call


def is_address(host):
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def refuse_calls(event, args):
    """Refuse connections of this process, whoever makes them and however: an audit hook."""
    if event not in CALLS:
        return
    if isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX:
        return
    where = args[1] if event in CALLS[:3] else args[0]
    host = where[0] if isinstance(where, tuple) else where
    if event == "socket.getaddrinfo" and (host is None or is_address(host)):
        return  # nobody is asked
    if host not in allowed:
        raise AssertionError(f"a test called the network: {event} {where}")


sys.addaudithook(refuse_calls)


def pytest_collection_modifyitems(items):
    """Put files with slow tests first, so that the last tests of a parallel run are short ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def loopback():
    """Let the module's tests talk to this machine, from the first that asks for it on."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys.modules[__name__], "allowed", list(LOOPBACK))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_disks():
    """Files are not forced to the disk, for which a core would wait; no test pulls the plug."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)  # a closed one is an error still
        yield


@pytest.fixture(autouse=True)
def alone(tmp_path_factory, monkeypatch):
    """Give each test a ledger of opened test sets and caches of its own."""
    # not mktemp, which reads the whole folder for its next number: seconds of a suite of thousands
    own = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    for name in ("state", "cache"):
        (own / name).mkdir()
        monkeypatch.setenv(f"REGRAFT_{name.upper()}", str(own / name))


class Net(nn.Module):
    """Numbers [B, 4] → logits [B, 3], with what freezing must hold still: batch norm and dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.two = nn.Sequential(nn.Linear(8, 6), nn.Dropout(dropout), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.two(self.one(x)))


def child(name, backbone, x):
    return backbone.get_submodule(name)(x)


@pytest.fixture
def numbers_source():
    """Return a function that makes a source on rows of four numbers.

    It has blocks "one" and "two", and batch norm whose statistics have moved.
    """

    def make(dropout: float = 0.0) -> Source:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Net(dropout)
            net(torch.randn(64, 4) * 2 + 1)
        source = Source.from_module(
            net.eval(), head="head", preprocess=FLOATS, example=torch.zeros(2, 4), name="numbers"
        )
        # the forward pass is the chain of its blocks, so it can be cut between them
        source.blocks = tuple(replace(b, run=partial(child, b.name)) for b in source.blocks)
        return source

    return make


@pytest.fixture
def number_rows():
    """n rows of four numbers whose class (0, 1, 2) is which of the first three is largest."""

    def make(n: int, seed: int = 0) -> tuple[list[Example], torch.Tensor]:
        x = np.random.default_rng(seed).normal(size=(n, 4)).round(3)
        targets = torch.from_numpy(x[:, :3].argmax(1))
        rows = [
            Example(f"r{seed}-{i}", (" ".join(map(str, row)),), (str(int(t)),), f"row {i}")
            for i, (row, t) in enumerate(zip(x, targets, strict=True))
        ]
        return rows, targets

    return make


@pytest.fixture
def shapes():
    """Write a folder of small pictures: squares, bars or gradients by class, with noise."""

    def write(folder, counts: dict[str, dict[str, int]], seed: int = 0):
        rng = np.random.default_rng(seed)
        for split, classes in counts.items():
            for k, (name, n) in enumerate(classes.items()):
                where = folder / split / name if split else folder / name
                where.mkdir(parents=True, exist_ok=True)
                for i in range(n):
                    pixels = rng.integers(0, 90, (24, 24, 3))
                    start = int(rng.integers(0, 8))
                    if k % 3 == 0:
                        pixels[start : start + 12, 4:16] += 150
                    elif k % 3 == 1:
                        pixels[:, start : start + 5] += 150
                    else:
                        pixels += np.linspace(0, 150, 24).astype(int)[:, None, None]
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(where / f"{i}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Write a weights file for timm:test_resnet; return the flags that use it at 32 pixels."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    model = timm.create_model("test_resnet", pretrained=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return ["--source", "timm:test_resnet", "--weights", str(path), "--set", "source.image_size=32"]


@pytest.fixture(scope="session")
def preloading():
    """Start the server of preloaded processes, and end it with the session."""
    server = preloaded.Server()
    yield server
    server.close()


@pytest.fixture
def fast_processes(request, preloading):
    """Commands of this interpreter start with torch loaded: for tests in which the start of one proves nothing."""
    if request.node.get_closest_marker("fresh_process"):
        yield
        return
    with preloading.redirected():
        yield
