"""Whether redis-py waits as greenlets do."""

from __future__ import annotations

import pytest

from greenws import Rooms
from greenws.brokers.redis import RedisBroker


@pytest.mark.parametrize("scheme", ["redis:", "rediss:"])
def test_sockets_that_would_block_the_hub_are_refused_when_they_are_used(running, caplog, scheme):
    """Not before: manage.py and Celery import rooms that they do not use."""
    rooms = Rooms(RedisBroker(running.url.replace("redis:", scheme)))
    assert "monkey.patch_all()" in caplog.text
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"monkey.patch_all\(\)"):
            rooms["r"].send("hello")
    rooms.close()
