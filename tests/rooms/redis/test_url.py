"""The URL of a Redis."""

from __future__ import annotations

import gevent
import pytest
from redis.connection import SSLConnection

from greenws import Rooms
from greenws.brokers.redis import RedisBroker
from greenws.rooms.redis.url import check_url, connect, parse

from ...support.limits import wait_until


def test_a_unix_socket(server, worker, tmp_path, monkeypatch):
    path = tmp_path / "redis.sock"
    server.stop()
    monkeypatch.setattr(server, "_options", ("--unixsocket", str(path)))
    server.start()
    monkeypatch.setattr(server, "url", f"unix://{path}?db=0&socket_timeout=9")
    a = worker(timeout=5.0)
    ann = a.join()
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert a.node.process.commands.client.connection_pool.connection_kwargs["socket_timeout"] == 5.0


def test_a_url_makes_a_redis_broker(server):
    rooms = Rooms(server.url)
    assert isinstance(rooms.broker, RedisBroker)
    rooms.close()


@pytest.mark.parametrize(
    "options",
    ["decode_responses=true", "health_check_interval=1", "socket_timeout=0.01", "protocol=3"],
)
def test_options_in_the_url_that_would_do_harm_do_none(server, worker, options):
    server.url, url = f"{server.url}?{options}", server.url
    a = worker()
    server.url = url
    ann = a.join()
    wait_until(lambda: a.is_idle)
    gevent.sleep(0.05)
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert not a.is_lost


def test_an_option_that_redis_py_does_not_know_is_refused(server):
    with pytest.raises(ValueError, match="foo"):
        RedisBroker(server.url + "?foo=bar")


@pytest.mark.parametrize(
    ("text", "kind", "hosts", "master", "name"),
    [
        ("redis://a", "", (), "", "a:6379/0"),
        ("rediss://u:p@a:1/2?ssl_cert_reqs=none", "", (), "", "a:1/2"),
        ("unix:///run/r.sock?db=3", "", (), "", "/run/r.sock/3"),
        ("redis+sentinel://a/m", "sentinel", (("a", 26379),), "m", "sentinel:a:26379/m/0"),
        (
            "redis+sentinel://u:p@b:2,a/m/4?socket_timeout=1",
            "sentinel",
            (("b", 2), ("a", 26379)),
            "m",
            "sentinel:a:26379,b:2/m/4",
        ),
        (
            "redis+cluster://:p@a:1,[::1]:2",
            "cluster",
            (("a", 1), ("::1", 2)),
            "",
            "cluster:[::1]:2,a:1//0",
        ),
    ],
)
def test_the_forms_of_a_url(text, kind, hosts, master, name):
    address = parse(text)
    assert (address.kind, address.hosts, address.master) == (kind, hosts, master)
    assert address.name == name


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("redis+foo://secret@a", "redis\\+sentinel://"),
        ("http://u:secret@a", "not 'http://a'"),
        ("u:secret@localhost:6379", r"redis://, rediss://, unix://, .*, not 'localhost:6379'"),
        ("redis+sentinel://u:secret@a", "names no master"),
        ("redis+sentinel://u:secret@a/m/x", "the database must be a number"),
        ("redis+cluster://u:secret@a/1", "database 0 only"),
        ("redis+cluster://u:secret@a:b", "host:port"),
        ("redis+cluster://u:secret@", "host:port"),
        ("redis+cluster://u:secret@a?foo=bar", "foo"),
        ("redis+sentinel://u:secret@a/m?sentinel_foo=bar", "foo"),
        ("redis+sentinel://u:secret@a/m?foo=bar", "foo"),
    ],
)
def test_what_is_no_url_is_refused_without_its_password(text, match):
    with pytest.raises(ValueError, match=match) as caught:
        check_url(text)
    assert "secret" not in str(caught.value)


def test_sentinels_have_a_password_of_their_own():
    client = connect("rediss+sentinel://u:p@a,b:2/m/3?sentinel_password=q", 5.0, 5.0)
    pool = client.connection_pool
    assert (pool.service_name, pool.connection_kwargs["username"]) == ("m", "u")
    assert (pool.connection_kwargs["password"], pool.connection_kwargs["db"]) == ("p", 3)
    first, second = (
        each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels
    )
    assert (first["host"], second["port"]) == ("a", 2)
    assert (first["password"], first.get("username")) == ("q", None)
    assert first["socket_timeout"] < 5.0
    assert issubclass(
        pool.sentinel_manager.sentinels[0].connection_pool.connection_class, SSLConnection
    )
