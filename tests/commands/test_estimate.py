"""The memory that ``regraft plan`` reports."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import psutil

from regraft.commands.estimate import peak_bytes


def test_the_peak_is_in_bytes():
    used = psutil.Process().memory_info().rss  # the kernel counts the two a little apart
    assert 0.9 * used <= peak_bytes() < 64 * used


def test_windows_has_a_peak_without_the_module_resource(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7 * 2**30))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert peak_bytes() == 7 * 2**30
