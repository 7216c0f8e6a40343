"""Sessions that wait hold no database connection, and lose nothing by that."""

from __future__ import annotations

import json
import logging
import os
import urllib.request

import pytest

from greenws import databases

from ...support.idle import idle_sessions
from ...support.limits import eventually, limit
from ...support.processes import PROGRAMS, Process, connect

MANAGE = PROGRAMS / "django_project" / "manage.py"


@pytest.fixture
def wait(project):
    """What a session does before it waits."""
    from greenws.integrations.django.connections import release

    databases._warned.clear()
    return release


@pytest.fixture
def connection(project):
    from django.db import connection

    connection.close()
    return connection


@pytest.fixture
def notes(project):
    from ...programs.django_project.project.models import Note

    return Note.objects


def is_held(connection):
    return connection.connection is not None


def test_queries_and_writes_hold_no_connection(connection, notes, wait, caplog):
    from django.db.models import F, Q
    from django.db.models.functions import Length

    note = notes.create(text="one")
    assert is_held(connection)
    wait()
    assert not is_held(connection)
    note.text = "two"
    note.save()
    notes.filter(Q(text__icontains="w") | Q(text__iexact="x")).update(text=F("text"))
    notes.bulk_create([type(note)(text="three"), type(note)(text="four")])
    notes.annotate(size=Length("text")).filter(size__gt=2).exists()
    assert list(notes.order_by("-id").values_list("text", flat=True)[:1]) == ["four"]
    notes.get_or_create(text="five")
    notes.all().delete()
    wait()
    assert not is_held(connection)
    assert caplog.records == []


def test_a_finished_transaction(connection, notes, wait):
    from django.db import transaction

    with transaction.atomic():
        notes.create(text="one")
        with transaction.atomic():
            notes.create(text="two")
        list(notes.select_for_update())
    wait()
    assert not is_held(connection)
    assert notes.count() == 2


def test_inside_atomic_it_is_kept(connection, notes, wait, caplog):
    from django.db import transaction

    with transaction.atomic():
        notes.create(text="one")
        wait()
        assert is_held(connection)
    assert notes.count() == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "atomic()" in record.getMessage()
    assert __file__ in record.getMessage()


def test_without_autocommit_it_is_kept(connection, notes, wait, caplog):
    from django.db import transaction

    notes.count()
    transaction.set_autocommit(False)
    notes.create(text="one")
    wait()
    assert is_held(connection)
    transaction.rollback()
    transaction.set_autocommit(True)
    assert "autocommit" in caplog.text


def test_an_iterator_that_is_read_is_kept(connection, notes, wait, caplog):
    for text in ("one", "two", "three"):
        notes.create(text=text)
    seen = []
    for note in notes.order_by("id").iterator(chunk_size=1):
        wait()
        seen.append(note.text)
        assert is_held(connection)
    assert seen == ["one", "two", "three"]
    wait()
    assert not is_held(connection)
    assert "a cursor is open" in caplog.text


def test_an_open_cursor_is_kept(connection, wait):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        wait()
        assert is_held(connection)
        assert cursor.fetchone() == (1,)
    del cursor
    wait()
    assert not is_held(connection)


@pytest.mark.parametrize(
    "statement", ["PRAGMA case_sensitive_like = 1", "CREATE TEMPORARY TABLE mine (a int)"]
)
def test_a_changed_state_of_the_connection_is_kept(connection, wait, caplog, statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
    del cursor
    wait()
    assert is_held(connection)
    assert statement in caplog.text
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    del cursor
    wait()
    assert not is_held(connection)


def test_checks_of_foreign_keys_are_off_until_they_are_on_again(connection, notes, wait, caplog):
    with connection.constraint_checks_disabled():
        wait()
        assert is_held(connection)
        assert "'PRAGMA foreign_keys = OFF'" in caplog.text
    caplog.clear()
    connection.check_constraints()
    connection.check_constraints(["auth_user"])
    with connection.cursor() as cursor:
        connection.introspection.get_constraints(cursor, "auth_user")
    del cursor
    wait()
    assert not is_held(connection)
    assert caplog.records == []


def test_what_every_connection_begins_with_does_not_count(connection, notes, wait):
    from django.db.backends.signals import connection_created

    def set_up(connection, **options):
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA case_sensitive_like = 1")

    connection_created.connect(set_up)
    notes.count()
    wait()
    connection_created.disconnect(set_up)
    assert not is_held(connection)


def test_a_new_connection_leaves_the_wrappers_of_others_in_order(connection, notes, wait):
    def wrapper(execute, *args):
        return execute(*args)

    with connection.execute_wrapper(wrapper):
        notes.count()
        wait()
        notes.count()
    assert wrapper not in connection.execute_wrappers
    wait()
    assert not is_held(connection)


def test_the_transaction_of_a_test_case_is_let_be(connection, notes, wait, caplog):
    from django.db import transaction

    block = transaction.atomic()
    block._from_testcase = True
    with block:
        notes.create(text="one")
        wait()
        assert is_held(connection)
        transaction.set_rollback(True)
    assert caplog.records == []


# -- on a server, with a pool of five connections


@pytest.fixture(scope="module")
def program(postgres):
    postgres.call("CREATE DATABASE django")
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": postgres.host,
        "NAME": "django",
        "USER": "postgres",
        "OPTIONS": {"pool": {"min_size": 0, "max_size": 5, "timeout": 20, "max_idle": 0.2}},
    }
    env = {"GREENWS_TEST_DATABASE": json.dumps(database)}
    with Process(MANAGE, "migrate", "--run-syncdb", "--verbosity=0", **env) as process:
        assert process.popen.wait(limit(20)) == 0, process.output
    with Process(MANAGE, "serve", **env) as process:
        yield process.wait_for_port()


def get(process, path):
    with urllib.request.urlopen(process.url(path, "http"), timeout=limit(20)) as response:
        return response.read().decode()


def test_idle_sessions_of_django_hold_no_connection(program, postgres):
    """GREENWS_IDLE_SESSIONS=2000 for the figure that the documentation gives."""
    count = int(os.environ.get("GREENWS_IDLE_SESSIONS", "100"))
    with idle_sessions(program.address, "/notes/", count, b"count", b"0"):
        assert get(program, "/page/") == "0 notes"
        eventually(lambda: postgres.connections("django"), 0)
    assert "keeps its database connection" not in program.output


def test_what_sessions_of_django_write_is_kept(program, postgres):
    with connect(program.url("/notes/")) as ws:
        ws.send("add one")
        assert ws.recv(timeout=limit()) == "1"
        eventually(lambda: postgres.connections("django"), 0)
        assert postgres.call("SELECT text FROM project_note", "django") == [("one",)]
        ws.send("set")
        assert ws.recv(timeout=limit()) == "1"
        program.wait_for("it ran 'SET statement_timeout = 5000'")
        assert postgres.connections("django") == 1
    eventually(lambda: postgres.connections("django"), 0)


# -- in tests


@pytest.mark.parametrize("patched", ["", "patched"])
def test_a_test_keeps_its_connection(postgres, patched):
    """Where a connection that was closed cannot be opened again within the test, unlike SQLite's
    database in memory."""
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": postgres.host,
        "NAME": f"unused_{patched}",
        "USER": "postgres",
    }
    with Process(
        PROGRAMS / "django_tests.py", patched, GREENWS_TEST_DATABASE=json.dumps(database)
    ) as process:
        assert process.popen.wait(limit(30)) == 0, process.output
        process.wait_for("Ran 10 tests")
