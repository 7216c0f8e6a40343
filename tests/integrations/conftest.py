"""Programs that several integrations share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.mariadb import MariaDbServer
from ..support.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that the tests share; each takes tables, or a database, of its own."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDbServer]:
    """A MariaDB that the tests share; each takes tables, or a database, of its own."""
    server = MariaDbServer()
    yield server
    server.close()
