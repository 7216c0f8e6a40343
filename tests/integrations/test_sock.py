"""``Sock``: Flask's WebSocket routes in the short form."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any

import flask
import pytest

from greenws import ConnectionClosed, WebSocket, testing
from greenws.integrations.flask import Sock

from ..support.limits import limit, wait_until
from ..support.processes import Process, children, connect
from ..support.wire import TEXT, Peer, close_frame, frame


def converse(peer: Peer, text: bytes) -> bytes:
    peer.send(frame(TEXT, text))
    fin, opcode, payload = peer.read_frame()
    assert (fin, opcode) == (True, TEXT)
    return payload


@pytest.fixture
def app() -> flask.Flask:
    app = flask.Flask("app_of_a_test")
    app.secret_key = "for the tests"
    return app


def chat(socket: WebSocket, room: str) -> None:
    for message in socket:
        socket.send(f"{flask.request.path} {room} {socket.subprotocol}: {message!r}")


def test_a_route_of_an_application(serve, app):
    sock = Sock(app)
    assert sock.route("/chat/<room>", protocols=["chat"])(chat) is chat
    address = serve(app).address
    with Peer.open(address, "/chat/garden", Sec_WebSocket_Protocol="x, chat") as peer:
        assert converse(peer, b"hello") == b"/chat/garden garden chat: 'hello'"
        peer.send(close_frame(1000, b"bye"))
        assert peer.read_close() == (1000, b"bye")
    with Peer.connect(address) as peer:
        assert peer.shake("/chat/garden", Sec_WebSocket_Protocol="x").status == 400


def test_converters_and_defaults(serve, app):
    sock = Sock(app)

    @sock.route("/<int:number>/<path:rest>", endpoint="numbers", defaults={"mark": "!"})
    def session(socket, number, rest, mark):
        socket.send(f"{number + 1} {rest} {mark} {flask.request.endpoint}")

    with Peer.open(serve(app).address, "/41/a/b") as peer:
        assert peer.read_frame()[2] == b"42 a/b ! numbers"


@pytest.mark.parametrize("way", ["Sock(blueprint)", "bp=", "init_app(blueprint)"])
def test_a_route_of_a_blueprint_with_a_prefix(serve, app, way):
    blueprint = flask.Blueprint("live", __name__, url_prefix="/live/<team>")
    sock = Sock(blueprint) if way == "Sock(blueprint)" else Sock()
    options = {"bp": blueprint} if way == "bp=" else {}

    @sock.route("/<room>", **options)
    def session(socket, team, room):
        socket.send(f"{team} {room} {flask.request.blueprint}")

    if way == "init_app(blueprint)":
        sock.init_app(blueprint)
    app.register_blueprint(blueprint)
    with Peer.open(serve(app).address, "/live/red/one") as peer:
        assert peer.read_frame()[2] == b"red one live"


def test_a_session_of_two_routes(app):
    sock = Sock(app)
    blueprint = flask.Blueprint("rooms", __name__)

    @sock.route("/chat/<room>")
    @sock.route("/chat", defaults={"room": "lobby"})
    @sock.route("/rooms/<room>", blueprint)
    def chat(socket, room):
        socket.send(room)

    with pytest.raises(AssertionError, match="existing endpoint function: chat"):
        sock.route("/other/<room>", protocols=["chat"])(chat)
    sock.route("/other/<room>", protocols=["chat"], endpoint="other")(chat)
    app.register_blueprint(blueprint)
    for path, room in (("/chat", "lobby"), ("/chat/garden", "garden"), ("/rooms/attic", "attic")):
        with testing.connect(app, path) as socket:
            assert socket.receive() == room


def test_a_method_as_the_session_of_two_routes(app):
    class Greeter:
        def __init__(self, text):
            self.text = text

        def greet(self, socket):
            socket.send(self.text)

    sock = Sock(app)
    hello, bye = Greeter("hello"), Greeter("bye")
    sock.route("/hello")(hello.greet)
    sock.route("/hi")(hello.greet)
    with pytest.raises(AssertionError, match="existing endpoint function: greet"):
        sock.route("/other")(bye.greet)
    sock.route("/bye", endpoint="bye")(bye.greet)
    for path, text in (("/hello", "hello"), ("/hi", "hello"), ("/bye", "bye")):
        with testing.connect(app, path) as socket:
            assert socket.receive() == text


def test_init_app_of_several_applications(serve):
    sock = Sock()
    sock.route("/before/<room>")(chat)
    apps = [flask.Flask(name) for name in ("one", "two")]
    for app in apps:
        sock.init_app(app)
    sock.route("/after/<room>", endpoint="after")(chat)
    for app in apps:
        for path in ("/before/x", "/after/x"):
            with Peer.open(serve(app).address, path) as peer:
                assert converse(peer, b"1") == f"{path} x None: '1'".encode()


def test_a_page_may_have_the_same_path(serve, app):
    Sock(app).route("/chat", endpoint="socket")(lambda socket: socket.send("socket"))
    app.get("/chat")(lambda: "page")
    server = serve(app)
    assert app.test_client().get("/chat").text == "page"
    with Peer.open(server.address, "/chat") as peer:
        assert peer.read_frame()[2] == b"socket"


def test_the_answer_to_a_plain_request_says_what_is_missing(serve, app):
    Sock(app).route("/chat", endpoint="socket")(lambda socket: socket.send("socket"))
    app.add_url_rule("/other", "other", lambda: "other", websocket=True)
    response = app.test_client().get("/chat")
    assert response.status_code == 426
    assert "A proxy must forward both" in response.text
    assert app.test_client().get("/other").status_code == 400  # as without greenws


def test_variables_of_a_subdomain_or_a_host():
    for options, rule in (
        ({"subdomain_matching": True}, {"subdomain": "<name>"}),
        ({"host_matching": True, "static_host": "s"}, {"host": "<name>.example.com"}),
    ):
        app = flask.Flask("app_of_a_test", **options)
        app.config["SERVER_NAME"] = "example.com"

        @Sock(app).route("/<int:number>", **rule)
        def session(socket, name, number):
            socket.send(f"{name} {number}")

        with testing.connect(app, "/5", headers={"Host": "ann.example.com"}) as socket:
            assert socket.receive() == "ann 5"


def test_a_preprocessor_may_take_a_variable(app):
    @app.url_value_preprocessor
    def take(endpoint, values):
        flask.g.language = values.pop("language")

    @Sock(app).route("/<language>/<room>")
    def session(socket, room):
        socket.send(f"{flask.g.language} {room}")

    with testing.connect(app, "/fr/lobby") as socket:
        assert socket.receive() == "fr lobby"


@pytest.mark.parametrize("rule, path", [("/chat/", "/chat"), ("/chat", "/chat/")])
def test_a_slash_more_or_less_is_no_redirect(serve, app, rule, path):
    Sock(app).route(rule, endpoint="socket")(lambda socket: socket.send("hello"))
    with Peer.open(serve(app).address, path) as peer:
        assert peer.read_frame()[2] == b"hello"


def test_before_the_upgrade_and_after(serve, app):
    """A refusal is a real response, and teardown comes at the end."""
    steps: list[Any] = []

    @app.before_request
    def check():
        if "name" not in flask.request.args:
            flask.abort(401)
        flask.g.name = flask.request.args["name"]

    app.teardown_request(steps.append)

    @Sock(app).route("/me")
    def me(socket):
        socket.send(flask.g.name)
        socket.receive()

    address = serve(app).address
    with Peer.connect(address) as peer:
        assert peer.shake("/me").status == 401
    wait_until(lambda: steps)
    with Peer.open(address, "/me?name=ada") as peer:
        assert peer.read_frame()[2] == b"ada"
        assert steps == [None]
        peer.send(close_frame(1000))
        peer.read_close()
    wait_until(lambda: steps == [None, None])


def test_a_test_without_a_network(app):
    """With the cookies of Flask's test client, a refusal, and an error raised in the test."""
    app.testing = True

    @app.post("/login")
    def login():
        flask.session["name"] = flask.request.form["name"]
        return ""

    @Sock(app).route("/chat/<room>")
    def chat(socket, room):
        if "name" not in flask.session:
            flask.abort(401)
        socket.send(f"{flask.session['name']} in {room}")
        if socket.receive() == "fail":
            raise LookupError("of the session")

    client = app.test_client()
    client.post("/login", data={"name": "ada"})
    with testing.connect(app, "/chat/lounge", client=client) as socket:
        assert socket.receive() == "ada in lounge"
        socket.send("end")
    with pytest.raises(LookupError, match="of the session"):
        with testing.connect(app, "/chat/lounge", client=client) as socket:
            socket.send("fail")
            socket.receive()
            socket.receive()
    with pytest.raises(testing.Refused) as caught:
        testing.connect(app, "/elsewhere", client=client)
    assert caught.value.status_code == 404


@pytest.mark.parametrize("kind", [LookupError, TypeError])
def test_an_error_is_a_failed_request(serve, app, caplog, kind):
    caplog.set_level(logging.ERROR)
    torn_down: list[Any] = []
    app.teardown_request(torn_down.append)

    @Sock(app).route("/fail")
    def fail(socket):
        raise kind("of the session")

    with Peer.open(serve(app).address, "/fail") as peer:
        assert peer.read_frame() == (True, 8, b"\x03\xf3")
        peer.send(close_frame(1011))
        assert peer.at_end()
    (error,) = wait_until(lambda: torn_down)
    assert isinstance(error, kind) and str(error) == "of the session"
    (record,) = caplog.records
    assert record.name == app.name


@pytest.mark.parametrize("ends", ["abort", "return"])
def test_a_refusal_in_a_session_is_logged_as_too_late(serve, app, caplog, ends):
    """As of flask-login's ``login_required`` below ``sock.route``: it aborts, or it returns a
    redirect."""

    @Sock(app).route("/late")
    def late(socket):
        return flask.abort(401) if ends == "abort" else flask.redirect("/login")

    address = serve(app).address
    for _ in range(2):
        with Peer.open(address, "/late") as peer:
            assert peer.read_close(answer=True)[0] == (1011 if ends == "abort" else 1000)
            peer.send(close_frame(1000))
            assert peer.at_end()
    records = [each for each in caplog.records if each.name == "greenws.session"]
    texts = [each.getMessage() for each in records]
    assert all("before_request" in text for text in texts)
    if ends == "abort":
        assert len(texts) == 2
        assert (
            texts[0].startswith("401 Unauthorized: ")
            and "raised in a session, too late" in texts[0]
        )
    else:
        (text,) = texts  # once for each function
        assert "late(socket) returned <Response" in text and "is ignored" in text


def test_what_differs_from_flask_sock(serve, app):
    """As the docstring says."""
    seen: list[Any] = []

    @Sock(app).route("/")
    def session(socket):
        with pytest.raises(TimeoutError):
            socket.receive(timeout=0.01)
        seen.append(socket.is_connected)
        socket.close(4000, "enough")
        with pytest.raises(ConnectionClosed):
            socket.receive()
        seen.append(socket.is_connected)

    address = serve(app).address
    with Peer.open(address) as peer:
        assert peer.read_frame() == (True, 8, b"\x0f\xa0enough")
        peer.send(close_frame(4000))
        assert peer.at_end()
    wait_until(lambda: seen == [True, False])
    with Peer.connect(address) as peer:
        assert peer.shake(Origin="https://elsewhere.example").status == 403


def test_options_and_headers(serve, app):
    @Sock(app).route("/", allowed_origins="*", max_message_size=5, response_headers=[("X-A", "b")])
    def session(socket):
        socket.receive()

    with Peer.connect(serve(app).address) as peer:
        response = peer.shake(Origin="https://elsewhere.example")
        assert (response.status, response.headers["x-a"]) == (101, "b")
        peer.send(frame(TEXT, b"123456"))
        assert peer.read_close()[0] == 1009


async def coroutine(socket):
    pass


def generator(socket):
    yield


class TestMistakes:
    @pytest.mark.parametrize(
        "path, function, text",
        [
            ("/", coroutine, "async def"),
            ("/", generator, "yield"),
            ("/", lambda: None, "does not fit"),
            ("/<room>", lambda socket: None, "does not fit"),
            ("/", lambda socket, room: None, "does not fit"),
            ("/", 7, "is a function"),
            ("/", lambda request, socket: None, "leave out 'request'"),
        ],
    )
    def test_of_the_function(self, app, path, function, text):
        with pytest.raises(TypeError, match=text):
            Sock(app).route(path)(function)
        if text != "does not fit":
            with pytest.raises(TypeError, match=text):
                Sock().route(path)(function)

    def test_none_is_a_decorator_that_gives_the_request(self, app):
        def with_request(function):
            @functools.wraps(function)
            def session(socket, **variables):
                return function(flask.request, socket, **variables)

            return session

        @Sock(app).route("/<room>")
        @with_request
        def chat(request, socket, room):
            socket.send(f"{request.path} {room}")

        with testing.connect(app, "/lobby") as socket:
            assert socket.receive() == "/lobby lobby"

    def test_a_decorator_above_has_no_effect(self, app, serve):
        def login_required(function):
            @functools.wraps(function)
            def session(*args, **variables):
                return function(*args, **variables)

            return session

        source = """
@login_required
@sock.route("/chat")
@sock.route("/talk")
def chat(socket):
    socket.send("without login")

@sock.route("/right")
@sock.route("/right-too", endpoint="too")
@login_required
def right(socket):
    socket.send("right")
"""
        exec(source, {"login_required": login_required, "sock": Sock(app)})
        routes = "@sock.route('/chat') and @sock.route('/talk')"
        text = (
            f"a decorator is above {routes} (<string>, line 2), so the session chat runs without "
            f"it: put {routes} on top"
        )
        for _ in range(2):
            with pytest.raises(TypeError, match=re.escape(text)):
                serve(app)
            with pytest.raises(TypeError, match=re.escape(text)):
                testing.connect(app, "/chat")
        for path in ("/right", "/right-too"):
            with testing.connect(app, path) as socket:
                assert socket.receive() == "right"

    def test_a_star_is_an_ordinary_character_for_flask(self, app, caplog):
        @Sock(app).route("/chat/*")
        def chat(socket):
            socket.send("star")

        (record,) = caplog.records
        assert "matches only a path with this '*' in it" in record.getMessage()
        with testing.connect(app, "/chat/*") as socket:
            assert socket.receive() == "star"

    def test_of_the_options(self, app):
        sock = Sock(app)
        with pytest.raises(TypeError, match="is a blueprint, not 'chat'"):
            sock.route("/", "chat")
        with pytest.raises(TypeError, match="unknown option 'max_size'"):
            sock.route("/", max_size=5)
        with pytest.raises(TypeError, match="always a GET"):
            sock.route("/", methods=["GET"])
        with pytest.raises(TypeError, match="did you mean 'protocols'"):
            sock.route("/", subprotocols=["chat"])
        with pytest.raises(TypeError, match="shutdown_grace is an option of the server"):
            sock.route("/", shutdown_grace=5)(lambda socket: None)
        with pytest.raises(TypeError, match=r"\['chat'\]"):
            sock.route("/", protocols="chat")
        with pytest.raises(TypeError, match="in parentheses"):
            sock.route(chat)
        with pytest.raises(ValueError, match="is written <room>"):
            sock.route("/chat/{room}")
        with pytest.raises(TypeError, match="must be a str"):
            sock.route(b"/chat")
        with pytest.raises(TypeError, match="Flask application or a blueprint"):
            Sock("app")


PROGRAM = """\
from flask import Flask
from greenws.integrations.flask import Sock

app = Flask(__name__)
sock = Sock(app)

@sock.route("/")
def session(socket):
    socket.send("VERSION")
    socket.receive()
"""


def test_flask_run_with_its_reloader(tmp_path: Path):
    """An open session does not hold it up."""
    program = tmp_path / "reloaded.py"
    program.write_text(PROGRAM.replace("VERSION", "first"))
    arguments = ["-m", "flask", "--app", "reloaded", "run", "--debug", "--port", "0"]
    with Process(*arguments, cwd=tmp_path) as process:
        try:
            process.wait_for_port()
            process.wait_for("Debugger PIN")
            with connect(process.url("/")) as client:
                assert client.recv(limit()) == "first"
                first = len(process.lines)
                program.write_text(PROGRAM.replace("VERSION", "the second"))
                process.wait_for("Detected change", first)
                process.wait_for("Debugger PIN", first)
            with connect(process.url("/")) as client:
                assert client.recv(limit()) == "the second"
        finally:
            for child in children(process.popen.pid):
                os.kill(child, signal.SIGTERM)
    assert "Traceback" not in process.output
