"""manage.py check: what prevents a view from being a WebSocket."""

from __future__ import annotations

import functools
import sys
import types

import pytest


@pytest.fixture
def check(project, settings, monkeypatch, tmp_path):
    """The ids and messages that the check gives, for some URL patterns."""
    from django.urls import clear_url_caches

    monkeypatch.chdir(tmp_path)

    def run(*patterns, **options):
        from django.core.checks import run_checks

        if patterns:
            urls = types.ModuleType("urls")
            urls.urlpatterns = list(patterns)
            settings.ROOT_URLCONF = urls
        for name, value in options.items():
            setattr(settings, name, value)
        clear_url_caches()
        found = run_checks(tags=["greenws"])
        return [message.id.partition(".")[2] for message in found], "\n".join(map(str, found))

    yield run
    clear_url_caches()


@pytest.fixture
def view(project):
    from greenws.integrations.django import websocket

    return websocket(lambda request, socket: None)


def test_the_project_is_fine(check):
    assert check() == ([], "")


def test_a_project_without_websockets_is_not_looked_at(check):
    from django.urls import path

    engine = "django.contrib.sessions.backends.signed_cookies"
    assert check(path("", lambda request: None), SESSION_ENGINE=engine) == ([], "")


def test_variables_that_the_function_does_not_take(check, view):
    from django.urls import include, path, re_path

    from greenws.integrations.django import websocket

    taking = websocket(lambda request, socket, room: None)
    ids, text = check(path("a/<room>/", view), path("b/", taking))
    assert ids == ["E001", "E001"]
    assert "(request, socket, room)" in text
    fine = [
        path("a/<room>/", taking),
        path("<room>/", include([path("", taking)])),
        re_path(r"^(?P<room>\w+)$", taking),
        path("c/", taking, {"room": "lobby"}),
        path("d/<room>/<other>/", websocket(lambda request, socket, **variables: None)),
    ]
    assert check(*fine)[0] == []


def test_atomic_requests(check, view, monkeypatch):
    from django.conf import settings
    from django.contrib.auth.decorators import login_required
    from django.db import transaction
    from django.urls import path

    # Django warns of an override of DATABASES as a whole.
    monkeypatch.setitem(settings.DATABASES["default"], "ATOMIC_REQUESTS", True)
    ids, text = check(path("chat/", login_required(view)))
    assert ids == ["W002"]
    assert "'chat/'" in text and "non_atomic_requests" in text
    assert check(path("chat/", login_required(transaction.non_atomic_requests(view))))[0] == []


def test_a_class_based_view(check):
    from django.urls import path
    from django.views import View

    from greenws.integrations.django import websocket

    class Chat(View):
        @websocket
        def get(self, request, socket, room):
            pass

    assert check(path("chat/", Chat.as_view()))[0] == ["E001"]
    assert check(path("chat/<room>/", Chat.as_view()))[0] == []


def test_asgi(check, view):
    from django.urls import path

    urls = path("", view)
    assert check(urls, WSGI_APPLICATION=None, ASGI_APPLICATION="x.asgi.application")[0] == ["W001"]


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("daphne", "runserver", ["E002"]),
        ("channels", "runserver", ["E002"]),  # before 4
        ("channels", "runworker", []),
    ],
)
def test_a_runserver_of_asgi(check, view, settings, monkeypatch, tmp_path, name, command, expected):
    from django.core.management import get_commands
    from django.urls import path

    commands = tmp_path / name / "management" / "commands"
    commands.mkdir(parents=True)
    for folder in (tmp_path / name, commands.parent, commands):
        (folder / "__init__.py").touch()
    (commands / f"{command}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    get_commands.cache_clear()
    try:
        found = check(path("", view), INSTALLED_APPS=[name, *settings.INSTALLED_APPS])
        assert found[0] == expected
    finally:
        sys.modules.pop(name, None)
        get_commands.cache_clear()


def test_sessions_in_cookies(check, view):
    from django.urls import path

    ids, text = check(
        path("", view), SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies"
    )
    assert ids == ["W003"]


@pytest.mark.parametrize(
    ("driver", "psycogreen", "expected"),
    [
        ("psycopg", None, []),
        ("psycopg2", None, ["W004"]),
        ("psycopg2", types.ModuleType("psycogreen"), []),
        ("MySQLdb", None, ["W005"]),
        ("pymysql", None, []),
    ],
)
def test_drivers_that_block(check, view, monkeypatch, driver, psycogreen, expected):
    from django.db import connection
    from django.urls import path

    monkeypatch.setitem(sys.modules, "psycogreen", psycogreen)
    # The wrapper of a database has its driver's module.
    monkeypatch.setattr(connection, "Database", types.ModuleType(driver))
    assert check(path("", view))[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('worker_class = "greenws.gunicorn.Worker"', []),
        ('worker_class = "gevent"', []),
        ("import x\nworker_class = x.worker()", []),
        ("syntax error", []),
        ("bind = ':80'", ["a sync worker"]),
        ("threads = 8", ["gthread workers", "8"]),
        ('worker_class = "uvicorn.workers.UvicornWorker"', ["does not hand over the socket"]),
    ],
)
def test_gunicorn_s_settings(check, view, tmp_path, text, expected):
    from django.urls import path

    (tmp_path / "gunicorn.conf.py").write_text(text)
    ids, told = check(path("", view))
    assert ids == (["W006"] if expected else [])
    assert all(part in told for part in expected)


def test_views_that_were_meant_to_be_websockets(check, view):
    from django.urls import path, re_path
    from django.views import View

    from greenws.integrations.django import websocket

    class Chat(View):
        def get(self, request, socket):
            pass

    def chat(request, socket, room):
        pass

    ids, text = check(path("a/", websocket()), path("b/", websocket(protocols=["chat"])))
    assert ids == ["E003", "E003"]
    assert "'a/' is websocket() without a function" in text
    ids, text = check(path("c/<room>/", chat), path("d/", Chat.as_view()), path("e/", view))
    assert ids == ["W007", "W007"]
    assert "chat(request, socket, room), takes a socket" in text and "Put @websocket" in text

    @functools.wraps(chat)
    def gives_a_socket(request):
        chat(request, None, "room")

    numbered = re_path(r"g/(\d+)/", lambda request, socket: None)
    assert check(numbered, path("h/", gives_a_socket))[0] == []
    fine = [path("<socket>/", lambda request, socket: None), re_path(".*", lambda *args: None)]
    assert check(*fine, path("f/", lambda request, socket=None: None))[0] == []
