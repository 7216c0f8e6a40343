"""``testing.connect()``: any WSGI application, its cookies, its refusals and its errors."""

from __future__ import annotations

import socket as native
import subprocess
import sys
import time
import traceback

import flask
import gevent
import pytest
from geventwebsocket import Resource, WebSocketApplication
from werkzeug.exceptions import abort
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from greenws import (
    Config,
    ConnectionClosed,
    HandshakeError,
    Routes,
    WebSocketHandler,
    WebSocketSessionHandler,
    testing,
)

from ..support.limits import again_after_standstill, limit, pace


class Echo(WebSocketSessionHandler):
    socket_protocol = "echo"

    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message)


echo = WebSocketHandler(lambda request, protocols: Echo() if "echo" in protocols else None)


def make_routes():
    routes = Routes()

    @routes.websocket("/greet/<name>")
    def greet(request, socket, name):
        socket.send(f"hello {name} {request.args.get('more', '')}".strip())
        for message in socket:
            socket.send(message)

    return routes


def make_flask():
    app = flask.Flask("app")
    app.secret_key = "secret"

    class Inbox(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            for message in socket:
                socket.send(f"{flask.session['user']}: {message}")

    @app.post("/login")
    def login():
        flask.session["user"] = flask.request.form["name"]
        return "welcome"

    @app.get("/inbox")
    def inbox():
        if "user" not in flask.session:
            abort(401, "log in first")
        return WebSocketHandler(lambda request, protocols: Inbox())

    @app.get("/fails")
    def fails():
        raise LookupError("in the view")

    @app.get("/raw")
    def raw():
        flask.request.environ["wsgi.websocket"].send("raw")
        raise LookupError("after the upgrade")

    @app.get("/page")
    def page():
        return "a page"

    return app


# -- applications


def test_routes():
    with testing.connect(make_routes(), "/greet/Ada?more=again") as socket:
        assert socket.receive() == "hello Ada again"
        socket.send(b"bytes")
        assert socket.receive() == b"bytes"


def test_an_option_of_another_library_is_reported_by_its_name_here():
    with pytest.raises(TypeError, match="'protocols'; did you mean 'subprotocols'"):
        testing.connect(echo, protocols=["chat"])


def test_without_a_with():
    socket = testing.connect(make_routes(), "/greet/Ada")
    assert socket.receive() == "hello Ada"
    socket.close()
    assert socket.close_code == 1000


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_a_handler_and_its_subprotocol(kind):
    with testing.connect(echo, subprotocols=kind(["chat", "echo"])) as socket:
        assert socket.subprotocol == "echo"


def test_a_path_in_any_script_and_with_any_octet():
    with testing.connect(make_routes(), "/greet/%C3%A4 b?more=%2F") as socket:
        assert socket.receive() == "hello \u00e4 b /"


def test_a_view_of_flasks_with_a_login():
    app = make_flask()
    client = app.test_client()
    with pytest.raises(testing.Refused) as caught:
        testing.connect(app, "/inbox", client=client)
    assert caught.value.status_code == 401
    assert "log in first" in caught.value.response.text
    client.post("/login", data={"name": "Ada"})
    with testing.connect(app, "/inbox", client=client) as socket:
        socket.send("hi")
        assert socket.receive() == "Ada: hi"
    assert client.application is app


def test_an_application_behind_middlewares():
    def middleware(environ, start_response):
        return inner({**environ, "HTTP_X_SEEN": "yes"}, start_response)

    routes = Routes()

    @routes.websocket("/seen")
    def seen(request, socket):
        socket.send(f"{request.headers['X-Seen']} {request.script_root}{request.path}")

    inner = DispatcherMiddleware(make_flask(), {"/sub": routes})
    with testing.connect(middleware, "/sub/seen") as socket:
        assert socket.receive() == "yes /sub/seen"


def test_bottle():
    import bottle

    app = bottle.Bottle()

    @app.route("/ws/<name>")
    def serve(name):
        socket = bottle.request.environ["wsgi.websocket"]
        if name == "fails":
            socket.send("soon")
            raise LookupError("in Bottle")
        socket.send(f"{name} {socket.receive()}")

    with testing.connect(app, "/ws/ada") as socket:
        socket.send("hi")
        assert socket.receive() == "ada hi"
    with pytest.raises(LookupError, match="in Bottle"), testing.connect(app, "/ws/fails") as socket:
        assert socket.receive() == "soon"
    with pytest.raises(testing.Refused, match="404"):
        testing.connect(app, "/nowhere")


def test_resource_of_gevent_websocket():
    class Application(WebSocketApplication):
        def on_open(self):
            self.ws.send(f"open {len(self.ws.handler.server.clients)}")

        def on_message(self, message):
            if message is not None:
                self.ws.send(message[::-1])

    with testing.connect(Resource([("/", Application)]), "/") as socket:
        assert socket.receive() == "open 1"
        socket.send("abc")
        assert socket.receive() == "cba"


def test_any_function_of_wsgi():
    def app(environ, start_response):
        socket = environ["wsgi.websocket"]
        socket.send(environ["REMOTE_ADDR"])

    with testing.connect(app) as socket:
        assert socket.receive() == "127.0.0.1"
        with pytest.raises(ConnectionClosed) as caught:
            socket.receive()
    assert caught.value.code == 1000


def test_an_application_that_neither_answers_nor_uses_its_socket_is_closed():
    with testing.connect(lambda environ, start_response: None) as socket:
        assert list(socket) == []
    assert socket.close_code == 1000


def test_in_a_program_that_is_monkey_patched():
    source = """
from gevent import monkey; monkey.patch_all()
from greenws import Routes, testing
import time
routes = Routes()
@routes.websocket("/")
def chat(request, socket):
    for message in socket:
        time.sleep(0.001)
        socket.send(message)
with testing.connect(routes, "/") as socket:
    socket.send("patched")
    assert socket.receive() == "patched"
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=limit(20)
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_test_that_may_not_make_sockets_as_by_pytest_socket(monkeypatch):
    class Guarded(native.socket):
        def __new__(cls, *args, **options):
            raise AssertionError("a socket was made")

    monkeypatch.setattr(native, "socket", Guarded)
    with testing.connect(make_routes(), "/greet/Ada") as client:
        client.send("hello")
        assert client.receive()
        client.stall()
    with testing.pair() as (server, client):
        server.send("hello")
        assert client.receive() == "hello"


def test_many_at_once_in_one_greenlet():
    app = make_routes()
    sockets = [testing.connect(app, f"/greet/{i}") for i in range(20)]
    assert [socket.receive() for socket in sockets] == [f"hello {i}" for i in range(20)]
    for socket in sockets:
        socket.close()


def test_the_context_of_the_test_is_not_the_applications():
    app = make_flask()
    app.secret_key = "secret"

    @app.get("/context")
    def context():
        seen = getattr(flask.g, "of_the_test", "nothing")
        flask.request.environ["wsgi.websocket"].send(seen)
        return ""

    with app.app_context():
        flask.g.of_the_test = "something"
        with testing.connect(app, "/context") as socket:
            assert socket.receive() == "nothing"


@again_after_standstill(0.5)
def test_a_thousand_a_minute():
    began = time.monotonic()
    for _ in range(50):
        with testing.connect(echo, subprotocols=["echo"]) as socket:
            for number in range(10):
                socket.send(str(number))
                assert socket.receive() == str(number)
    assert time.monotonic() - began < pace(3)


# -- what is sent


def heads(**options):
    """The environ of a handshake."""
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [])
        return []

    with pytest.raises(testing.Refused):
        testing.connect(app, "/path?a=b", **options)
    return seen


def test_headers_are_added_or_replaced():
    environ = heads(
        headers={"Origin": "https://example.com", "User-Agent": "test", "Cookie": "a=1"}
    )
    assert environ["HTTP_ORIGIN"] == "https://example.com"
    assert environ["HTTP_USER_AGENT"] == "test"
    assert environ["HTTP_COOKIE"] == "a=1"
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/path", "a=b")
    assert environ["HTTP_HOST"] == "localhost"
    assert heads(headers=[("Host", "example.com")])["HTTP_HOST"] == "example.com"


def test_an_invalid_handshake_is_refused_as_by_a_server():
    with pytest.raises(testing.Refused) as caught:
        testing.connect(echo, headers={"Sec-WebSocket-Version": "8"})
    assert caught.value.status_code == 426
    assert caught.value.response.headers["Sec-WebSocket-Version"] == "13"


def test_the_origin_is_checked():
    with pytest.raises(testing.Refused, match="403"):
        testing.connect(
            echo, subprotocols=["echo"], headers={"Origin": "https://elsewhere.example"}
        )


def test_the_config_is_the_servers():
    config = Config(max_message_size=10)
    with testing.connect(echo, subprotocols=["echo"], config=config) as socket:
        socket.send("x" * 11)
        with pytest.raises(ConnectionClosed) as caught:
            socket.receive()
    assert caught.value.code == 1009


def test_a_client_of_werkzeugs_gives_its_cookies_and_its_environ():
    client = Client(None)
    client.set_cookie("a", "1")
    environ = heads(client=client, headers={"Cookie": "b=2"})
    assert environ["HTTP_COOKIE"] == "a=1; b=2"


def test_no_cookie_of_the_headers_is_lost():
    cookies = [("Cookie", "b=2"), ("Cookie", "c=3")]
    assert heads(headers=cookies)["HTTP_COOKIE"] == "b=2; c=3"
    client = Client(None)
    client.set_cookie("bb", "22")  # contains the other
    assert heads(client=client, headers=cookies)["HTTP_COOKIE"] == "bb=22; b=2; c=3"


def test_what_a_client_of_flasks_has_in_its_environ():
    app = make_flask()
    app.config["APPLICATION_ROOT"] = "/sub"
    client = app.test_client()
    client.environ_base["REMOTE_ADDR"] = "192.0.2.1"
    client.environ_base["app.user"] = "Ada"

    def around(environ, start_response):
        seen.update(environ)
        return app(environ, start_response)

    seen = {}
    with pytest.raises(testing.Refused):
        testing.connect(around, "/inbox", client=client)
    assert (seen["REMOTE_ADDR"], seen["app.user"], seen["SCRIPT_NAME"]) == (
        "192.0.2.1",
        "Ada",
        "/sub",
    )


@pytest.mark.parametrize("kind", ["", "werkzeug", "flask"])
@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("wss://example.com/where?a=1", "https://example.com/where?a=1"),
        ("http://example.com:81", "http://example.com:81/"),
    ],
)
def test_a_whole_url_gives_the_scheme_and_the_host(kind, url, seen):
    app = flask.Flask("app")

    @app.get("/")
    @app.get("/where")
    def where():
        return flask.request.url, 403

    wrapped = app if kind == "flask" else (lambda environ, respond: app(environ, respond))
    client = {"": None, "werkzeug": Client(wrapped), "flask": app.test_client()}[kind]
    with pytest.raises(testing.Refused) as caught:
        testing.connect(wrapped, url, client=client)
    assert caught.value.response.text == seen


def test_a_client_keeps_the_cookies_of_a_refusal():
    def app(environ, start_response):
        start_response("403 Forbidden", [("Set-Cookie", "seen=1"), ("Set-Cookie", "more=2")])
        return [b"no"]

    client = Client(app)
    with pytest.raises(testing.Refused):
        testing.connect(app, client=client)
    assert (client.get_cookie("seen").value, client.get_cookie("more").value) == ("1", "2")


def test_a_client_keeps_the_cookies_of_an_upgrade():
    app = WebSocketHandler(
        lambda request, protocols: Echo(), response_headers=[("Set-Cookie", "seen=1; Path=/")]
    )
    client = Client(app)
    with testing.connect(app, client=client, subprotocols=["echo"]) as socket:
        assert socket.response.headers["Set-Cookie"] == "seen=1; Path=/"
    assert client.get_cookie("seen").value == "1"


def test_messages_are_compressed_as_config_says():
    config = Config(deflate_window_bits=9, deflate_peer_window_bits=10, deflate_takeover=True)
    with testing.connect(echo, subprotocols=["echo"], config=config) as socket:
        assert "server_max_window_bits=" in socket.response.headers["Sec-WebSocket-Extensions"]
        for _ in range(3):
            socket.send("x" * 10_000)
            assert socket.receive() == "x" * 10_000
        assert socket.traffic.bytes_in < 1000
    config = Config(deflate=False)
    with testing.connect(echo, subprotocols=["echo"], config=config) as socket:
        assert "Sec-WebSocket-Extensions" not in socket.response.headers


# -- refusals


def test_a_refusal_has_the_response():
    with pytest.raises(testing.Refused) as caught:
        testing.connect(echo, subprotocols=["chat"])
    error = caught.value
    assert isinstance(error, HandshakeError)
    assert (error.status_code, error.status) == (400, 400)
    assert error.response.text == "WebSocket protocols not supported.\n"
    assert str(error) == "400 BAD REQUEST: WebSocket protocols not supported."


def test_a_page_is_a_refusal():
    app = make_flask()
    with pytest.raises(testing.Refused) as caught:
        testing.connect(app, "/page", client=app.test_client())
    assert (caught.value.status_code, caught.value.response.text) == (200, "a page")
    assert isinstance(caught.value.response, app.response_class)


def test_a_long_body_in_pieces_is_read_to_its_end():
    def app(environ, start_response):
        start_response("503 Service Unavailable", [])
        for _ in range(100):
            yield b"x" * 10_000

    with pytest.raises(testing.Refused) as caught:
        testing.connect(app)
    assert len(caught.value.response.data) == 1_000_000


# -- errors


def handler_that_raises(error):
    class Raises(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            socket.receive()
            raise error

    return WebSocketHandler(lambda request, protocols: Raises())


def test_what_escapes_the_handler_is_raised_where_the_with_ends():
    with pytest.raises(LookupError, match="escaped") as caught:
        with testing.connect(handler_that_raises(LookupError("escaped"))) as socket:
            socket.send("go")
            with pytest.raises(ConnectionClosed) as closed:
                socket.receive()
    assert closed.value.code == 1011
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.name, last.line) == ("handle_session", "raise error")


def test_it_is_raised_by_close_where_there_is_no_with():
    socket = testing.connect(handler_that_raises(LookupError("escaped")))
    socket.send("go")
    with pytest.raises(LookupError, match="escaped"):
        socket.close()
    socket.close()


def test_a_failed_assertion_of_a_handler_fails_the_test():
    routes = Routes()

    @routes.websocket("/")
    def fails(request, socket):
        assert socket.receive() == "something else"

    with pytest.raises(AssertionError), testing.connect(routes, "/") as socket:
        socket.send("this")


def test_an_error_of_the_test_that_comes_of_the_handlers_gives_way_to_it():
    with pytest.raises(LookupError, match="escaped") as caught:
        with testing.connect(handler_that_raises(LookupError("escaped"))) as socket:
            socket.send("go")
            socket.receive()
    assert isinstance(caught.value.__context__, ConnectionClosed)


def test_an_error_of_the_test_before_the_handlers_stays():
    with pytest.raises(AssertionError, match="of the test") as caught:
        with testing.connect(handler_that_raises(LookupError("escaped"))) as socket:
            socket.send("go")
            raise AssertionError("of the test")
    notes = getattr(caught.value, "__notes__", [str(caught.value)])  # Python 3.11
    assert "escaped" in notes[0]


@pytest.mark.parametrize("raised", [SystemExit(3), pytest.fail.Exception("from a handler")])
def test_what_is_no_exception_comes_through(raised):
    with pytest.raises(type(raised)):
        with testing.connect(handler_that_raises(raised)) as socket:
            socket.send("go")


def test_what_escapes_a_producer_is_raised_by_connect():
    def produce(request, protocols):
        raise LookupError("in the producer")

    with pytest.raises(LookupError, match="in the producer"):
        testing.connect(WebSocketHandler(produce))


def test_what_escapes_an_application_is_raised_by_connect():
    def app(environ, start_response):
        raise LookupError("in the application")

    with pytest.raises(LookupError, match="in the application"):
        testing.connect(app)


def test_the_host_and_the_scheme_that_flask_is_configured_with():
    app = make_flask()
    app.config.update(SERVER_NAME="example.com", PREFERRED_URL_SCHEME="https")

    @app.get("/where")
    def where():
        abort(403, flask.request.url)

    with pytest.raises(testing.Refused, match="https://example.com/where"):
        testing.connect(app, "/where")


@pytest.mark.parametrize("is_testing", [True, False])
def test_what_a_view_of_flasks_raises(is_testing, caplog):
    app = make_flask()
    app.testing = is_testing
    if is_testing:
        with pytest.raises(LookupError, match="in the view"):
            testing.connect(app, "/fails")
    else:
        with pytest.raises(testing.Refused) as caught:
            testing.connect(app, "/fails")
        assert caught.value.status_code == 500
        assert repr(caught.value.__cause__) == "LookupError('in the view')"
    with pytest.raises(LookupError, match="after the upgrade"):
        with testing.connect(app, "/raw") as socket:
            assert socket.receive() == "raw"


def test_connection_closed_is_a_normal_end():
    routes = Routes()

    @routes.websocket("/")
    def sends(request, socket):
        while True:
            socket.send("more")
            gevent.sleep(0)

    with testing.connect(routes, "/") as socket:
        assert socket.receive() == "more"


def test_an_application_that_does_not_answer_fails_the_test():
    def app(environ, start_response):
        gevent.sleep(60)

    with pytest.raises(
        TimeoutError, match="no answer to the handshake of / within 0.05 s"
    ) as error:
        testing.connect(app, timeout=0.05)
    assert "test_opening.py" in str(error.value) and "in app: gevent.sleep(60)" in str(error.value)


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((42,), {}, TypeError, "takes a WSGI application, not 42"),
        ((echo, "chat"), {}, ValueError, "path begins with '/'"),
        ((echo,), {"subprotocols": "chat"}, TypeError, r"such as \['chat'\]"),
        ((echo,), {"timeout": 0}, ValueError, "timeout must be"),
        ((echo,), {"config": {}}, TypeError, "must be a greenws.Config"),
        ((echo,), {"headers": "x"}, TypeError, "headers must be a mapping or pairs"),
        ((echo,), {"client": 42}, TypeError, "test client of Flask's, werkzeug's or Django's"),
    ],
)
def test_wrong_arguments_are_reported(arguments, options, error, says):
    with pytest.raises(error, match=says):
        testing.connect(*arguments, **options)


@pytest.mark.parametrize("wrong", ["chat", b"chat", 5, True, [5]])
def test_subprotocols_are_a_list_of_names(wrong):
    with pytest.raises(TypeError, match="subprotocols is a list of names, such as"):
        testing.connect(Routes(), "/", subprotocols=wrong)
