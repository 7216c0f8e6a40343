"""The bot: its answers, and that it comes back."""

import bot
import gevent
import pytest
from chat import create_app

from greenws import WebSocketServer, testing

TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture
def app():
    return create_app(TESTING=True, BOT_TOKEN="secret")


def test_answers_without_a_chat():
    room, client = testing.pair()
    answering = gevent.spawn(bot.answer, client)
    room.send("Ada: !help")
    assert room.receive() == "I know !roll and !help."
    room.close()
    answering.get(timeout=5)


def test_answers_in_the_chat(app, websocket):
    client = app.test_client()
    client.post("/login", data={"name": "Ada"})
    ada = websocket(app, "/rooms/lobby", client=client)
    answering = gevent.spawn(bot.answer, websocket(app, "/rooms/lobby", headers=TOKEN))
    assert [ada.receive(), ada.receive()] == ["* Ada has joined", "* bot has joined"]
    ada.send("!roll")
    assert ada.receive() == "Ada: !roll"
    assert ada.receive().startswith("bot: Ada rolls ")
    answering.kill()


def test_comes_back_when_the_server_restarts(app, websocket):
    client = app.test_client()
    client.post("/login", data={"name": "Ada"})
    server = WebSocketServer(("127.0.0.1", 0), app, log=None)  # the one test with a port
    server.start()
    with testing.clock() as clock:  # nobody waits for the back-off
        ada = websocket(app, "/rooms/lobby", client=client)
        assert ada.receive() == "* Ada has joined"
        url = f"ws://127.0.0.1:{server.server_port}/rooms/lobby"
        running = gevent.spawn(bot.run, url, "secret")
        assert ada.receive() == "* bot has joined"
        server.stop()
        assert ada.receive() == "* bot has left"
        clock.advance(300)
        server = WebSocketServer(("127.0.0.1", server.server_port), app, log=None)
        server.start()
        clock.advance(60)
        assert ada.receive() == "* bot has joined"
        ada.close()
    running.kill()
    server.stop()
