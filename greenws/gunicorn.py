"""Where gunicorn finds the worker: ``gunicorn -k greenws.gunicorn.Worker``."""

from __future__ import annotations

from .integrations.gunicorn import Worker as Worker
