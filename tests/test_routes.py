"""``Routes`` and ``StaticFiles``, by their WSGI interface and, for upgrades, over a server."""

from __future__ import annotations

import functools
import itertools
import re
import threading
import traceback
import weakref
from collections import UserList
from contextvars import ContextVar
from pathlib import Path

import gevent
import pytest
from flask import Flask
from werkzeug import Request, Response
from werkzeug.exceptions import NotFound
from werkzeug.local import LocalProxy
from werkzeug.test import Client, EnvironBuilder

from greenws import (
    ConnectionClosed,
    Routes,
    StaticFiles,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
    checks,
    testing,
)
from greenws.checks import check_registrations

from .support.limits import limit
from .support.wire import CLOSE, TEXT, Peer, close_frame, frame


def named(name):
    @Request.application
    def app(request):
        variables = request.environ["wsgiorg.routing_args"][1]
        path = f"{request.environ['SCRIPT_NAME']}|{request.path}"
        return Response(f"{name} {variables} {path}")

    return app


@pytest.fixture
def client():
    routes = Routes()
    routes.add(method="GET", uri="/", handler=named("front"))
    routes.add(method="GET", uri="/user/<name>", handler=named("user"))
    routes.add(method=["POST", "PUT"], uri="/user/<name>", handler=named("change"))
    routes.add(method=None, uri="/any", handler=named("any"))
    routes.add(uri="/folder/", handler=named("folder"))
    routes.add(uri="*", handler=named("rest"))
    routes.add(uri="/files/*", handler=named("files"))
    return Client(routes)


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/", "front {} |/"),
        ("GET", "/user/ada", "user {'name': 'ada'} |/user/ada"),
        ("PUT", "/user/ada", "change {'name': 'ada'} |/user/ada"),
        ("DELETE", "/any", "any {} |/any"),
        ("GET", "/elsewhere/deep", "rest {} |/elsewhere/deep"),
        ("GET", "/files/a/b.txt", "files {} /files|/a/b.txt"),
        ("GET", "/files/", "files {} /files|/"),
    ],
)
def test_a_request_reaches_its_handler(client, method, path, text):
    response = client.open(path, method=method)
    assert (response.status_code, response.text) == (200, text)


def test_head_is_included_in_get(client):
    assert client.head("/").status_code == 200
    assert client.head("/elsewhere").status_code == 200


def test_another_method_is_405(client):
    response = client.post("/elsewhere")
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD"}


def test_without_a_wildcard_the_rest_is_404_and_405():
    routes = Routes()
    routes.add(uri="/a", handler=named("a"))
    client = Client(routes)
    assert client.get("/b").status_code == 404
    assert client.post("/a").status_code == 405


def test_a_missing_slash_is_redirected(client):
    response = client.get("/folder")
    assert (response.status_code, response.headers["Location"]) == (308, "http://localhost/folder/")


@pytest.mark.parametrize("uri", ["echo", "", "http://x/"])
def test_a_uri_begins_with_a_slash(uri):
    with pytest.raises(ValueError, match="begin with"):
        Routes().add(uri=uri, handler=named("x"))


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("*", ValueError),
        ("", ValueError),
        ("G T", ValueError),
        ([], ValueError),
        (["*"], ValueError),
    ]
    + [(3, TypeError), ([3], TypeError), (b"GET", TypeError), (True, TypeError)],
)
def test_a_method_that_no_request_has_is_reported(method, error):
    with pytest.raises(error, match="method"):
        Routes().add(uri="/", method=method, handler=named("x"))


def test_methods_may_be_any_iterable():
    routes = Routes()
    routes.add(uri="/", method=UserList(["GET", "PUT"]), handler=named("x"))
    assert Client(routes).put("/").text.startswith("x ")


def test_a_route_without_protocols_takes_none():
    Routes().websocket("/", protocols=None)(lambda request, socket: None)
    with pytest.raises(TypeError, match="list of names.*not 3"):
        Routes().websocket("/", protocols=3)  # type: ignore[arg-type]


def test_a_handler_is_callable():
    with pytest.raises(TypeError, match="WSGI application"):
        Routes().add(uri="/", handler="views.index")


# -- upgrades


def test_the_short_form(serve):
    routes = Routes()

    @routes.websocket("/chat/<room>/<int:number>", protocols=["chat", "chat2"])
    def chat(request, socket, room, number):
        for message in socket:
            socket.send(f"{room} {number + 1} {socket.subprotocol} {message}")

    assert chat.__name__ == "chat"
    server = serve(routes)
    with Peer.open(
        server.address, "/chat/lobby/7", Sec_WebSocket_Protocol="other, chat2, chat"
    ) as peer:
        peer.send(frame(TEXT, b"hi"))
        assert peer.read_frame() == (True, TEXT, b"lobby 8 chat2 hi")
        peer.send(close_frame())
        peer.read_close()
    with Peer.connect(server.address) as peer:
        assert peer.shake("/chat/lobby/seven").status == 404
    for offered in (None, "other"):
        with Peer.connect(server.address) as peer:
            response = peer.shake("/chat/lobby/7", Sec_WebSocket_Protocol=offered)
            assert response.status == 400


def test_sessions_of_one_route_that_are_open_at_once_keep_apart():
    """A route without variables has one handler for all its sessions."""
    routes = Routes()

    @routes.websocket("/all")
    def echo(request, socket):
        for message in socket:
            socket.send(f"{request.args['name']} {message}")

    @routes.websocket("/one/<name>")
    def greet(request, socket, name):
        for message in socket:
            socket.send(f"{name} {message}")

    for path in ("/all?name={}", "/one/{}"):
        with (
            testing.connect(routes, path.format("a")) as first,
            testing.connect(routes, path.format("b")) as second,
        ):
            for name, end in (("a", first), ("b", second), ("a", first)):
                end.send("hi")
                assert end.receive() == f"{name} hi"
    shared = routes.match_literal("GET", "/all").handler_producer
    requests = [Request(EnvironBuilder("/all").get_environ()) for _ in range(2)]
    assert shared(requests[0], []) is shared(requests[1], [])


def test_the_short_form_checks_its_options():
    with pytest.raises(TypeError, match="list"):
        Routes().websocket("/", protocols="chat")
    with pytest.raises(TypeError, match="unknown option"):
        Routes().websocket("/", max_size=1)(lambda request, socket: None)
    with pytest.raises(TypeError, match="did you mean 'protocols'"):
        Routes().websocket("/", subprotocols=["chat"])
    with pytest.raises(TypeError, match="must be str, not None"):
        Routes().websocket("/", protocols=[None])
    with pytest.raises(ValueError, match="'chat 2' is not a token"):
        Routes().websocket("/", protocols=["chat 2"])


@pytest.mark.parametrize(
    ("uri", "error", "match"),
    [
        (b"/chat", TypeError, "must be a str"),
        (None, TypeError, "must be a str"),
        ("chat", ValueError, "must begin with '/'"),
        ("ws://localhost/chat", ValueError, "must begin with '/'"),
        ("/chat?room=1", ValueError, "has a query"),
        ("/chat#room", ValueError, "has a fragment"),
        ("/chat/{room}", ValueError, "is written <room>"),
        ("/chat/{room:path}", ValueError, "is written <room>"),
        ("/chat/<itn:number>", ValueError, "'itn' does not exist; the converters are any, "),
        ("/chat/<room>/<room>", ValueError, "malformed: .*'room'"),
        ("/chat/<room", ValueError, "malformed"),
    ],
)
def test_a_uri_that_no_request_has_is_reported(uri, error, match):
    with pytest.raises(error, match=match):
        Routes().websocket(uri)
    with pytest.raises(error, match=match):
        Routes().add(uri=uri, handler=named("x"))


@pytest.mark.parametrize(
    ("uri", "is_told"),
    [
        ("/*/chat", True),
        ("/static/*.js", True),
        ("/<room>/*/x", True),
        ("/wiki/C*", False),
        ("/a/**", False),
        ("/2*3/x", False),
        ("/<name>*", False),
    ],
)
def test_a_star_inside_of_a_uri_is_an_ordinary_character(caplog, uri, is_told):
    routes = Routes()
    routes.add(uri=uri, handler=named("star"))
    path = re.sub("<.*>", "x", uri)
    assert Client(routes).get(path).text.startswith("star")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == is_told
    assert all("matches only a path with this '*' in it" in line for line in told)


@pytest.mark.parametrize(
    ("uri", "is_told"),
    [("/chat/:room", True), ("/:room/chat", True), ("/a:b", False), ("/at/:8080", False)],
)
def test_a_colon_of_a_uri_is_an_ordinary_character(caplog, uri, is_told):
    routes = Routes()
    routes.add(uri=uri, handler=named("colon"))
    assert Client(routes).get(uri).text.startswith("colon")
    told = [record.getMessage() for record in caplog.records]
    text = f"the route {uri!r} matches only a path with ':room' in it; a variable is written <room>"
    assert told == [text] * is_told


def test_the_arguments_of_a_converter_may_have_any_characters():
    routes = Routes()

    @routes.websocket("/<any('a>b', 'c?', '{d}'):name>")
    def session(request, socket, name):
        pass


def test_names_that_routes_have_elsewhere_lead_to_ours():
    for name in ("route", "get", "run", "post", "add_url_rule", "add_route", "mount"):
        with pytest.raises(AttributeError, match="; use "):
            getattr(Routes(), name)


def test_what_hides_that_it_is_async_is_reported_when_it_has_run(serve, error_log):
    def hidden(function):
        return lambda *args: function(*args)

    routes = Routes()
    routes.websocket("/async")(hidden(converse))
    routes.websocket("/generator")(hidden(produce_values))
    server = serve(routes)
    for path in ("/async", "/generator"):
        with Peer.open(server.address, path) as peer:
            assert peer.read_close(answer=True)[0] == 1011
        (record,) = error_log.take()
        assert "which runs nothing" in str(record.exc_info[1])


async def converse(request, socket):
    pass


def produce_values(request, socket):
    yield 1


class Handler(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        pass


@pytest.mark.parametrize(
    ("uri", "function", "match"),
    [
        ("/", converse, r"converse\(request, socket\) is 'async def'"),
        ("/", functools.partial(converse), "'async def'"),
        ("/", produce_values, "has a 'yield'"),
        ("/", lambda socket: None, r"called with \(request, socket\), but .*lambda\(socket\)"),
        ("/<room>", lambda request, socket: None, r"\(request, socket, room\).*argument 'room'"),
        ("/", lambda request, socket, room: None, "missing a required argument: 'room'"),
        ("/<room>", lambda request, socket, name: None, "'name'"),
        ("/", Handler, r"is for a function .*WebSocketHandler\(lambda"),
        ("/", Handler(), r"is a function \(request, socket\), not <"),
        ("/", None, "not None"),
        ("/", lambda ws, request: None, r"in this order, which .*lambda\(ws, request\) does not"),
        ("/", lambda ws, data: None, "in this order"),
        ("/", lambda data, req: None, "in this order"),
        ("/<request>", lambda socket, request: None, "does not fit|in this order"),
    ],
)
def test_a_wrong_session_function_is_reported_at_its_definition(uri, function, match):
    with pytest.raises(TypeError, match=match):
        Routes().websocket(uri)(function)


def test_a_session_function_may_be_any_callable_that_fits():
    def wrapped(function):
        @functools.wraps(function)
        def wrapper(request, socket, room):
            function(request, socket, room, "user")

        return wrapper

    routes = Routes()
    routes.websocket("/1/<room>")(lambda request, socket, **variables: None)
    routes.websocket("/2/<int:a>/<b>")(lambda request, socket, b, a: None)
    routes.websocket("/3/<room>")(wrapped(lambda request, socket, room, user: None))
    routes.websocket("/4")(lambda *args, name="x": None)
    routes.websocket("/5")(functools.partial(lambda name, request, socket: None, "x"))


def login_required(function):
    @functools.wraps(function)
    def checked(*args, **variables):
        return function(*args, **variables)

    return checked


def plain(function):
    return lambda *args, **variables: function(*args, **variables)


def twice(function):
    return login_required(login_required(function))


CHAT = """
@decorator
@routes.websocket("/chat")
def chat(request, socket):
    socket.send("reached")
"""


@pytest.fixture
def define(tmp_path):
    """``define(source, **names)`` runs the source of a module with these names, and returns its
    namespace."""
    count = itertools.count()

    def run(source, **names):
        path = tmp_path / f"sessions{next(count)}.py"
        path.write_text(source)
        namespace = {"login_required": login_required, **names}
        exec(compile(source, str(path), "exec"), namespace)
        return namespace

    return run


def shake(address, path):
    """The status of the response to a handshake that should fail."""
    with Peer.connect(address) as peer:
        return peer.shake(path).status


@pytest.mark.parametrize(
    "decorator", [login_required, plain, twice, functools.partial(functools.partial)]
)
def test_a_decorator_above_which_no_session_would_meet_is_reported(serve, define, decorator):
    routes = Routes()
    define(CHAT, routes=routes, decorator=decorator)
    text = (
        r"@decorator is above @routes\.websocket\('/chat'\) \(.*sessions0\.py, line 2\), "
        "so the session chat runs without it: put"
    )
    server = WebSocketServer(("127.0.0.1", 0), routes, log=None)
    for _ in range(2):
        with pytest.raises(TypeError, match=text):
            server.start()
        assert not server.started and not hasattr(server, "socket")
    for _ in range(2):
        with pytest.raises(TypeError, match=text):
            testing.connect(routes, "/chat")


def test_a_decorator_between_which_is_of_another_module_makes_no_difference(define):
    routes = Routes()
    define(CHAT.replace("\ndef", "\n@login_required\ndef"), routes=routes, decorator=plain)
    with pytest.raises(TypeError, match="@decorator is above"):
        check_registrations(routes)


def test_a_decorator_above_is_reported_where_a_server_runs_already(serve, define, error_log):
    routes = Routes()
    server = serve(routes)
    define(CHAT, routes=routes, decorator=login_required)
    assert shake(server.address, "/chat") == 500
    (record,) = error_log.take()
    assert "put @routes.websocket('/chat') on top" in str(record.exc_info[1])


def test_the_error_keeps_nothing_of_the_handshakes(serve, define, error_log):
    routes = Routes()
    server = serve(routes)
    define(CHAT, routes=routes, decorator=login_required)
    lengths = set()
    errors = set()
    for _ in range(3):
        assert shake(server.address, "/chat") == 500
        (record,) = error_log.take()
        error = record.exc_info[1]
        errors.add(error)
        lengths.add(len(traceback.extract_tb(error.__traceback__)))
    assert len(lengths) == 1 and len(errors) == 3


def test_the_first_handshakes_in_several_threads_are_all_refused(define, monkeypatch):
    routes = Routes()
    define(CHAT, routes=routes, decorator=login_required)
    registration = list(checks._registrations.values())[-1]
    results = []

    def ask():
        try:
            registration.check()
            results.append("runs")
        except TypeError:
            results.append("refused")

    def slow(bound, function):
        if not results:
            monkeypatch.undo()
            ask()  # as another thread does
        return True

    monkeypatch.setattr(checks, "_wraps", slow)
    ask()
    assert results == ["refused", "refused"]


def test_a_handshake_while_the_decorators_run_is_not_the_last_word(define):
    routes = Routes()
    seen = []

    def decorator(function):
        seen.append(check_registrations(routes))
        return login_required(function)

    define(CHAT, routes=routes, decorator=decorator, chat="of the module before it was reloaded")
    assert seen == [None]
    with pytest.raises(TypeError, match="@decorator is above"):
        check_registrations(routes)


def test_a_server_starts_whose_routes_are_right(serve, define):
    wrong, outer, right = Routes(), Routes(), Routes()
    define(CHAT, routes=wrong, decorator=login_required)
    outer.add(uri="/inner/*", handler=wrong)
    serve(right)
    for application in (wrong, outer, named("may lead to it")):
        with pytest.raises(TypeError, match="is above"):
            serve(application)


def test_routes_that_nobody_has_any_more_do_not_count(define):
    check_registrations()
    routes = Routes()
    routes.add(uri="/cycle", handler=routes)
    define(CHAT, routes=routes, decorator=login_required)
    with pytest.raises(TypeError, match="is above"):
        check_registrations()
    del routes
    check_registrations()


def test_a_definition_in_a_function_keeps_nothing_of_its_callers(serve):
    class Local:
        pass

    def create():
        routes = Routes()

        @login_required
        @routes.websocket("/chat")
        def chat(request, socket):
            socket.send("not checked")

        return routes

    def call():
        local = Local()
        return create(), weakref.ref(local)

    routes, local = call()
    assert local() is None
    with testing.connect(routes, "/chat") as socket:
        assert socket.receive() == "not checked"


PLAIN_CALLS = {
    "the wrapped one has its name": """
routes.websocket("/internal")(_chat)
chat = login_required(_chat)
routes.websocket("/public")(chat)
""",
    "in one file": """


def chat(request, socket): socket.send("right")


_chat = chat
chat = login_required(_chat)
routes.websocket("/internal")(_chat)
routes.websocket("/public")(chat)
""",
    "after a definition": """
@routes.websocket("/internal")
def chat(request, socket): socket.send("right")
chat = login_required(chat)
routes.websocket("/public")(chat)
""",
    "in the place of a decorator": """
chat = login_required(routes.websocket("/internal")(_chat))
routes.websocket("/public")(chat)
""",
    "in a class": """
class Sessions:
    @staticmethod
    @routes.websocket("/internal")
    def session(request, socket): socket.send("right")
    @login_required
    @routes.websocket("/public")
    def other(request, socket): socket.send("right")
""",
}


@pytest.mark.parametrize("source", PLAIN_CALLS.values(), ids=PLAIN_CALLS)
def test_calls_without_the_syntax_of_decorators_are_right(serve, define, source):
    # Defined on a line before those of the calls, in another file.
    chat = define("def chat(request, socket): socket.send('right')")["chat"]
    routes = Routes()
    define(source, routes=routes, _chat=chat)
    address = serve(routes).address
    for path in ("/internal", "/public"):
        with Peer.open(address, path) as peer:
            assert peer.read_frame() == (True, TEXT, b"right")
            peer.read_close(answer=True)


def test_the_decorator_needs_no_caller_in_python():
    routes = Routes()

    def chat(request, socket):
        socket.send("spawned")

    gevent.spawn(routes.websocket("/chat"), chat).get()
    with testing.connect(routes, "/chat") as socket:
        assert socket.receive() == "spawned"


def test_a_decorator_above_that_gives_the_function_back_is_right(serve, define):
    routes = Routes()
    define(CHAT, routes=routes, decorator=lambda function: function)
    define(CHAT, routes=Routes(), decorator=staticmethod)
    define(CHAT, routes=Routes(), decorator=lambda function: LocalProxy(ContextVar("unbound")))
    define(CHAT.replace("chat", "registered"), routes=routes, decorator=[].append)
    define(
        """
@routes.websocket("/a")
@routes.websocket("/b")
@login_required
def session(request, socket):
    socket.send("both")

routes.websocket("/c")(login_required(session))
""",
        routes=routes,
    )
    address = serve(routes).address
    for path, text in (
        ("/chat", b"reached"),
        ("/registered", b"reached"),
        ("/a", b"both"),
        ("/b", b"both"),
        ("/c", b"both"),
    ):
        with Peer.open(address, path) as peer:
            assert peer.read_frame() == (True, TEXT, text)
            peer.read_close(answer=True)


def test_the_decorator_wants_its_parentheses():
    with pytest.raises(TypeError, match=r"@routes\.websocket\('/chat'\), in parentheses"):

        @Routes().websocket
        def chat(request, socket):
            pass


@pytest.mark.parametrize(
    ("args", "options", "match"),
    [
        (("/", Routes()), {}, r"write routes\.add\(uri='/path', handler=application\)"),
        ((), {"uri": "/", "handler": Routes(), "methods": ["GET"]}, "write method="),
        ((), {"path": "/", "handler": Routes()}, "write uri="),
        ((), {"uri": "/", "view_func": Routes()}, "write handler="),
    ],
)
def test_a_route_as_other_frameworks_write_it_is_reported(args, options, match):
    with pytest.raises(TypeError, match=match):
        Routes().add(*args, **options)


def test_a_prefix_or_none_in_the_place_of_a_folder_is_reported():
    with pytest.raises(TypeError, match=r"routes\.add\(uri='/static/\*'"):
        StaticFiles("tests", "/static")
    with pytest.raises(TypeError, match="path of a directory, not None"):
        StaticFiles(None)
    with pytest.raises(ValueError, match="'.' is this one"):
        StaticFiles("")  # of a variable that is not set
    with pytest.raises(TypeError, match="not_found must be the name of a file, not 404"):
        StaticFiles("tests", not_found=404)


def test_an_address_is_only_asked_of_a_server():
    with pytest.raises(TypeError, match=r"called with \(environ, start_response\), not 0$"):
        Routes().add(uri="/", handler=0)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (Handler(), r"WebSocketHandler\(lambda request, protocols"),
        (Handler, "not the class Handler"),
        (WebSocketHandler, "not the class WebSocketHandler: give an instance"),
        (StaticFiles, "not the class StaticFiles"),
        ("app:app", "not its name 'app:app'"),
        (converse, "'async'"),
        (lambda request, socket: None, r"is a session: write @routes\.websocket"),
        (lambda request: None, r"lambda\(request\) does not fit"),
        (None, "not None"),
    ],
)
def test_a_handler_that_is_no_application_is_reported(wrong, match):
    with pytest.raises(TypeError, match=match):
        Routes().add(uri="/", handler=wrong)


def test_an_application_may_be_any_callable_that_fits():
    class Old:  # PEP 3333 has such a one
        def __init__(self, environ, start_response):
            pass

    routes = Routes()
    for number, fitting in enumerate((Old, Response("x"), named("x"), routes, Flask("x"))):
        routes.add(uri=f"/{number}", handler=fitting)


@pytest.mark.parametrize(
    ("uri", "method", "again", "other"),
    [
        ("/a", "GET", "/a", "GET"),
        ("/a", ["GET", "POST"], "/a", "post"),
        ("/a", None, "/a", None),
        ("/<room>", "GET", "/<name>", "GET"),
        ("/<string(length=2):room>", "GET", "/<string(length=2):name>", "GET"),
        ("*", "GET", "/*", "GET"),
        ("/files/*", "GET", "/files/*", "GET"),
    ],
)
def test_the_same_route_twice_is_reported(uri, method, again, other):
    routes = Routes()
    routes.add(uri=uri, method=method, handler=named("a"))
    with pytest.raises(TypeError, match="already.*would never be used"):
        routes.add(uri=again, method=other, handler=named("b"))


def test_a_route_for_websockets_beside_another_for_get_is_reported():
    routes = Routes()
    routes.websocket("/")(lambda request, socket: None)
    with pytest.raises(TypeError, match="GET '/' already"):
        routes.add(uri="/", handler=named("page"))


@pytest.mark.parametrize(
    ("uri", "method", "again", "other"),
    [
        ("/a", "GET", "/a", "POST"),
        ("/a", None, "/a", "GET"),
        ("/<room>", "GET", "/<int:room>", "GET"),
        ("/a", "GET", "/a/", "GET"),
        ("*", "GET", "/files/*", "GET"),
        ("/a", "GET", "/a", "HEAD"),
    ],
)
def test_routes_that_differ_are_taken(uri, method, again, other):
    routes = Routes()
    routes.add(uri=uri, method=method, handler=named("a"))
    routes.add(uri=again, method=other, handler=named("b"))


@pytest.mark.parametrize("path", ["/folder", "/folder/", "//folder/", "/plain", "//plain"])
def test_an_upgrade_is_not_redirected(serve, path):
    routes = Routes()
    for uri in ("/folder/", "/plain"):
        routes.websocket(uri)(lambda request, socket: socket.send("here"))
    with Peer.open(serve(routes).address, path) as peer:
        assert peer.read_frame() == (True, TEXT, b"here")
        assert peer.read_frame()[1] == CLOSE
        peer.send(close_frame())


def test_a_plain_get_on_a_websocket_route_is_426():
    routes = Routes()
    routes.add(uri="/ws", handler=WebSocketHandler(lambda request, protocols: None))
    response = Client(routes).get("/ws")
    assert response.status_code == 426
    assert response.headers["Sec-WebSocket-Version"] == "13"
    assert "WebSocket endpoint" in response.text


# -- files


@pytest.fixture
def files(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "index.html").write_text("<p>front")
    (root / "sub" / "index.html").write_text("<p>sub")
    (root / "app.js").write_text("js()")
    (tmp_path / "secret.txt").write_text("secret")
    return Client(StaticFiles(root))


def test_files_are_served_with_their_type(files):
    assert files.get("/").text == "<p>front"
    assert files.get("/").mimetype == "text/html"
    assert files.get("/app.js").mimetype in ("text/javascript", "application/javascript")
    assert files.get("/sub/").text == "<p>sub"


def test_conditional_and_range_requests(files):
    first = files.get("/app.js")
    again = files.get("/app.js", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    part = files.get("/app.js", headers={"Range": "bytes=0-1"})
    assert (part.status_code, part.data) == (206, b"js")


@pytest.mark.parametrize(
    "path",
    ["/missing", "/../secret.txt", "/%2e%2e/secret.txt", "/sub/../../secret.txt", "/%2fetc/hosts"],
)
def test_nothing_else_is_reached(files, path):
    assert files.get(path).status_code == 404


def test_hidden_files_are_not_served_but_for_well_known_ones(files):
    root = Path(files.application.root)
    for name in (".env", ".git/config", "sub/.hidden", ".well-known/acme", ".well-known/.x"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("text")
    assert files.get("/.well-known/acme").text == "text"
    for path in ("/.env", "/.git/config", "/sub/.hidden", "/.well-known/.x", "/%2eenv"):
        assert files.get(path).status_code == 404


def test_no_link_leads_out_of_the_root(files, tmp_path):
    root = Path(files.application.root)
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    (root / "in.js").symlink_to(root / "app.js")
    assert files.get("/out.txt").status_code == files.get("/up/secret.txt").status_code == 404
    assert files.get("/in.js").text == "js()"


def test_a_page_for_what_is_not_there(tmp_path):
    (tmp_path / "404.html").write_text("<p>not here")
    client = Client(StaticFiles(tmp_path, not_found="404.html"))
    missing = client.get("/nowhere", headers={"Accept": "text/html"})
    assert (missing.status_code, missing.text) == (404, "<p>not here")
    assert missing.content_type == "text/html; charset=utf-8"
    assert "not here" not in client.get("/app.js", headers={"Accept": "application/json"}).text
    assert client.head("/.env", headers={"Accept": "text/html"}).status_code == 404
    with pytest.raises(ValueError, match=r"has no file 'x\.html'"):
        StaticFiles(tmp_path, not_found="x.html")
    client = Client(StaticFiles(tmp_path, not_found=Path("404.html")))
    assert "not here" in client.get("/nowhere", headers={"Accept": "text/html"}).text


def test_browsers_keep_to_the_type_of_a_file(files):
    assert files.get("/app.js").headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("uri", "root", "text"),
    [
        ("/static", "static", "'/static' leads to '{}/static', which is not a file"),
        ("/static", ".", "uri='/static/*' serves all files of '{}'"),
        ("/static/", "static", "uri='/static/*'"),
        ("/", "static", "uri='/*'"),
        ("/static/<path:name>", "static", "'{}/static/', which is not a folder"),
        ("/<room>/static", ".", None),
        ("/static/<path:name>", ".", None),
        ("/", ".", None),
        ("/LICENSE", ".", None),
        ("/static/app.js", ".", None),
        ("/built-later.js", ".", None),
    ],
)
def test_a_route_for_one_file_that_is_not_there_is_reported(tmp_path, caplog, uri, root, text):
    (tmp_path / "static").mkdir()
    for name in ("index.html", "LICENSE", "static/app.js"):
        (tmp_path / name).touch()
    Routes().add(uri=uri, handler=StaticFiles(tmp_path / root))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (text is not None)
    assert all(text.format(tmp_path / root) in line for line in told)


@pytest.mark.parametrize(
    ("uri", "kind", "requested", "advice"),
    [
        ("/", "files", "/app.js", "uri='/*'"),
        ("/static", "files", "/static/app.js", "uri='/static/*'"),
        ("/api", "routes", "/api/users", "uri='/api/*'"),
        ("/", "flask", "/login", "uri='/*'"),
        ("/", "files", "/favicon.ico", None),
        ("/api", "routes", "/apical", None),
        ("/api", "application", "/api/users", None),
    ],
)
def test_what_a_route_for_one_path_does_not_reach_is_reported_once(
    tmp_path, caplog, uri, kind, requested, advice
):
    (tmp_path / "app.js").touch()
    handler = {
        "files": StaticFiles(tmp_path),
        "routes": Routes(),
        "flask": Flask("x"),
        "application": named("x"),
    }[kind]
    routes = Routes()
    routes.add(uri=uri, handler=handler)
    caplog.clear()
    for _ in range(2):
        assert Client(routes).get(requested).status_code == 404
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (advice is not None)
    assert all(advice in line and f"no route for '{requested}'" in line for line in told)


def test_a_page_of_an_application_in_the_browser_is_right(tmp_path, caplog):
    (tmp_path / "index.html").touch()
    Routes().add(uri="/login", handler=StaticFiles(tmp_path, not_found="index.html"))
    assert caplog.records == []


def test_what_two_threads_ask_for_is_reported_once(tmp_path, caplog, monkeypatch):
    (tmp_path / "app.js").touch()
    routes = Routes()
    routes.add(uri="/static", handler=StaticFiles(tmp_path))
    caplog.clear()
    has = StaticFiles.has
    barrier = threading.Barrier(2)

    def wait(*args):
        barrier.wait(limit())
        return has(*args)

    monkeypatch.setattr(StaticFiles, "has", wait)
    statuses = []

    def ask():
        statuses.append(Client(routes).get("/static/app.js").status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [404, 404]
    assert len(caplog.records) == 1


def test_files_cannot_be_changed(files):
    assert files.post("/app.js").status_code == 405


def test_the_root_is_a_directory(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        StaticFiles(tmp_path / "missing")


# -- literal routes, which do not ask the map


def answer(text):
    def application(environ, start_response):
        start_response("200 OK", [])
        return [text.encode()]

    return application


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/a", "literal"),
        ("HEAD", "/a", "literal"),
        ("POST", "/a", "posted"),
        ("GET", "/b", "variable b"),
        ("GET", "/any", "any"),
        ("DELETE", "/any", "any"),
    ],
)
@pytest.mark.parametrize("through_the_map", [False, True])
def test_a_literal_route_is_the_one_that_the_map_would_find(method, path, text, through_the_map):
    routes = Routes()
    routes.add(uri="/<name>", handler=lambda e, s: answer(f"variable {e['PATH_INFO'][1:]}")(e, s))
    routes.add(uri="/a", handler=answer("literal"))
    routes.add(uri="/a", handler=answer("posted"), method="POST")
    routes.add(uri="/any", handler=answer("any"), method=None)
    routes.add(uri="/any", handler=answer("got"), method="GET")
    if through_the_map:
        routes._literal.clear()
    environ = EnvironBuilder(path=path, method=method).get_environ()
    assert b"".join(routes(environ, lambda status, headers: None)) == text.encode()


def test_a_refusal_in_a_session_is_logged_as_too_late(caplog):
    routes = Routes()

    @routes.websocket("/late")
    def late(request, socket):
        raise NotFound

    with pytest.raises(NotFound), testing.connect(routes, "/late") as socket:
        with pytest.raises(ConnectionClosed, match="1011"):
            socket.receive()
    (record,) = caplog.records
    assert "404 Not Found" in record.getMessage() and "too late" in record.getMessage()
    assert "handler producer" in record.getMessage()
