"""Celery tasks that send to rooms: with one sender, made before the worker forks."""

from __future__ import annotations

import os
import sys

from celery import Celery

from greenws import Sender

app = Celery(broker=os.environ["REDIS_URL"])
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False

sender = Sender(os.environ["REDIS_URL"], timeout=20)
sender["r"].send("before the fork")  # so that it has a connection


@app.task
def tell(number: int) -> None:
    assert "gevent" not in sys.modules or "coverage" in sys.modules  # which imports it
    sender["r"].send(f"{os.getpid()} {number}")
