"""The Django project of tests/programs/django_project, inside the process of the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from greenws import waiting

PACKAGE = "tests.programs.django_project.project"


@pytest.fixture(scope="session")
def django_project(tmp_path_factory) -> list[Any]:
    """Sets Django up, with a database in a file; returns what it does before each wait."""
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connections

    before = list(waiting.functions)
    with pytest.MonkeyPatch.context() as patch:  # processes that are started do not inherit it
        patch.setenv("DJANGO_SETTINGS_MODULE", f"{PACKAGE}.settings")
        settings.DATABASES["default"]["NAME"] = tmp_path_factory.mktemp("django") / "database"
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    connections.close_all()  # so that the first test opens its own connection
    installed = [function for function in waiting.functions if function not in before]
    waiting.functions[:] = before
    return installed


@pytest.fixture(autouse=True)
def unregister() -> Iterator[None]:
    """Tests of other things do nothing before they wait."""
    before = list(waiting.functions)
    yield
    waiting.functions[:] = before


@pytest.fixture
def project(django_project) -> Iterator[None]:
    """The same for one test: its WSGI application, with what runs before each wait, and an empty
    database."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.management import call_command
    from django.db import connections

    waiting.functions.extend(django_project)
    yield WSGIHandler()
    call_command("flush", interactive=False, verbosity=0)
    connections.close_all()


@pytest.fixture
def settings(project) -> Iterator[Any]:
    """Django's settings, put back after the test."""
    from django.conf import settings
    from django.test import override_settings

    class Settings:
        def __setattr__(self, name: str, value: Any) -> None:
            stack.enter_context(override_settings(**{name: value}))

        def __getattr__(self, name: str) -> Any:
            return getattr(settings, name)

    with contextlib.ExitStack() as stack:
        yield Settings()


@pytest.fixture
def queries(project) -> Iterator[list[str]]:
    """The statements that Django sends."""
    from django.db import connection

    seen: list[str] = []

    def wrapper(execute: Any, sql: str, *rest: Any) -> Any:
        seen.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(wrapper):
        yield seen
