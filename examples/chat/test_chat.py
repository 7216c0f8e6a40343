"""The chat, without a server: ``websocket`` is a fixture that greenws brings."""

import pytest
from chat import create_app

from greenws import ConnectionClosed, testing


@pytest.fixture
def app():
    return create_app(TESTING=True)


@pytest.fixture
def join(app, websocket):
    """``join("Ada")`` logs in and enters the lobby."""

    def join(name, room="lobby"):
        client = app.test_client()
        client.post("/login", data={"name": name})
        socket = websocket(app, f"/rooms/{room}", client=client)
        assert socket.receive() == f"* {name} has joined"
        return socket

    return join


def test_who_has_not_logged_in_is_refused(app, websocket):
    with pytest.raises(testing.Refused) as refused:
        websocket(app, "/rooms/lobby")
    assert refused.value.status_code == 401


def test_everybody_in_a_room_gets_all_messages(join):
    ada, grace = join("Ada"), join("Grace")
    assert ada.receive() == "* Grace has joined"
    grace.send("hello")
    assert ada.receive() == grace.receive() == "Grace: hello"


def test_rooms_are_apart(join):
    ada, grace = join("Ada"), join("Grace", room="library")
    grace.send("anybody here?")
    assert grace.receive() == "Grace: anybody here?"
    with pytest.raises(TimeoutError):
        ada.receive(timeout=0)


def test_one_who_vanishes_has_left(join):
    ada, grace = join("Ada"), join("Grace")
    assert ada.receive() == "* Grace has joined"
    grace.cut()
    assert ada.receive() == "* Grace has left"


def test_one_who_does_not_read_is_closed_and_holds_nobody_up(app, join):
    ada, grace = join("Ada"), join("Grace")
    ada.receive()
    grace.stall()
    for _ in range(200):
        ada.send("x" * 1000)
        assert ada.receive() == "Ada: " + "x" * 1000
    assert app.extensions["rooms"].stats.closed == 1
    grace.resume()
    with pytest.raises(ConnectionClosed, match="1013"):
        while True:
            grace.receive()


def test_what_cannot_be_sent_is_reported(app, join):
    ada = join("Ada")
    with testing.outage(app.extensions["rooms"], max_pending=0):
        ada.send("hello?")
        assert ada.receive() == "* That was not sent. Please try again."
    ada.send("hello!")
    assert ada.receive() == "Ada: hello!"


def test_an_idle_member_is_kept(join):
    with testing.clock() as clock:
        ada = join("Ada")
        clock.advance(3600)  # of pings and pongs
        ada.send("still here")
        assert ada.receive() == "Ada: still here"
        ada.close()
