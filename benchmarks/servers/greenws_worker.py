"""greenws's worker for gunicorn, with as many connections as descriptors."""

from __future__ import annotations

from greenws import Config, gunicorn


class Worker(gunicorn.Worker):
    config = Config(max_connections=None)
