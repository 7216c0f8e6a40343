"""Options: their defaults, and which values are rejected."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections import UserList

import pytest

from greenws.config import SERVER_ONLY, Config

pytestmark = pytest.mark.no_io

LIMITS = {
    "max_message_size": 1 << 20,
    "max_fragments": 4096,
    "close_timeout": 10.0,
    "write_high_water": 1 << 20,
    "write_timeout": 10.0,
    "handshake_timeout": 10.0,
    "keep_alive_timeout": 75.0,
    "body_timeout": 60.0,
    "min_body_rate": 500,
    "max_request_line": 8192,
    "max_headers": 100,
    "max_header_size": 32768,
    "ping_interval": 20.0,
    "ping_timeout": 20.0,
    "max_message_rate": None,
    "max_lifetime": None,
    "max_connections": 10_000,
    "max_connections_per_address": None,
    "shutdown_grace": 10.0,
}
# name: (default, least, most)
RANGES = {
    "deflate_threshold": (1024, 0, (1 << 63) - 1),
    "deflate_level": (3, 1, 9),
    "deflate_memory_level": (8, 1, 9),
    "deflate_window_bits": (15, 8, 15),
    "deflate_peer_window_bits": (15, 8, 15),
}
FLAGS = {"deflate": True, "deflate_takeover": False, "deflate_peer_takeover": False}
OTHERS: dict[str, object] = {"shutdown_drain": 0.0}
OTHERS |= {"allowed_origins": None, "allowed_hosts": None, "access_log": Config.access_log}
DEFAULTS = LIMITS | OTHERS | FLAGS | {name: default for name, (default, _, _) in RANGES.items()}
WHOLE = [
    "max_message_size",
    "max_fragments",
    "write_high_water",
    "min_body_rate",
    "max_request_line",
    "max_headers",
    "max_header_size",
    "max_connections",
    "max_connections_per_address",
]
SECONDS = [
    "close_timeout",
    "write_timeout",
    "handshake_timeout",
    "keep_alive_timeout",
    "body_timeout",
    "ping_interval",
    "ping_timeout",
    "max_message_rate",
    "max_lifetime",
    "shutdown_grace",
]
EVERY = list(LIMITS)


def test_defaults_are_those_of_the_design():
    assert dataclasses.asdict(Config()) == DEFAULTS


def test_every_option_is_tested_here():
    assert {field.name for field in dataclasses.fields(Config)} == set(DEFAULTS)
    assert sorted(WHOLE + SECONDS) == sorted(EVERY)


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 60])
def test_shutdown_drain_may_be_0(value):
    assert Config(shutdown_drain=value).shutdown_drain == value


@pytest.mark.parametrize("value, error", [(-1, ValueError), (None, TypeError), (True, TypeError)])
def test_shutdown_drain_is_a_number_of_seconds(value, error):
    with pytest.raises(error, match="shutdown_drain must be a number of seconds"):
        Config(shutdown_drain=value)


@pytest.mark.parametrize("name", EVERY)
def test_none_switches_any_limit_off(name):
    assert getattr(Config(**{name: None}), name) is None


@pytest.mark.parametrize("name", EVERY)
def test_a_whole_number_above_zero_is_taken(name):
    assert getattr(Config(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_may_have_a_fraction(name):
    assert getattr(Config(**{name: 0.25}), name) == 0.25


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.0, 0.5, float("inf"), float("nan")])
def test_counts_and_sizes_are_whole(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a whole number or None, not "):
        Config(**{name: value})


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", ["10", b"10", True, False, [], 1j, object()])
def test_the_wrong_type_is_refused(name, value):
    with pytest.raises(TypeError) as caught:
        Config(**{name: value})
    assert str(caught.value).startswith(f"{name} must be ")
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [0, -1, -(1 << 70)])
def test_nothing_and_less_than_nothing_are_refused(name, value):
    with pytest.raises(ValueError) as caught:
        Config(**{name: value})
    message = str(caught.value)
    assert name in message
    assert "above 0" in message
    assert "None for no limit" in message
    assert repr(value) in message


@pytest.mark.parametrize("name", EVERY)
def test_a_number_too_large_for_a_float_is_taken_or_refused(name):
    try:
        assert getattr(Config(**{name: 10**400}), name) == 10**400
    except ValueError as error:
        assert name in str(error)


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0.0, -0.5, float("inf"), float("-inf"), float("nan")])
def test_seconds_are_finite_and_above_zero(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a number of seconds above 0"):
        Config(**{name: value})


def test_an_option_that_does_not_exist_is_a_type_error():
    with pytest.raises(TypeError, match="max_size"):
        Config(max_size=1)


def test_options_are_given_by_name():
    with pytest.raises(TypeError, match="Config takes options by name, such as max_message_size=5"):
        Config(5)


def test_replace_gives_a_copy_with_other_values():
    config = Config(max_fragments=7)
    other = config.replace(max_message_size=5, close_timeout=None)
    assert (other.max_message_size, other.close_timeout, other.max_fragments) == (5, None, 7)
    assert (config.max_message_size, config.close_timeout) == (1 << 20, 10.0)
    assert config.replace() == config


def test_replace_names_the_options_that_exist():
    with pytest.raises(TypeError) as caught:
        Config().replace(max_mesage_size=5)
    assert "'max_mesage_size'" in str(caught.value)
    assert all(name in str(caught.value) for name in DEFAULTS)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), ("5", TypeError)])
def test_replace_checks_as_the_constructor_does(value, error):
    with pytest.raises(error, match="max_fragments"):
        Config().replace(max_fragments=value)


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().max_fragments = 1


def test_every_option_says_why_it_exists():
    with open(__import__("greenws.config", fromlist=["x"]).__file__, encoding="utf-8") as file:
        source = file.read()
    for name in EVERY:
        after = source.split(f"    {name}: ", 1)[1].split("\n", 1)[1]
        assert after.lstrip(" ").startswith('"""'), name


@pytest.mark.parametrize("name", RANGES)
def test_an_option_with_a_range_keeps_to_it(name):
    _, least, most = RANGES[name]
    for value in (least, most):
        assert getattr(Config(**{name: value}), name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(ValueError, match=f"^{name} must be {least} (to {most}|or more), not "):
            Config(**{name: value})
    for value in (None, True, 9.0, "9"):
        with pytest.raises(TypeError, match=f"^{name} must be a whole number, not "):
            Config(**{name: value})


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_true_or_false(name):
    assert getattr(Config(**{name: not FLAGS[name]}), name) is not FLAGS[name]
    for value in (None, 0, 1, "yes"):
        with pytest.raises(TypeError, match=f"^{name} must be True or False, not "):
            Config(**{name: value})


def test_a_single_origin_is_a_list_of_one():
    assert Config(allowed_origins="https://example.com").allowed_origins == ("https://example.com",)


@pytest.mark.parametrize(
    "origin", ["*", "self", "null", "https://*.example.com", "http://localhost:8000", "app://x.y"]
)
def test_origins_that_are_taken(origin):
    assert Config(allowed_origins=[origin, "self"]).allowed_origins == (origin, "self")


@pytest.mark.parametrize(
    "origin",
    ["", "example.com", "https://", "https://example.com/", "https://*", "https://a.*.com", "a b"],
)
def test_an_invalid_origin_is_refused(origin):
    with pytest.raises(ValueError, match="'https://example.com'") as caught:
        Config(allowed_origins=[origin])
    assert repr(origin) in str(caught.value)


@pytest.mark.parametrize("value", [5, True, [b"https://example.com"], {"*": 1}])
def test_origins_of_the_wrong_type_are_refused(value):
    with pytest.raises(TypeError, match="^allowed_origins must be "):
        Config(allowed_origins=value)


def test_hosts_may_be_any_iterable():
    assert Config(allowed_hosts=UserList(["A.example"])).allowed_hosts == ("a.example",)


@pytest.mark.parametrize("value", [5, True, [b"example.com"], {"example.com": 1}])
def test_hosts_of_the_wrong_type_are_refused(value):
    with pytest.raises(TypeError, match="^allowed_hosts must be a str or a list of str"):
        Config(allowed_hosts=value)


def test_an_access_log_may_only_have_existing_fields():
    assert Config(access_log="%(path)s %(seconds).1f").access_log
    assert Config(access_log=None).access_log is None
    with pytest.raises(ValueError, match="messages_in.*'%\\(user\\)s' is invalid"):
        Config(access_log="%(user)s")
    with pytest.raises(ValueError, match="is invalid"):
        Config(access_log="%(path)d")
    with pytest.raises(TypeError, match="access_log must be a format string or None"):
        Config(access_log=True)


@pytest.mark.parametrize("name", sorted(SERVER_ONLY))
def test_options_of_the_server_are_refused_by_a_handler(name):
    from greenws import WebSocketHandler

    with pytest.raises(TypeError, match=f"{name} is an option of the server"):
        WebSocketHandler(lambda request, protocols: None, **{name: 5})
    assert name in DEFAULTS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_size", "max_message_size"),
        ("heartbeat", "ping_interval"),
        ("ping_timout", "ping_timeout"),
        ("compression", "deflate"),
    ],
)
def test_an_unknown_option_is_reported_with_what_was_probably_meant(name, meant):
    for construct in (Config, Config().replace):
        with pytest.raises(TypeError, match=f"unknown option {name!r}; did you mean {meant!r}?"):
            construct(**{name: 5})


def test_the_constructor_shows_its_options():
    parameters = inspect.signature(Config).parameters
    assert list(parameters) == [option.name for option in dataclasses.fields(Config)]
    assert copy.copy(Config(max_fragments=5)) == pickle.loads(pickle.dumps(Config(max_fragments=5)))
