"""Whether redis-py waits as greenlets do."""

from __future__ import annotations

import pytest

from greenws.brokers.redis import RedisBroker


def test_sockets_that_would_block_the_hub_are_refused(running):
    with pytest.raises(RuntimeError, match=r"monkey.patch_all\(\)"):
        RedisBroker(running.url)


def test_tls_that_would_block_the_hub_is_refused(server):
    with pytest.raises(RuntimeError, match=r"monkey.patch_all\(\)"):
        RedisBroker(server.url.replace("redis:", "rediss:"))
