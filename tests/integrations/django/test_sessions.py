"""request.session in a view that goes on: when it is saved, and what is read after a wait."""

from __future__ import annotations

import functools

import pytest

from greenws import testing
from greenws.rate_limit import RateLimit


@pytest.fixture
def client(project):
    from django.test import Client

    client = Client()
    client.get("/login/")
    return client


@pytest.fixture
def open_session(project, client):
    return functools.partial(testing.connect, project, client=client)


def ask(socket, message):
    socket.send(message)
    return socket.receive()


def waits(socket):
    """Returns when the session waits again."""
    socket.ping()


def test_a_write_is_saved_before_the_next_wait(open_session, client):
    with open_session("/session/") as socket:
        assert ask(socket, "color=green") == "green"
        waits(socket)
        assert client.session["color"] == "green"


def test_a_read_after_a_wait_sees_what_other_requests_have_written(open_session, client):
    with open_session("/session/") as socket:
        assert ask(socket, "color") == "None"
        waits(socket)
        other = client.session
        other["color"] = "red"
        other.save()
        assert ask(socket, "color") == "red"
        assert ask(socket, "size=big") == "big"
        waits(socket)
    assert client.session["color"] == "red"
    assert client.session["size"] == "big"


@pytest.mark.parametrize("every_request", [False, True])
def test_the_end_of_a_session_overwrites_nothing(open_session, client, settings, every_request):
    settings.SESSION_SAVE_EVERY_REQUEST = every_request
    with open_session("/session/") as socket:
        ask(socket, "color=green")
        waits(socket)
        other = client.session
        other["color"] = "red"
        other.save()
    assert client.session["color"] == "red"


def test_a_session_that_was_deleted_meanwhile_is_not_made_again(open_session, client, caplog):
    from django.contrib.sessions.models import Session

    with open_session("/session/") as socket:
        ask(socket, "color")
        client.logout()
        ask(socket, "color=green")
        waits(socket)
        assert Session.objects.count() == 0
    assert Session.objects.count() == 0


def test_a_flush_in_the_session_logs_out(open_session, client):
    with open_session("/session/") as socket:
        ask(socket, "flush")
        waits(socket)
    from django.contrib.sessions.models import Session

    assert Session.objects.count() == 0


def test_what_was_written_before_the_handshake_is_saved_with_its_cookie(project):
    from django.contrib.sessions.backends.db import SessionStore

    with testing.connect(project, "/producer/cookie/") as socket:
        socket.receive()
        cookie = socket.response.headers["Set-Cookie"]
        assert cookie.startswith("sessionid=")
        assert "HttpOnly" in cookie
        assert socket.response.headers["X-Handler"] == "yes"
        key = cookie.partition("=")[2].partition(";")[0]
        assert SessionStore(key)["visits"] == 1


def test_a_session_that_begins_after_the_handshake_is_reported(project, caplog, monkeypatch):
    from django.contrib.sessions.models import Session

    from greenws.integrations.django import sessions

    monkeypatch.setattr(sessions, "_limit", RateLimit(0.0, burst=1))  # one line for all of them
    for _ in range(3):
        with testing.connect(project, "/session/") as socket:
            ask(socket, "color=green")
            waits(socket)
            assert Session.objects.count() == 0
            assert ask(socket, "color") == "green"
    (record,) = [record for record in caplog.records if record.name == "greenws.session"]
    assert "cannot reach the browser" in record.getMessage()


def test_a_session_that_was_not_touched_is_not_loaded(open_session, client, queries):
    with open_session("/echo/") as socket:
        before = len(queries)
        ask(socket, "hello")
        waits(socket)
        assert len(queries) == before
