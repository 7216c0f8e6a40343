"""Tests of a Django application with greenws.testing, run by Django's own runner: python
django_tests.py [patched]. The database is that of GREENWS_TEST_DATABASE."""

import json
import os
import sys
from unittest import mock

if "patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import django
from django.conf import settings

if not settings.configured:
    settings.configure(
        SECRET_KEY="secret",
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["example.com"],
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": ":memory:",
                **json.loads(os.environ.get("GREENWS_TEST_DATABASE", "{}")),
            }
        },
    )
    django.setup()

from django.contrib.auth.models import User
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpResponse
from django.test import Client, TestCase, TransactionTestCase
from django.test.runner import DiscoverRunner
from django.urls import path

from greenws import testing
from greenws.integrations.django import websocket


def chat(request):
    if not request.user.is_authenticated:
        response = HttpResponse("log in", status=401)
        response.set_cookie("seen", "yes")
        return response
    socket = request.environ["wsgi.websocket"]
    socket.send(f"hello {request.user.username}")
    while (message := socket.receive()) is not None:
        if message == "fail":
            raise LookupError("in the view")
        User.objects.create_user(message)
        socket.send(f"{User.objects.count()} users")
    return HttpResponse()


@websocket
def greet(request, socket, name):
    socket.send(f"hello {name} of {User.objects.count()}")
    request.session["greeted"] = name
    for message in socket:
        raise LookupError(message)


@websocket
def where(request, socket):
    socket.send(request.build_absolute_uri())


def users(request):
    return HttpResponse(User.objects.count())


urlpatterns = [
    path("chat/", chat),
    path("greet/<name>/", greet),
    path("where/", where),
    path("users/", users),
]
app = get_wsgi_application()

# What leaves something in a connection, so that it is not closed in a wait.
UNUSUAL = {
    "postgresql": "SET TIME ZONE 'UTC'",
    "sqlite": "PRAGMA foreign_keys = OFF",
}


def forbidden(wrapper):
    """What pytest-django puts in place of ``ensure_connection()``."""
    raise RuntimeError("Database access not allowed")


class Tests(TestCase):
    def test_who_has_not_logged_in_is_refused(self):
        with self.assertRaises(testing.Refused) as caught:
            testing.connect(app, "/chat/", client=self.client)
        self.assertEqual(caught.exception.status_code, 401)
        self.assertEqual(self.client.cookies["seen"].value, "yes")

    def test_without_a_client(self):
        with self.assertRaises(testing.Refused) as caught:
            testing.connect(app, "/chat/")
        self.assertEqual(caught.exception.status_code, 401)

    def test_the_handler_is_in_the_transaction_of_the_test(self):
        self.client.force_login(User.objects.create_user("ada"))
        with testing.connect(app, "/chat/", client=self.client) as socket:
            self.assertEqual(socket.receive(), "hello ada")
            socket.send("grace")
            self.assertEqual(socket.receive(), "2 users")
        self.assertTrue(User.objects.filter(username="grace").exists())

    def test_requests_and_sessions_beside_each_other(self):
        self.client.force_login(User.objects.create_user("ada"))
        with testing.connect(app, "/chat/", client=self.client) as socket:
            with testing.connect(app, "/chat/", client=self.client) as other:
                self.assertEqual(other.receive(), "hello ada")
                self.assertEqual(self.client.get("/users/").content, b"1")
            self.assertEqual(User.objects.count(), 1)
            self.assertEqual(socket.receive(), "hello ada")
            socket.send("grace")
            self.assertEqual(socket.receive(), "2 users")
        self.assertEqual(User.objects.count(), 2)
        self.assertEqual(vars(connection).get("close_if_unusable_or_obsolete"), None)

    def test_a_view_of_the_integration(self):
        self.client.force_login(User.objects.create_user("ada"))
        with testing.connect(app, "/greet/grace/", client=self.client) as socket:
            self.assertEqual(socket.receive(), "hello grace of 1")
        self.assertEqual(self.client.session["greeted"], "grace")
        with self.assertRaisesRegex(LookupError, "in the session"):
            with testing.connect(app, "/greet/grace/") as socket:
                socket.receive()
                socket.send("in the session")

    def test_the_host_and_the_scheme_of_the_client(self):
        for defaults, url in [
            ({}, "http://testserver/where/"),
            ({"SERVER_NAME": "example.com", "SERVER_PORT": "81"}, "http://example.com:81/where/"),
            ({"headers": {"host": "example.com"}}, "http://example.com/where/"),
            ({"wsgi.url_scheme": "https"}, "https://testserver/where/"),
            ({"SCRIPT_NAME": "/root"}, "http://testserver/root/where/"),
        ]:
            with self.subTest(defaults=defaults):
                client = Client(**defaults)
                self.assertEqual(client.get("/users/").status_code, 200)
                with testing.connect(app, "/where/", client=client) as socket:
                    self.assertEqual(socket.receive(), url)

    def test_a_whole_url(self):
        for client in (None, self.client):
            with testing.connect(app, "wss://example.com/where/", client=client) as socket:
                self.assertEqual(socket.receive(), "https://example.com/where/")

    def test_what_a_view_raises(self):
        self.client.force_login(User.objects.create_user("ada"))
        with self.assertRaisesRegex(LookupError, "in the view"):
            with testing.connect(app, "/chat/", client=self.client) as socket:
                socket.send("fail")


class WithoutTransaction(TransactionTestCase):
    def test_the_test_may_be_one_that_must_not_use_a_database(self):
        connection.ensure_connection()  # left by an earlier test
        with mock.patch.object(BaseDatabaseWrapper, "ensure_connection", forbidden):
            with testing.connect(app, "/where/") as socket:
                self.assertEqual(socket.receive(), "http://testserver/where/")

    def test_the_test_itself_may_hold_a_connection(self):
        connection.close()  # on which the tables were made
        with self.assertLogs("greenws") as logs:
            with testing.connect(app, "/greet/ada/") as socket:
                self.assertEqual(socket.receive(), "hello ada of 0")
                connection.cursor().execute(UNUSUAL[connection.vendor])
                socket.ping()
                self.assertIsNotNone(connection.connection)
        self.assertEqual([line for line in logs.output if "waits with" in line], [])


if __name__ == "__main__":
    runner = DiscoverRunner(verbosity=0)
    runner.setup_test_environment()
    databases = runner.setup_databases()
    loader = runner.test_loader
    suites = [loader.loadTestsFromTestCase(each) for each in (Tests, WithoutTransaction)]
    result = runner.run_suite(runner.test_suite(suites))
    runner.teardown_databases(databases)
    sys.exit(not result.wasSuccessful())
