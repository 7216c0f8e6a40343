"""Flask: views that return a ``WebSocketHandler``, on our own server and under 'flask run'."""

from __future__ import annotations

import http.client
import logging
import sys
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import flask
import flask_login
import gevent
import pytest
import websockets
from werkzeug.routing import Map, MapAdapter, Rule, WebsocketMismatch

import greenws
import greenws.testing
from greenws import HandshakeError, surroundings
from greenws.integrations import flask as integration

from ..support.limits import eventually, limit, wait_until
from ..support.processes import Process, connect, descriptors, threads
from ..support.wire import BINARY, TEXT, Peer, close_frame, frame


def converse(peer: Peer, text: bytes) -> bytes:
    """Sends text, and returns the text that comes back."""
    peer.send(frame(TEXT, text))
    fin, opcode, payload = peer.read_frame()
    assert (fin, opcode) == (True, TEXT)
    return payload


def finish(peer: Peer) -> None:
    """The closing handshake, and the end of the stream with nothing after it."""
    peer.send(close_frame(1000))
    assert peer.read_close() == (1000, b"")


def plain(address: Any, path: str, method: str = "GET", **headers: str) -> Any:
    """The response to a plain HTTP request."""
    with Peer.connect(address) as peer:
        head = {"Host": "example.com", "Connection": "close"}
        head |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        peer.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        return peer.read_response()


def session_handler(function: Any, protocol: str | None = None) -> greenws.WebSocketHandler:
    """A function ``(request, socket)`` as the handler of all sessions."""

    class Handler(greenws.WebSocketSessionHandler):
        socket_protocol = protocol

        def handle_session(self, request, socket):
            function(request, socket)

    return greenws.WebSocketHandler(lambda request, protocols: Handler())


def echo_messages(request: Any, socket: greenws.WebSocket) -> None:
    for message in socket:
        socket.send(message)


@pytest.fixture(autouse=True)
def told_unpatched(monkeypatch):
    """The warning that comes once in a process, for whichever test is the first there."""
    monkeypatch.setattr(surroundings, "_logged", {*surroundings._logged, "unpatched"})


@pytest.fixture
def app() -> flask.Flask:
    app = flask.Flask("app_of_a_test")
    app.secret_key = "for the tests"
    return app


class Quiet(greenws.WebSocketSessionHandler):
    def handle_session(self, request, socket):
        pass


def test_a_session_that_is_an_application_too_may_be_returned():
    class Both(Quiet):
        def __call__(self, environ, start_response):
            handler = greenws.WebSocketHandler(lambda request, protocols: self)
            return handler(environ, start_response)

    app = flask.Flask(__name__)
    app.get("/")(Both)
    greenws.testing.connect(app).close()


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (greenws.WebSocketHandler, r"protocols: YourSession\(\)\)"),
        (Quiet, r"returned <class .*protocols: Quiet\(\)\)"),
        (Quiet(), r"returned <.*Quiet object.*protocols: Quiet\(\)\)"),
        ((Quiet(), 101), r"protocols: Quiet\(\)\)"),
    ],
)
def test_a_view_that_returns_no_handler_but_a_session_or_a_class_is_reported(app, returned, match):
    app.add_url_rule("/", view_func=lambda: returned, endpoint="wrong")
    app.testing = True
    with pytest.raises(TypeError, match=match):
        greenws.testing.connect(app, "/")


class TestTheExamples:
    """What the README and the documentation show."""

    def test_routes(self, serve, tmp_path, monkeypatch):
        (tmp_path / "webroot").mkdir()
        (tmp_path / "webroot" / "index.html").write_text("the page")
        monkeypatch.chdir(tmp_path)

        from greenws import Routes, StaticFiles, WebSocketHandler, WebSocketSessionHandler

        class EchoHandler(WebSocketSessionHandler):
            socket_protocol = "echo"

            def handle_session(self, request, socket):
                while True:
                    text, opcode, final = socket.read_string_message()
                    if text is None:
                        socket.close()
                        return
                    socket.send_string_message(text, final=final)

        def producer(request, protocols):
            return EchoHandler() if "echo" in protocols else None

        routes = Routes()
        routes.add(method="GET", uri="/echo", handler=WebSocketHandler(producer))
        routes.add(method="GET", uri="*", handler=StaticFiles("webroot"))
        server = serve(routes)

        with Peer.connect(server.address) as peer:
            response = peer.shake("/echo", Sec_WebSocket_Protocol="chat, echo")
            assert response.status == 101
            assert response.headers["sec-websocket-protocol"] == "echo"
            peer.send(frame(TEXT, b"one ", fin=False))
            assert peer.read_frame() == (False, TEXT, b"one ")
            peer.send(frame(0, b"two"))
            assert peer.read_frame() == (True, 0, b"two")
            finish(peer)
        with Peer.connect(server.address) as peer:
            response = peer.shake("/echo", Sec_WebSocket_Protocol="chat")
            assert (response.status, response.body) == (
                400,
                b"WebSocket protocols not supported.\n",
            )
        assert plain(server.address, "/").body == b"the page"

    def test_a_flask_view(self, serve):
        from flask import Flask

        from greenws import WebSocketHandler, WebSocketSessionHandler

        app = Flask(__name__)

        class EchoHandler(WebSocketSessionHandler):
            socket_protocol = "echo"

            def handle_session(self, request, socket):
                for message in socket:
                    socket.send(message)

        def producer(request, protocols):
            return EchoHandler() if "echo" in protocols else None

        @app.get("/echo")
        def echo():
            return WebSocketHandler(producer)

        server = serve(app)
        with Peer.open(server.address, "/echo", Sec_WebSocket_Protocol="echo") as peer:
            assert converse(peer, b"hello") == b"hello"
            finish(peer)
        with Peer.connect(server.address) as peer:
            assert peer.shake("/echo").status == 400

    def test_the_short_form(self, serve):
        routes = greenws.Routes()
        rooms: list[str] = []

        @routes.websocket("/chat/<room>", protocols=["chat"])
        def chat(request, socket, room):
            rooms.append(room)
            for message in socket:
                socket.send(message)

        server = serve(routes)
        with Peer.open(server.address, "/chat/garden", Sec_WebSocket_Protocol="chat") as peer:
            peer.send(frame(TEXT, b"hel", fin=False) + frame(0, b"lo"))
            assert peer.read_frame() == (True, TEXT, b"hello")
            peer.send(frame(BINARY, b"\xff"))
            assert peer.read_frame() == (True, BINARY, b"\xff")
            finish(peer)
        assert rooms == ["garden"]


class TestTheView:
    """Before the upgrade, a view has a real request and gives real answers."""

    def test_plain_get_of_a_websocket_view_is_426(self, serve, app):
        @app.get("/echo")
        def echo():
            return session_handler(echo_messages)

        server = serve(app)
        response = plain(server.address, "/echo")
        assert response.status == 426
        assert response.headers["upgrade"].lower() == "websocket"
        assert b"Upgrade: websocket" in response.body

    def test_session_cookie(self, serve, app):
        @app.get("/login/<name>")
        def login(name):
            flask.session["name"] = name
            return "welcome"

        @app.get("/whoami")
        def whoami():
            in_view = flask.session.get("name")

            def session(request, socket):
                socket.send(f"view: {in_view}, handler: {flask.session.get('name')}")

            return session_handler(session)

        server = serve(app)
        response = plain(server.address, "/login/ada")
        cookie = SimpleCookie(response.headers["set-cookie"])["session"].OutputString([])
        with Peer.open(server.address, "/whoami", Cookie=cookie) as peer:
            assert peer.read_frame() == (True, TEXT, b"view: ada, handler: ada")
        forged = cookie[:-4] + "AAAA"
        with Peer.open(server.address, "/whoami", Cookie=forged) as peer:
            assert peer.read_frame() == (True, TEXT, b"view: None, handler: None")

    @pytest.fixture
    def guarded(self, serve, app):
        """Flask-Login's ``login_required`` around a view that upgrades."""
        manager = flask_login.LoginManager(app)

        class User(flask_login.UserMixin):
            id = "ada"

        @manager.user_loader
        def load_user(name):
            return User() if name == "ada" else None

        @app.get("/login")
        def login():
            flask_login.login_user(User())
            return "welcome"

        @app.get("/private")
        @flask_login.login_required
        def private():
            def session(request, socket):
                socket.send(f"hello {flask_login.current_user.id}")

            return session_handler(session)

        return serve(app), manager

    def test_login_required_is_a_real_401(self, guarded):
        server, _ = guarded
        with Peer.connect(server.address) as peer:
            response = peer.shake("/private")
            assert response.status == 401
            assert b"Unauthorized" in response.body

    def test_login_required_is_a_real_redirect(self, guarded):
        server, manager = guarded
        manager.login_view = "login"
        with Peer.connect(server.address) as peer:
            response = peer.shake("/private")
            assert response.status == 302
            assert response.headers["location"].startswith("/login?next=")

    def test_login_required_lets_a_user_in(self, guarded):
        server, _ = guarded
        response = plain(server.address, "/login")
        cookie = SimpleCookie(response.headers["set-cookie"])["session"].OutputString([])
        with Peer.open(server.address, "/private", Cookie=cookie) as peer:
            assert peer.read_frame() == (True, TEXT, b"hello ada")
            assert peer.read_frame()[1:] == (8, b"\x03\xe8")

    @pytest.mark.parametrize("status", [401, 403, 404, 429])
    def test_abort(self, serve, app, status):
        @app.get("/abort")
        def view():
            flask.abort(status)

        with Peer.connect(serve(app).address) as peer:
            assert peer.shake("/abort").status == status

    def test_a_plain_answer_to_a_handshake_ends_the_connection(self, serve, app):
        """What a client sends after its handshake is never read as HTTP."""

        @app.get("/secret")
        def secret():
            if "Authorization" not in flask.request.headers:
                flask.abort(401)
            return session_handler(echo_messages)

        server = serve(app)
        with Peer.connect(server.address) as peer:
            response = peer.shake("/secret")
            assert (response.status, response.headers["connection"]) == (401, "close")
            assert peer.at_end()
        with Peer.connect(server.address) as peer:
            assert peer.shake("/secret", Authorization="yes").status == 101
            assert converse(peer, b"hello") == b"hello"

    def test_the_producer_aborts(self, serve, app):
        """What the producer raises is answered by greenws, past Flask's error handlers."""
        handled: list[Any] = []

        @app.errorhandler(403)
        def handle(error):
            handled.append(error)
            return "handled", 403

        def producer(request, protocols):
            flask.abort(403)

        @app.get("/producer")
        def from_producer():
            return greenws.WebSocketHandler(producer)

        @app.get("/view")
        def from_view():
            flask.abort(403)

        server = serve(app)
        with Peer.connect(server.address) as peer:
            response = peer.shake("/producer")
            assert response.status == 403
            assert response.body != b"handled"
        assert handled == []
        with Peer.connect(server.address) as peer:
            response = peer.shake("/view")
            assert (response.status, response.body) == (403, b"handled")
        assert len(handled) == 1

    def test_variables_of_the_url(self, serve, app):
        @app.get("/room/<int:number>/<path:rest>")
        def room(number, rest):
            def session(request, socket):
                socket.send(f"{number!r} {rest!r} {request.args['q']} {flask.request.path}")

            return session_handler(session)

        with Peer.open(serve(app).address, "/room/7/a/b?q=1") as peer:
            assert peer.read_frame() == (True, TEXT, b"7 'a/b' 1 /room/7/a/b")

    def test_blueprint(self, serve, app):
        blueprint = flask.Blueprint("chat", __name__, url_prefix="/chat")
        seen: list[str] = []

        @blueprint.before_request
        def before():
            seen.append(str(flask.request.blueprint))

        @blueprint.get("/echo")
        def echo():
            return session_handler(echo_messages)

        app.register_blueprint(blueprint)
        with Peer.open(serve(app).address, "/chat/echo") as peer:
            assert converse(peer, b"hello") == b"hello"
        assert seen == ["chat"]

    def test_hooks_run(self, serve, app):
        events: list[Any] = []

        @app.before_request
        def before():
            events.append("before")

        @app.after_request
        def after(response):
            events.append(("after", response.status_code))
            return response

        @app.teardown_request
        def teardown(error):
            events.append(("teardown", error))

        @app.get("/echo")
        def echo():
            def session(request, socket):
                events.append("session")
                echo_messages(request, socket)
                events.append("session ended")

            return session_handler(session)

        with Peer.open(serve(app).address, "/echo") as peer:
            assert converse(peer, b"hello") == b"hello"
            assert events == ["before", "session"]
            finish(peer)
        wait_until(lambda: len(events) == 5)
        assert events[2:] == ["session ended", ("after", 101), ("teardown", None)]

    def test_before_request_refuses(self, serve, app):
        @app.before_request
        def before():
            return "closed for today", 503

        @app.get("/echo")
        def echo():
            return session_handler(echo_messages)

        with Peer.connect(serve(app).address) as peer:
            response = peer.shake("/echo")
            assert (response.status, response.body) == (503, b"closed for today")

    def test_contexts_in_the_handler(self, serve, app):
        @app.get("/echo")
        def echo():
            flask.g.user = "ada"

            def session(request, socket):
                for message in socket:
                    name = flask.current_app.name
                    socket.send(f"{message} {name} {flask.g.user} {flask.url_for('echo')}")

            return session_handler(session)

        with Peer.open(serve(app).address, "/echo") as peer:
            assert converse(peer, b"hello") == b"hello app_of_a_test ada /echo"

    def test_contexts_of_sessions_at_once_are_apart(self, serve, app):
        @app.get("/<name>")
        def echo(name):
            flask.g.name = name

            def session(request, socket):
                for _ in socket:
                    socket.send(f"{flask.g.name} {flask.request.path}")

            return session_handler(session)

        server = serve(app)
        peers = [Peer.open(server.address, f"/user{number}") for number in range(20)]
        for _ in range(3):
            for number, peer in enumerate(peers):
                assert converse(peer, b"?") == b"user%d /user%d" % (number, number)
        for peer in peers:
            peer.close()


class TestErrors:
    @pytest.mark.parametrize(
        "kind",
        [
            ValueError,
            TypeError,
            StopIteration,
            ConnectionResetError,
            TimeoutError,
            HandshakeError,
        ],
    )
    def test_an_error_in_the_session_is_1011_and_a_failed_request(self, serve, app, caplog, kind):
        error = kind("of the session")
        handled: list[Any] = []

        @app.errorhandler(500)
        def handle(caught):
            handled.append(caught.original_exception)
            return "an error page", 500

        @app.teardown_request
        def teardown(caught):
            handled.append(caught)

        def tell(sender, exception):
            handled.append(exception)

        @app.get("/crash")
        def crash():
            def session(request, socket):
                for _ in socket:
                    raise error

            return session_handler(session)

        server = serve(app)
        with flask.got_request_exception.connected_to(tell, app):
            with Peer.open(server.address, "/crash") as peer:
                peer.send(frame(TEXT, b"hello"))
                assert peer.read_frame() == (True, 8, b"\x03\xf3")
                peer.send(close_frame(1011))
                assert peer.at_end()
            wait_until(lambda: len(handled) == 3)
        assert handled == [error] * 3
        assert [str(each) for each in handled] == [str(error)] * 3
        (record,) = caplog.records  # Flask's
        assert record.name == app.name
        assert record.exc_info[1] is error

    @pytest.mark.parametrize("kind", [ValueError, TypeError, gevent.Timeout])
    def test_an_error_that_flask_does_not_handle_is_logged_once_by_us(
        self, serve, app, error_log, caplog, kind
    ):
        """As with ``flask run --debug``, where Flask leaves it to the debugger."""
        error = kind(0)
        app.config["PROPAGATE_EXCEPTIONS"] = True
        torn_down: list[Any] = []
        app.teardown_request(torn_down.append)

        @app.get("/crash")
        def crash():
            def session(request, socket):
                raise error

            return session_handler(session)

        with Peer.open(serve(app).address, "/crash") as peer:
            assert peer.read_frame() == (True, 8, b"\x03\xf3")
            peer.send(close_frame(1011))
            assert peer.at_end()
        (record,) = wait_until(error_log.take)
        assert record.getMessage().startswith("session failed: '/crash' ('127.0.0.1', ")
        assert record.exc_info[1] is error
        assert caplog.records == [record]
        assert torn_down == [error]

    def test_a_closed_connection_is_no_failure(self, serve, app, caplog):
        torn_down: list[Any] = []
        app.teardown_request(torn_down.append)

        @app.get("/echo")
        def echo():
            def session(request, socket):
                while True:
                    socket.receive()

            return session_handler(session)

        for leave in (lambda peer: peer.reset(), lambda peer: peer.send(close_frame(4000))):
            with Peer.open(serve(app).address, "/echo") as peer:
                leave(peer)
            assert wait_until(lambda: torn_down) == [None]
            torn_down.clear()
        assert caplog.records == []

    def test_an_http_error_in_the_session_is_no_response(self, serve, app, caplog):
        """Too late for a 404: the 101 was sent."""

        @app.get("/late")
        def late():
            return session_handler(lambda request, socket: flask.abort(404))

        with Peer.open(serve(app).address, "/late") as peer:
            assert peer.read_frame() == (True, 8, b"\x03\xf3")
            peer.send(close_frame(1011))
            assert peer.at_end()
        ours, flasks = wait_until(lambda: caplog.records[1:] and caplog.records)
        assert "too late" in ours.getMessage()
        assert flasks.name == app.name

    def test_an_error_after_using_the_gevent_websocket_socket_closes_with_1011(
        self, serve, app, caplog
    ):
        @app.get("/late")
        def late():
            flask.request.environ["wsgi.websocket"].send("hello")
            raise ValueError("of the view")

        with Peer.open(serve(app).address, "/late") as peer:
            assert peer.read_frame() == (True, TEXT, b"hello")
            assert peer.read_frame() == (True, 8, b"\x03\xf3")
            peer.send(close_frame(1011))
            assert peer.at_end()
        assert len(caplog.records) == 1

    def test_an_error_in_the_view_is_flask_s_500(self, serve, app, caplog):
        handled: list[Any] = []

        @app.errorhandler(500)
        def handle(error):
            handled.append(error.original_exception)
            return "Flask's own page", 500

        @app.get("/broken")
        def broken():
            raise KeyError("of the view")

        with caplog.at_level(logging.CRITICAL), Peer.connect(serve(app).address) as peer:
            response = peer.shake("/broken")
        assert (response.status, response.body) == (500, b"Flask's own page")
        assert [repr(error) for error in handled] == ["KeyError('of the view')"]

    def test_the_server_goes_on(self, serve, app, caplog):
        @app.get("/crash")
        def crash():
            return session_handler(lambda request, socket: 1 / 0)

        @app.get("/hello")
        def hello():
            return "hello"

        server = serve(app)
        for _ in range(3):
            with Peer.open(server.address, "/crash") as peer:
                assert peer.read_frame() == (True, 8, b"\x03\xf3")
        assert plain(server.address, "/hello").body == b"hello"
        wait_until(lambda: len(caplog.records) == 3)


class TestMethods:
    @pytest.fixture
    def address(self, serve, app):
        @app.route("/both", methods=["GET", "POST"])
        def both():
            return session_handler(echo_messages)

        @app.get("/echo")
        def echo():
            return session_handler(echo_messages)

        @app.post("/post")
        def post():
            return flask.request.get_data()

        return serve(app).address

    def test_a_plain_post_to_a_view_that_upgrades_is_405(self, address):
        response = plain(address, "/both", "POST", Content_Length="0")
        assert response.status == 405
        assert response.headers["allow"] == "GET"

    def test_flask_answers_405_for_methods_without_a_rule(self, address):
        response = plain(address, "/echo", "DELETE")
        assert response.status == 405
        assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}

    @pytest.mark.parametrize("path", ["/both", "/echo", "/post"])
    def test_a_handshake_with_another_method_is_405(self, address, path):
        with Peer.connect(address) as peer:
            assert peer.shake(path, method="POST", Content_Length="0").status == 405

    def test_options(self, address):
        assert plain(address, "/echo", "OPTIONS").status == 200


class TestRouting:
    """What ``import greenws`` changes in werkzeug's matching, and what it does not."""

    def test_install_twice_changes_nothing(self):
        match = MapAdapter.match
        integration.install()
        assert MapAdapter.match is match

    def test_a_route_without_websockets_answers_plain_http(self, serve, app):
        @app.get("/hello")
        def hello():
            return "hello"

        with Peer.connect(serve(app).address) as peer:
            response = peer.shake("/hello")
            assert (response.status, response.body) == (200, b"hello")

    def test_an_unknown_path_is_flask_s_404(self, serve, app):
        @app.errorhandler(404)
        def nothing(error):
            return "nothing here", 404

        with Peer.connect(serve(app).address) as peer:
            response = peer.shake("/nowhere")
            assert (response.status, response.body) == (404, b"nothing here")

    def test_rules_for_websockets_win(self, serve, app):
        @app.get("/both")
        def page():
            return "the page"

        @app.route("/both", websocket=True)
        def socket():
            return session_handler(echo_messages)

        server = serve(app)
        with Peer.open(server.address, "/both") as peer:
            assert converse(peer, b"hello") == b"hello"
        assert plain(server.address, "/both").body == b"the page"

    def test_a_rule_for_websockets_alone(self, serve, app):
        @app.route("/only", websocket=True)
        def only():
            return session_handler(echo_messages)

        server = serve(app)
        with Peer.open(server.address, "/only") as peer:
            assert converse(peer, b"hello") == b"hello"
        assert plain(server.address, "/only").status == 400  # werkzeug's own

    def test_werkzeugs_own_url_adapter_answers_as_before(self):
        rules = Map([Rule("/page", endpoint="page"), Rule("/ws", endpoint="ws", websocket=True)])
        adapter = rules.bind("example.com")
        assert adapter.match("/page") == ("page", {})
        assert adapter.match("/ws", websocket=True) == ("ws", {})
        with pytest.raises(WebsocketMismatch):
            adapter.match("/page", websocket=True)
        with pytest.raises(WebsocketMismatch):
            adapter.match("/ws")


@pytest.fixture(scope="module")
def flask_run() -> Iterator[Process]:
    """``flask run``: werkzeug's own server, a native thread for each connection."""
    with Process("-m", "flask", "--app", "flask_app", "run", "--port", "0") as process:
        yield process.wait_for_port()


def http_get(process: Process, path: str, status: int = 200) -> str:
    connection = http.client.HTTPConnection(*process.address, timeout=limit(10))
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == status, body
    return body


def rest_of(peer: Peer) -> bytes:
    """Everything until the end of the stream, or until its reset."""
    data = bytearray(peer.buffer)
    try:
        while chunk := peer.sock.recv(1 << 20):
            data += chunk
    except ConnectionResetError:
        pass
    return bytes(data)


class TestFlaskRun:
    @pytest.fixture(autouse=True)
    def quiet(self, flask_run: Process) -> Iterator[None]:
        """Nothing in the server's output but its access log, unless a test takes it off."""
        first = len(flask_run.lines)
        yield
        http_get(flask_run, "/hello")
        trouble = [line for line in flask_run.lines[first:] if " - - [" not in line]
        trouble = [line for line in trouble if "Press CTRL+C" not in line]  # its late greeting
        trouble = [line for line in trouble if "refused the handshake" not in line]
        assert trouble == []

    def test_echo(self, flask_run):
        with connect(flask_run.url("/echo"), subprotocols=["echo"]) as client:
            assert client.subprotocol == "echo"
            for message in ["hello", b"\x00\xff", "", "x" * 200_000, b"y" * (1 << 20)]:
                client.send(message)
                assert client.recv(limit(10)) == message
            client.ping(b"ping").wait(limit(10))
            client.close(4000, "bye")
        assert client.protocol.close_rcvd.code == 4000

    def test_pipeline(self, flask_run):
        with connect(flask_run.url("/echo")) as client:
            messages = [f"message {number}" for number in range(500)]
            for message in messages:
                client.send(message)
            assert [client.recv(limit(10)) for _ in messages] == messages

    def test_timeouts_and_pings_of_the_session(self, flask_run):
        with connect(flask_run.url("/ping")) as client:
            assert client.recv(limit(10)) == "INVALID True"
            assert client.recv(limit(10)) == "answered: True"

    def test_several_sessions_at_once(self, flask_run):
        peers = [Peer.open(flask_run.address, "/echo") for _ in range(20)]
        for round_ in range(5):
            for number, peer in enumerate(peers):
                text = b"%d %d" % (number, round_)
                assert converse(peer, text) == text
        for peer in peers:
            finish(peer)
            peer.close()

    def test_a_send_from_another_thread_reaches_a_session_that_reads(self, flask_run):
        with Peer.open(flask_run.address, "/listen") as peer:
            assert peer.read_frame() == (True, TEXT, b"listening")
            for text in ("one", "two"):
                assert http_get(flask_run, f"/tell/{text}") == "told 1"
                assert peer.read_frame() == (True, TEXT, f"request: {text}".encode())
                assert peer.read_frame() == (True, TEXT, f"thread: {text}".encode())
            finish(peer)
        eventually(lambda: http_get(flask_run, "/tell/nobody"), "told 0")

    def test_frames_in_the_handshake_s_own_segment(self, flask_run):
        behind = frame(TEXT, b"early") + frame(BINARY, b"bird" * 5000)[:9000]
        with Peer.open(flask_run.address, "/echo", behind) as peer:
            assert peer.read_frame() == (True, TEXT, b"early")
            peer.send(frame(BINARY, b"bird" * 5000)[9000:])
            assert peer.read_frame() == (True, BINARY, b"bird" * 5000)
            finish(peer)

    def test_nothing_of_http_follows_101(self, flask_run):
        with Peer.open(flask_run.address, "/goodbye") as peer:
            assert peer.read_frame() == (True, TEXT, b"goodbye")
            assert peer.read_frame() == (True, 8, b"\x0f\xa0enough")
            peer.send(close_frame(4000))
            assert peer.at_end()
        with Peer.open(flask_run.address, "/echo") as peer:
            finish(peer)

    def test_nothing_of_http_follows_a_session_that_was_cut_off(self, flask_run):
        """No Close and no end of the stream went out before: the socket itself must be shut."""
        before = int(http_get(flask_run, "/cut-off"))
        with Peer.open(flask_run.address, "/flood") as peer:
            eventually(lambda: int(http_get(flask_run, "/cut-off")), before + 1)  # write_timeout
            assert b"HTTP" not in rest_of(peer)

    def test_a_client_that_vanishes(self, flask_run):
        with Peer.open(flask_run.address, "/echo") as peer:
            peer.reset()
        with Peer.open(flask_run.address, "/echo") as peer:
            peer.send(frame(TEXT, b"half a frame")[:5])
        assert http_get(flask_run, "/hello") == "hello"

    def test_what_middleware_changed_counts(self, flask_run):
        """In gunicorn also behind wsgiref's validator, which wraps ``wsgi.input``."""
        with Peer.open(
            flask_run.address,
            "/changed",
            early=frame(TEXT, b"early"),
            Sec_WebSocket_Protocol="chat, c2VjcmV0Cg==",
            Sec_WebSocket_Extensions="permessage-deflate",
        ) as peer:
            assert peer.read_frame() == (True, TEXT, b"('192.0.2.7', 0) early")
            assert peer.read_frame()[1] == 8

    def test_refusals_are_plain_http(self, flask_run):
        for path, status in [("/secret", 401), ("/nowhere", 404), ("/hello", 200)]:
            with Peer.connect(flask_run.address) as peer:
                assert peer.shake(path).status == status
        assert "WebSocket endpoint" in http_get(flask_run, "/echo", 426)
        with pytest.raises(websockets.InvalidStatus):
            with connect(flask_run.url("/secret")):
                pass

    def test_descriptors_and_threads_come_back(self, flask_run):
        pid = flask_run.popen.pid
        # CPython 3.12 starts no threads at exit, so hub/parking.py has one waiting.
        idle = 2 if sys.version_info[:2] == (3, 12) else 1
        with Peer.open(flask_run.address, "/echo") as peer:
            finish(peer)
        http_get(flask_run, "/hello")
        eventually(lambda: threads(pid), idle)
        before = descriptors(pid)
        for _ in range(2):
            peers = [Peer.open(flask_run.address, "/echo") for _ in range(10)]
            for peer in peers:
                assert converse(peer, b"hello") == b"hello"
            assert threads(pid) > 10
            for peer in peers[:5]:
                finish(peer)
            for peer in peers:
                peer.close()
        eventually(lambda: threads(pid), idle)
        eventually(lambda: descriptors(pid), before)


def test_flask_run_logs_an_error_of_a_session_once():
    with Process("-m", "flask", "--app", "flask_app", "run", "--port", "0") as process:
        process.wait_for_port()
        with Peer.open(process.address, "/crash") as peer:
            assert peer.read_frame() == (True, 8, b"\x03\xf3")
            peer.send(close_frame(1011))
            assert peer.at_end()
        assert http_get(process, "/hello") == "hello"
        process.wait_for("/hello")
        process.wait_for("ValueError: of the handler")  # of the session's thread
        assert process.output.count("Traceback") == 1
        assert process.output.count("ValueError: of the handler") == 1


def test_flask_run_with_its_debugger():
    """The debugger is middleware around the application: it has nobody to show a page to."""
    options = ["--debug", "--no-reload", "--port", "0"]
    with Process("-m", "flask", "--app", "flask_app", "run", *options) as process:
        process.wait_for_port()
        with Peer.open(process.address, "/echo") as peer:
            assert converse(peer, b"hello") == b"hello"
            finish(peer)
        with Peer.open(process.address, "/crash") as peer:
            assert peer.read_frame() == (True, 8, b"\x03\xf3")
            peer.send(close_frame(1011))
            assert peer.at_end()
        process.wait_for("ValueError: of the handler")
        with Peer.open(process.address, "/echo") as peer:
            finish(peer)
        assert process.output.count("Traceback") == 1


def test_flask_run_from_a_module_that_is_not_installed(tmp_path: Path):
    """``import greenws`` in the module is all that the application has to do."""
    (tmp_path / "tiny.py").write_text(
        "from flask import Flask\n"
        "from greenws import WebSocketHandler, WebSocketSessionHandler\n"
        "app = Flask(__name__)\n"
        "class Hello(WebSocketSessionHandler):\n"
        "    def handle_session(self, request, socket):\n"
        "        socket.send('hello')\n"
        "@app.get('/')\n"
        "def hello():\n"
        "    return WebSocketHandler(lambda request, protocols: Hello())\n"
    )
    arguments = ["-m", "flask", "--app", "tiny", "run", "--port", "0"]
    with Process(*arguments, cwd=tmp_path) as process:
        process.wait_for_port()
        with connect(process.url("/")) as client:
            assert client.recv(limit(10)) == "hello"


@pytest.mark.parametrize(
    "body",
    [b"x\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloXY", b"5\r\nhello\r\n0\r\nbad\r\n\r\n", b"5\r\nhel"],
    ids=["size", "end of a chunk", "trailer", "cut off"],
)
def test_a_malformed_body_is_a_bad_request_and_no_failure_of_the_view(serve, caplog, body):
    app = flask.Flask(__name__)
    app.add_url_rule("/", view_func=lambda: str(len(flask.request.get_data())), methods=["POST"])
    with Peer.connect(serve(app).address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        if body.endswith(b"hel"):
            peer.sock.shutdown(1)
        assert peer.read_response().status == 400
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
