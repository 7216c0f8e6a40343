"""Stopping by signals, in this process; test_stop.py does it in others."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from greenws.server.signals import stop_at_signals

from ..support.limits import wait_until


@pytest.fixture(autouse=True)
def default_actions():
    """SIGINT and SIGTERM have their default actions, as in a program of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, action in before.items():
        signal.signal(number, action)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_calls_stop(number, caplog):
    caplog.set_level("INFO", "greenws.server")
    stopped = []
    with stop_at_signals(lambda: stopped.append(True)):
        os.kill(os.getpid(), number)
        wait_until(lambda: stopped)
    assert stopped == [True]
    assert caplog.messages == [f"{signal.Signals(number).name}: stopping"]


def test_the_actions_are_restored_when_no_signal_came():
    with stop_at_signals(lambda: None):
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_the_program_handles_is_left_to_it():
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    with stop_at_signals(lambda: received.append("stopped")):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: received)
    assert received == [signal.SIGTERM]


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def run() -> None:
        import gevent

        with stop_at_signals(lambda: None):
            found.append(signal.getsignal(signal.SIGTERM))
        gevent.get_hub().destroy()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]
