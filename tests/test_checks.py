"""The checks of calls. What they say is tested where they are used, in test_routes.py,
test_session.py and server/test_options.py."""

from __future__ import annotations

import functools

import pytest

from greenws.checks import (
    check_application,
    check_function,
    check_number,
    check_result,
    describe,
    explains,
    fits,
    suggest,
    unknown_option,
)

pytestmark = pytest.mark.no_io


@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_size", "max_message_size"), ("Ping_Intervall", "ping_interval"), ("qwertz", None)],
)
def test_what_was_probably_meant(name, meant):
    assert suggest(name, ["ping_interval", "max_message_size"]) == meant


def test_an_unknown_option_is_reported_with_those_that_exist():
    assert unknown_option("b", ["y", "x"]) == "unknown option 'b'; the options are: x, y"
    assert "did you mean 'ping'?" in unknown_option("pings", ["ping", "x"])


def test_a_function_is_described_as_it_is_written():
    def chat(request: int, socket, *, name: str = "x") -> None:
        pass

    assert describe(chat).endswith("chat(request, socket, *, name='x')")
    assert describe(lambda a: None).endswith("lambda(a)")


def test_a_call_that_does_not_fit_is_reported_with_what_to_write():
    @explains("paint(colour)", {"color": "write colour="})
    def paint(colour):
        raise TypeError(f"no colour: {colour}")

    with pytest.raises(TypeError, match=r"paint\(\): missing .*'colour'; write paint\(colour\)$"):
        paint()
    with pytest.raises(TypeError, match="; write colour=$"):
        paint(color="red")
    with pytest.raises(TypeError, match="^no colour: red$"):
        paint("red")


def test_options_of_other_places_are_reported():
    assert "always a GET" in unknown_option("methods", ["protocols"])
    assert "socket_protocol" in unknown_option("protocols", ["deflate"])


def test_whether_a_call_fits():
    assert fits(lambda a, b: None, 1, 2) is None
    assert fits(lambda a, b: None, 1) == "missing a required argument: 'b'"
    assert fits(print, 1, 2, nothing=3) is None or "nothing" in str(fits(print, nothing=3))
    assert fits(type, 1, 2, 3, 4, 5) is None  # has no signature


def test_what_a_session_returns_is_reported_once_for_each_function(caplog):
    def tell(socket):
        return {"a": 1}

    for _ in range(2):
        check_result(tell, tell(None))
        check_result(functools.partial(tell, None), 5)
        check_result(lambda socket: None, None)
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "tell(socket) returned {'a': 1}, which is ignored: a session sends with socket.send()"
    )


class Async:
    async def __call__(self, a):
        pass


async def values(a):
    yield 1


@pytest.mark.parametrize("wrong", [Async(), Async().__call__, values, functools.partial(values)])
def test_what_is_async_is_reported(wrong):
    with pytest.raises(TypeError, match="async def"):
        check_function(wrong, "a thing", "a")


def test_what_a_decorator_wraps_does_not_count():
    async def inner(a, b, c):
        pass

    @functools.wraps(inner)
    def outer(a):
        pass

    check_function(outer, "a thing", "a")


def test_an_application_that_is_a_method_is_taken():
    class Site:
        def application(self, environ, start_response):
            pass

    check_application(Site().application, "it")


def test_a_factory_is_no_application():
    def create_app(config=None):
        pass

    with pytest.raises(TypeError, match=r"what it returns: create_app\(\)$"):
        check_application(create_app, "it")
    with pytest.raises(TypeError, match=r"does not fit: missing .*'more'$"):
        check_application(lambda environ, start_response, more: None, "it")


@pytest.mark.parametrize("value", ["5", True, b"5", [5]])
def test_a_number_is_a_number(value):
    with pytest.raises(TypeError, match="timeout must be a number of seconds or None"):
        check_number("timeout", value)
    check_number("timeout", None)
    check_number("timeout", 5.0)


def test_a_class_is_an_application_only_if_its_instances_are_none():
    class Old:
        def __init__(self, environ, start_response):
            pass

    class Site(Old):
        def __call__(self, environ, start_response):
            pass

    check_application(Old, "it")
    with pytest.raises(TypeError, match="not the class .*Site: give an instance"):
        check_application(Site, "it")


def test_arguments_that_have_no_place_have_no_order():
    def wrapper(*args, request=None, **options):
        pass

    check_function(wrapper, "a session", "request", "socket")
