"""The pytest plugin: the fixture ``websocket``, and a check for sessions that a test leaves open.

``websocket`` is :func:`greenws.testing.connect`. Its connections end with the test, and an
exception that escapes a handler fails the test::

    def test_echo(websocket):
        socket = websocket(app, "/echo")
        socket.send("hello")
        assert socket.receive() == "hello"

It is an error if a test leaves a session open, or a greenlet that a handler started in a session.
Sessions of fixtures with a wider scope do not count. If a test does it on purpose, mark it with
``greenws_leftovers``.

pytest loads this module in every run, so it imports nothing but pytest before it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..testing.leftovers import Opener

_leftovers = pytest.StashKey[Any]()
_current = pytest.StashKey[pytest.Item]()
_MARKER = "greenws_leftovers"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{_MARKER}: leaves sessions or greenlets of greenws open on purpose"
    )


@pytest.fixture
def websocket() -> Iterator[Opener]:
    """``greenws.testing.connect``: ``websocket(app, "/path", ...)`` opens a session of a WSGI
    application without a network. At the end of the test it is closed, and an exception that
    escaped the handler is raised."""
    from ..testing.leftovers import Opener

    opener = Opener()
    yield opener
    opener.end()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Ends the fixture's connections within the test, so that an error fails the test itself."""
    __tracebackhide__ = True
    opener: Any = pyfuncitem.funcargs.get("websocket")
    if not hasattr(opener, "end"):
        return (yield)
    try:
        result = yield
    except BaseException as error:
        opener.end(error)
        raise
    opener.end()
    return result


def _is_used() -> bool:
    """Whether greenws's sockets have been imported, so that one may be open."""
    return "greenws.websocket" in sys.modules


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    item.config.stash[_current] = item
    if _is_used():
        from ..testing.leftovers import Leftovers

        item.stash[_leftovers] = Leftovers()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Excludes what fixtures of a wider scope open."""
    item = request.config.stash.get(_current, None)
    if fixturedef.scope == "function" or item is None:
        return (yield)
    before = None
    if _is_used():
        from ..testing.leftovers import Leftovers

        before = Leftovers()
    result = yield
    if _is_used():
        from ..testing.leftovers import Leftovers

        opened = (before or Leftovers(knows_all=False)).now()
        watched = item.stash.get(_leftovers, None) or Leftovers(knows_all=False)
        watched.excuse(opened)
        item.stash[_leftovers] = watched
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    if _is_used() and item.get_closest_marker(_MARKER) is None:
        from ..testing.leftovers import Leftovers

        watched = item.stash.get(_leftovers, None) or Leftovers(knows_all=False)
        left = watched.end()
        if left:
            pytest.fail(f"the test has left this behind:\n{left}", pytrace=False)
    return result
