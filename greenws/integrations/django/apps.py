"""The application for ``INSTALLED_APPS``."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from ...surroundings import log_patched_late
from . import server, waits
from .checks import check_views

__all__ = ["GreenwsConfig"]


class GreenwsConfig(AppConfig):  # type: ignore[misc]
    name = "greenws.integrations.django"
    label = "greenws"
    verbose_name = "greenws"

    def ready(self) -> None:
        server.install()
        waits.install()
        log_patched_late()
        checks.register(check_views, "greenws")
