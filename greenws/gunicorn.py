"""The short address of the worker: ``gunicorn -k greenws.gunicorn.Worker``."""

from __future__ import annotations

from .integrations.gunicorn import Worker as Worker
