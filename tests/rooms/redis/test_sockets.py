"""Whether redis-py waits as greenlets do."""

from __future__ import annotations

import gevent
import gevent.socket
import pytest
import redis

from greenws import Rooms
from greenws.brokers.redis import RedisBroker
from greenws.rooms.redis.sockets import own_socket

from ...support.limits import stays


@pytest.mark.parametrize("scheme", ["redis:", "rediss:"])
def test_sockets_that_would_block_the_hub_are_refused_when_they_are_used(running, caplog, scheme):
    """Not before: manage.py and Celery import rooms that they do not use."""
    rooms = Rooms(RedisBroker(running.url.replace("redis:", scheme)))
    assert "monkey.patch_all()" in caplog.text
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"monkey.patch_all\(\)"):
            rooms["r"].send("hello")
    rooms.close()


def test_a_child_forked_while_its_parent_connected_leaves_the_connection_alone():
    ours, redis_s = gevent.socket.socketpair()
    connection = redis.Connection(redis_connect_func=own_socket)
    connection.pid += 1  # as the child sees it
    connection._connect = lambda: ours
    connecting = gevent.spawn(connection.connect)
    stays(lambda: not connecting.ready())
    connecting.kill()
    ours.close()
    assert redis_s.recv(1) == b""
    redis_s.close()
