"""Bottle, Pyramid, Falcon, CherryPy and FastAPI: how a session gets into each of them."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug import Response

from greenws import WebSocketHandler, WebSocketSessionHandler

from ..support.limits import wait_until
from ..support.wire import TEXT, Peer, close_frame, frame


class Echo(WebSocketSessionHandler):
    def handle_session(self, request: Any, socket: Any) -> None:
        for message in socket:
            if message == "fail":
                raise LookupError("of the session")
            socket.send(f"{request.path} {message}")


handler = WebSocketHandler(lambda request, protocols: Echo())


def bottle_mounted() -> Any:
    import bottle

    app = bottle.Bottle()
    app.mount("/ws/", handler)
    app.route("/page")(lambda: "page")
    return app


def bottle_called() -> Any:
    import bottle

    app = bottle.Bottle()
    app.route("/page")(lambda: "page")

    @app.get("/ws/<name>")
    def view(name: str) -> Any:
        answer = Response.from_app(handler, bottle.request.environ)
        return bottle.HTTPResponse(answer.get_data(), answer.status_code, dict(answer.headers))

    return app


def pyramid() -> Any:
    from pyramid.config import Configurator
    from pyramid.response import Response as Page
    from pyramid.wsgi import wsgiapp

    with Configurator() as config:
        config.add_route("ws", "/ws/{name}")
        config.add_route("page", "/page")
        config.add_view(wsgiapp(handler), route_name="ws")
        config.add_view(lambda request: Page("page"), route_name="page")
        return config.make_wsgi_app()


def pyramid_in_a_view() -> Any:
    from pyramid.config import Configurator
    from pyramid.response import Response as Page

    with Configurator() as config:
        config.add_route("ws", "/ws/{name}")
        config.add_route("page", "/page")
        config.add_view(lambda request: request.get_response(handler), route_name="ws")
        config.add_view(lambda request: Page("page"), route_name="page")
        return config.make_wsgi_app()


def falcon() -> Any:
    import falcon

    class Page:
        def on_get(self, req: Any, resp: Any) -> None:
            resp.text = "page"

    def ws(req: Any, resp: Any, rest: str) -> None:
        answer = Response.from_app(handler, req.env)
        resp.status, resp.data = answer.status, answer.get_data()
        resp.set_headers(list(answer.headers))

    app = falcon.App()
    app.add_route("/page", Page())
    app.add_sink(ws, "/ws/(?P<rest>.*)")
    return app


def cherrypy() -> Any:
    import cherrypy

    cherrypy.config.update({"environment": "embedded", "log.screen": False})

    class Root:
        @cherrypy.expose
        def page(self) -> str:
            return "page"

    tree = cherrypy._cptree.Tree()
    tree.mount(Root(), "")
    tree.graft(handler, "/ws")
    return tree


def fastapi() -> Any:
    from a2wsgi import ASGIMiddleware
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse

    from greenws import Routes

    api = FastAPI()
    api.get("/page", response_class=PlainTextResponse)(lambda: "page")
    routes = Routes()
    routes.add(uri="/ws/*", handler=handler)
    routes.add(uri="*", method=None, handler=ASGIMiddleware(api))
    return routes


WAYS = {
    make.__name__: make
    for make in (bottle_mounted, bottle_called, pyramid, pyramid_in_a_view, falcon, cherrypy)
}
WAYS["fastapi"] = fastapi


@pytest.fixture(scope="module", params=WAYS)
def application(request: pytest.FixtureRequest) -> Any:
    return WAYS[request.param]()


def test_a_session_a_page_and_refusals(serve, application):
    address = serve(application).address
    with Peer.open(address, "/ws/ada") as peer:
        peer.send(frame(TEXT, b"hello"))
        opcode, text = peer.read_frame()[1:]
        assert (opcode, text.split()[1]) == (TEXT, b"hello")
        peer.send(close_frame(1000, b"bye"))
        assert peer.read_close() == (1000, b"bye")
    with Peer.connect(address) as peer:
        response = peer.shake("/ws/ada", Origin="https://elsewhere.example")
        assert response.status == 403
        assert b"allowed_origins" in response.body
    with Peer.connect(address) as peer:
        assert peer.shake("/ws/ada", Upgrade=None, Connection=None).status == 426
    with Peer.connect(address) as peer:
        peer.send(b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b""
        while peer._fill():
            data = peer.buffer
        assert data.startswith(b"HTTP/1.1 200 ") and b"page" in data


def test_nothing_of_an_error_page_follows_a_failed_session(serve, application, error_log, capfd):
    with Peer.open(serve(application).address, "/ws/ada") as peer:
        peer.send(frame(TEXT, b"fail"))
        assert peer.read_frame() == (True, 8, b"\x03\xf3")
        peer.send(close_frame(1011))
        assert peer.at_end()
    wait_until(lambda: error_log.records or "LookupError" in capfd.readouterr().err)
    error_log.take()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: WebSocketHandler(lambda request, protocols: Echo()), "made a WebSocketHandler"),
        (lambda: handler, "answers a WebSocket handshake with an empty 200 OK: Falcon ignores"),
    ],
    ids=["made there", "of the module"],
)
def test_a_handler_that_falcon_drops_is_an_error(serve, hub_errors, make, told):
    """It ignores what a responder returns, and would answer 200 without a word."""
    import falcon

    class Resource:
        def on_get(self, req: Any, resp: Any) -> Any:
            return make()

    app = falcon.App()
    app.add_route("/ws", Resource())
    server = serve(app)
    with Peer.connect(server.address) as peer:
        assert peer.shake("/ws").status == 500
    assert f"'/ws' {told}" in hub_errors.take()
    with Peer.connect(server.address) as peer:  # an ordinary request may have an empty answer
        assert peer.shake("/ws", Upgrade=None, Connection=None).status == 200


def test_a_handler_that_cherrypy_and_bottle_cannot_send_says_what_it_is(serve, error_log):
    import bottle
    import cherrypy

    cherrypy.config.update({"environment": "embedded", "log.screen": False})

    class Root:
        @cherrypy.expose
        def ws(self) -> Any:
            return handler

    tree = cherrypy._cptree.Tree()
    tree.mount(Root(), "")
    app = bottle.Bottle()
    app.get("/ws")(lambda: handler)
    for application in (tree, app):
        with Peer.connect(serve(application).address) as peer:
            assert peer.shake("/ws").status == 500
        texts = [record.getMessage() for record in error_log.take()]
        assert any("a WebSocketHandler cannot be iterated over; it is a" in text for text in texts)


@pytest.fixture(scope="module")
def api() -> Any:
    """Endpoints that return a handler; an application for all tests, as it keeps a loop."""
    from a2wsgi import ASGIMiddleware
    from fastapi import FastAPI

    async def in_the_loop():  # an annotation would have FastAPI use another encoder
        return handler

    made = FastAPI()
    made.get("/in-a-thread")(lambda: handler)
    made.get("/in-the-loop")(in_the_loop)
    return ASGIMiddleware(made)


@pytest.mark.parametrize("path", ["/in-a-thread", "/in-the-loop"])
def test_a_handler_that_a_fastapi_endpoint_returns_is_an_error(serve, error_log, api, path):
    """Its attributes are no answer. a2wsgi keeps FastAPI's traceback to itself."""
    with Peer.connect(serve(api).address) as peer:
        assert peer.shake(path).status == 500
    texts = [record.getMessage() for record in error_log.take()]
    assert any("a WebSocketHandler cannot be iterated over; it is a" in text for text in texts)
