"""What ``send`` and ``disconnect`` have in common."""

from __future__ import annotations

import argparse

import pytest

from greenws.cli import disconnect, send
from greenws.cli.rooms import fail

pytestmark = pytest.mark.no_io


@pytest.mark.parametrize("command", [send, disconnect])
def test_both_find_the_room_and_the_broker_alike(command):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["redis://h", "lobby", "--timeout", "2", "--prefix", "p:"])
    assert (options.url, options.room) == ("redis://h", "lobby")
    assert (options.timeout, options.prefix) == (2.0, "p:")


def test_a_failure_is_one_line(capsys):
    assert fail("send", "no\n  answer") == 1
    assert capsys.readouterr().err == "greenws send: no answer\n"
