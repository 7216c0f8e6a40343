"""What rooms and senders take."""

from __future__ import annotations

import pytest

from greenws.rooms.arguments import (
    check_close,
    check_count,
    check_name,
    check_redis,
    message,
)

pytestmark = pytest.mark.no_io


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        ("é", "é"),
        (b"\xff", b"\xff"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        ({"a": [1, None, "é"]}, '{"a":[1,null,"é"]}'),
        ({}, "{}"),
    ],
)
def test_messages(data, sent):
    assert message(data) == sent and type(message(data)) is type(sent)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, TypeError),
        (7, TypeError),
        (["a"], TypeError),
        ({"a": object()}, TypeError),
        ({"a": float("nan")}, ValueError),
        ("\ud800", UnicodeEncodeError),
        ({"a": "\ud800"}, UnicodeEncodeError),
    ],
)
def test_what_is_no_message_is_refused(data, error):
    with pytest.raises(error):
        message(data)


def test_the_error_says_what_a_message_is():
    with pytest.raises(TypeError, match="must be a str or a bytes-like object, not list"):
        message([])


def test_names():
    check_name("é")
    check_name("")
    with pytest.raises(TypeError, match="must be a str, not 3"):
        check_name(3)
    with pytest.raises(UnicodeEncodeError):
        check_name("\ud800")


def test_close_codes_and_reasons():
    check_close(4001, "é" * 61)
    with pytest.raises(ValueError, match="1006 may not be sent"):
        check_close(1006, "")
    with pytest.raises(ValueError, match="123 bytes"):
        check_close(4001, "é" * 62)


@pytest.mark.parametrize("count", ["5", 1.5, None, True])
def test_a_count_is_an_int(count):
    check_count(2**70)
    with pytest.raises(TypeError, match="count must be a number of messages"):
        check_count(count)


@pytest.mark.parametrize("name", ["redis", "redis.crc"])
def test_an_error_says_how_to_install_a_redis_py_that_is_missing(name):
    with pytest.raises(ImportError, match="^no such module; pip install redis ") as raised:
        check_redis(ImportError("no such module", name=name))
    assert raised.value.name == name


@pytest.mark.parametrize("name", ["rediscluster", "_ssl", "greenws.rooms.redis", None])
def test_other_modules_that_are_missing_are_not_taken_for_redis_py(name):
    check_redis(ImportError("no such module", name=name))
