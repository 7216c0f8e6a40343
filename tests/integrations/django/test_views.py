"""websocket(): a Django view that is a WebSocket."""

from __future__ import annotations

import functools
import re

import pytest

import greenws
from greenws import testing
from greenws.integrations.django import websocket


@pytest.fixture
def client(project):
    from django.test import Client

    return Client()


@pytest.fixture
def open_session(project):
    return functools.partial(testing.connect, project)


def log_in(client):
    assert client.get("/login/").status_code == 200
    return client


# -- a session


def test_a_session_echoes(open_session):
    with open_session("/echo/") as socket:
        socket.send("hello")
        assert socket.receive() == "hello"
        socket.send(b"\x00\xff")
        assert socket.receive() == b"\x00\xff"


def test_url_variables_arrive_with_django_s_request(open_session):
    with open_session("/rooms/lobby/17/") as socket:
        assert socket.receive() == "'lobby' 17 WSGIRequest AnonymousUser"
    with open_session("/old/things/") as socket:
        assert socket.receive() == "things"


def test_login_required_answers_real_http(open_session, client):
    with pytest.raises(testing.Refused) as caught:
        open_session("/private/")
    assert caught.value.status_code == 302
    assert caught.value.response.headers["Location"] == "/login/?next=/private/"
    assert str(caught.value) == "302 Found, to /login/?next=/private/"
    with open_session("/private/", client=log_in(client)) as socket:
        assert socket.receive() == "hello, ada"


def test_a_middleware_answers_real_http(open_session):
    with pytest.raises(testing.Refused, match="a middleware says no") as caught:
        open_session("/echo/?forbidden")
    assert caught.value.status_code == 403
    with pytest.raises(testing.Refused) as caught:
        open_session("/nowhere/")
    assert caught.value.status_code == 404


def test_a_method_of_a_class_based_view(open_session, client):
    with pytest.raises(testing.Refused) as caught:
        open_session("/class/lobby/")
    assert caught.value.status_code == 302
    with open_session("/class/lobby/", client=log_in(client)) as socket:
        assert socket.receive() == "ada in lobby of Chat"
    assert client.post("/class/lobby/").content == b"posted to lobby"


def test_method_decorator(open_session, client):
    log_in(client)
    with open_session("/decorated/lobby/", client=client, subprotocols=["chat"]) as socket:
        assert socket.receive() == "lobby by chat"
    with pytest.raises(testing.Refused) as caught:
        open_session("/decorated/lobby/", client=client)
    assert caught.value.status_code == 400


def test_subprotocols(open_session):
    with open_session("/protocols/", subprotocols=["other", "echo", "chat"]) as socket:
        assert socket.receive() == "echo"
    for offered in ([], ["other"]):
        with pytest.raises(testing.Refused) as caught:
            open_session("/protocols/", subprotocols=offered)
        assert caught.value.status_code == 400


def test_a_plain_request_is_answered_with_426(client):
    response = client.get("/echo/")
    assert response.status_code == 426
    assert response.headers["Sec-WebSocket-Version"] == "13"
    assert b"Upgrade: websocket" in response.content


def test_the_request_ends_with_the_session(open_session, client):
    from ...programs.django_project.project.views import requests

    before = dict(requests)
    with open_session("/echo/") as socket:
        socket.send("hello")
        socket.receive()
        assert requests["begun"] == before["begun"] + 1
        assert requests["ended"] == before["ended"]
    assert requests["ended"] == before["ended"] + 1
    assert requests["finished"] == before["finished"] + 1


# -- a producer


def test_a_producer_makes_the_handler(open_session):
    with open_session("/producer/hello/") as socket:
        assert socket.receive() == "hello AnonymousUser"
        assert socket.response.headers["X-Handler"] == "yes"


@pytest.mark.parametrize(
    ("verdict", "status"), [("denied", 403), ("absent", 404), ("teapot", 418), ("none", 400)]
)
def test_what_a_producer_refuses_is_answered_as_by_any_view(open_session, verdict, status):
    with pytest.raises(testing.Refused) as caught:
        open_session(f"/producer/{verdict}/")
    assert caught.value.status_code == status


def test_a_producer_that_fails_is_django_s_error(open_session):
    with pytest.raises(testing.Refused) as caught:
        open_session("/producer/broken/")
    assert caught.value.status_code == 500
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("verdict", "advice"),
    [("class", r"return an instance of it, Handler\(\)"), ("function", "Echo")],
)
def test_the_error_for_a_wrong_result_of_a_producer_says_what_to_return(
    open_session, verdict, advice
):
    with pytest.raises(testing.Refused) as caught:
        open_session(f"/producer/{verdict}/")
    assert re.search(advice, str(caught.value.__cause__))


# -- origins


def test_pages_of_other_origins_are_refused_unless_django_trusts_them(open_session):
    for origin in ("http://localhost", "https://trusted.example"):
        with open_session("/echo/", headers={"Origin": origin}) as socket:
            socket.send("hello")
    with pytest.raises(testing.Refused) as caught:
        open_session("/echo/", headers={"Origin": "https://evil.example"})
    assert caught.value.status_code == 403
    config = greenws.Config(allowed_origins=["https://other.example"])
    with open_session("/echo/", config=config, headers={"Origin": "https://other.example"}):
        pass
    with pytest.raises(testing.Refused):
        open_session("/echo/", config=config, headers={"Origin": "https://trusted.example"})


def test_the_log_of_a_refused_origin_names_django_s_setting(open_session, caplog):
    with pytest.raises(testing.Refused) as caught:
        open_session("/echo/", headers={"Origin": "https://evil.example"})
    assert "CSRF_TRUSTED_ORIGINS, or write @websocket(allowed_origins=[...])" in caplog.text
    assert "CSRF_TRUSTED_ORIGINS" not in str(caught.value)


# -- failures


def test_a_page_in_place_of_a_websocket_names_the_decorator(open_session, caplog):
    with pytest.raises(testing.Refused):
        open_session("/page/")
    assert "put @websocket of greenws.integrations.django above it" in caplog.text


def test_views_that_the_first_request_imports_are_no_reply_to_it(project):
    def application(environ, start_response):
        websocket(lambda request, socket: None)
        return project(environ, start_response)

    with pytest.raises(testing.Refused, match="200 OK"):
        testing.connect(application, "/login/")


def test_views_that_are_imported_do_not_hide_an_unused_handler(project):
    def application(environ, start_response):
        greenws.WebSocketHandler(lambda request, protocols: None)
        websocket(lambda request, socket: None)
        return project(environ, start_response)

    with pytest.raises(RuntimeError, match="its framework ignores what a view returns"):
        testing.connect(application, "/login/")


@pytest.mark.parametrize("name", ["PermissionDenied", "Http404"])
def test_a_refusal_in_a_session_comes_too_late(open_session, caplog, name):
    from django.core.exceptions import PermissionDenied
    from django.http import Http404

    kinds = {"PermissionDenied": PermissionDenied, "Http404": Http404}
    with pytest.raises(kinds[name]), open_session("/late/") as socket:
        socket.send(name)
        with pytest.raises(greenws.ConnectionClosed, match="1011"):
            socket.receive()
    assert f"{name} raised in a session, too late for a response: refuse before" in caplog.text
    assert "above @websocket" in caplog.text
    assert caplog.text.count("too late") == 1


def test_an_exception_out_of_a_session_is_django_s(open_session):
    from django.core.signals import got_request_exception

    seen = []

    def on_exception(sender, **options):
        seen.append(sender)

    got_request_exception.connect(on_exception)
    with pytest.raises(RuntimeError, match="on purpose"), open_session("/fail/") as socket:
        socket.send("fail")
        assert socket.receive() == "1"
        with pytest.raises(greenws.ConnectionClosed, match="1011"):
            socket.receive()
    assert len(seen) == 1


@pytest.mark.parametrize("end", ["fail", "go"])
def test_atomic_requests(open_session, end):
    from django.db import connections

    from ...programs.django_project.project.models import Note

    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    try:
        with open_session("/fail/") as socket:
            for message in ("one", end):
                socket.send(message)
                socket.receive()
            if end == "go":
                socket.close()
    except RuntimeError:
        assert end == "fail"
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False
    assert Note.objects.count() == {"fail": 0, "go": 2}[end]


# -- mistakes


def test_login_required_below_websocket_is_reported(open_session):
    with pytest.raises(TypeError, match="above @websocket"), open_session("/wrong/"):
        pass


async def coroutine(request, socket):
    pass


def generator(request, socket):
    yield


class View:
    pass


class Handler(greenws.WebSocketSessionHandler):
    def handle_session(self, request, socket):
        pass


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (coroutine, "async def"),
        (generator, "yield"),
        (functools.partial(coroutine), "async def"),
        (View, "as_view"),
        (Handler, r"lambda request, protocols: Handler\(\)"),
        (lambda request: None, "does not fit"),
        (lambda: None, "does not fit"),
        (lambda socket, request: None, "in this order"),
        ("chat", "is a function"),
    ],
)
def test_mistakes_are_reported_where_they_are_made(function, what):
    with pytest.raises(TypeError, match=what):
        websocket(function)


def test_options_are_checked_where_they_are_written():
    for options in ({"max_mesage_size": 1}, {"max_connections": 1}, {"protocols": "chat"}):
        with pytest.raises(TypeError):
            websocket(lambda request, socket: None, **options)
    with pytest.raises(ValueError, match="max_message_size"):
        websocket(lambda request, socket: None, max_message_size=-1)
    with pytest.raises(TypeError, match="leave out protocols="):
        websocket(lambda request, protocols: None, protocols=["chat"])


def test_functions_with_defaults_and_any_variables_fit():
    for function in (
        lambda request, socket, room="lobby": None,
        lambda request, socket, *args, **variables: None,
        lambda request, protocols, **variables: None,
        lambda *args, **variables: None,
        lambda self, request, socket, room: None,
    ):
        assert callable(websocket(function))


def test_a_view_keeps_the_name_of_its_function():
    @websocket
    def chat(request, socket):
        """A chat."""

    assert (chat.__name__, chat.__doc__) == ("chat", "A chat.")


def test_under_asgi_the_answer_says_what_to_run(project, error_log):
    from django.core.handlers.asgi import ASGIRequest

    request = ASGIRequest({"type": "http", "method": "GET", "path": "/", "headers": []}, None)
    response = websocket(lambda request, socket: None)(request)
    assert response.status_code == 501
    assert b"WebSocketServer" in response.content
    (record,) = error_log.take()
    assert "ASGI" in record.getMessage()
