"""The first signal waits for a step's end; which further ones stop at once."""

import signal

import pytest

from regraft.training.signals import Interrupted, Stopping


def stopping(*, launched, patient=True):
    found = Stopping()
    found.launched, found.patient = launched, patient
    return found


def test_the_second_signal_stops_at_once(capfd):
    found = stopping(launched=False)
    found.on_signal(signal.SIGINT, None)
    assert found.asked == signal.SIGINT and "saved first" in capfd.readouterr().err
    with pytest.raises(Interrupted) as caught:
        found.on_signal(signal.SIGTERM, None)
    assert caught.value.exit_code == 143


def test_a_launchers_sigterm_is_no_second_signal():  # Ctrl-C reaches the launcher too, which passes it on
    found = stopping(launched=True)
    found.on_signal(signal.SIGINT, None)
    found.on_signal(signal.SIGTERM, None)
    assert found.asked == signal.SIGINT
    with pytest.raises(Interrupted):
        found.on_signal(signal.SIGINT, None)


def test_where_nobody_looks_the_first_signal_stops():
    with pytest.raises(Interrupted):
        stopping(launched=True, patient=False).on_signal(signal.SIGTERM, None)
