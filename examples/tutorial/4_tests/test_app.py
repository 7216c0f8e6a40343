import json

import pytest
from app import app

from greenws import testing


@pytest.fixture
def enter(websocket):
    """``enter(name)`` gives the socket of somebody who is logged in."""

    def enter(name, since=""):
        client = app.test_client()
        client.post("/login", data={"name": name})
        return websocket(app, f"/chat?since={since}", client=client)

    return enter


def hear(socket):
    return json.loads(socket.receive())


def hear_text(socket):
    while "text" not in (message := hear(socket)):
        pass
    return message


def test_nobody_gets_in_without_login():
    with pytest.raises(testing.Refused) as refused:
        testing.connect(app, "/chat")
    assert refused.value.status_code == 401


def test_what_one_says_all_hear(enter):
    ann, bob = enter("ann"), enter("bob")
    ann.send("hello")
    for socket in (ann, bob):
        message = hear_text(socket)
        assert (message["name"], message["text"]) == ("ann", "hello")


def test_who_is_there(enter):
    ann = enter("ann")
    assert [name for _, name in hear(ann)["present"]] == ["ann"]
    bob = enter("bob")
    assert sorted(name for _, name in hear(bob)["present"]) == ["ann", "bob"]
    assert hear(ann)["name"] == "bob"


def test_who_comes_back_misses_nothing(enter):
    ann, bob = enter("ann"), enter("bob")
    last = hear(bob)["id"]
    bob.cut()  # in a tunnel
    ann.send("you missed this")
    hear_text(ann)
    bob = enter("bob", since=last)
    assert hear_text(bob)["text"] == "you missed this"
