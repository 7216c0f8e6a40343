"""Makes greenws serve programs that import gevent-websocket's handler themselves."""

from __future__ import annotations

import sys
from typing import Any

from geventwebsocket import handler as original_handler
from geventwebsocket import server as original_server

from ..config import Config
from ..server.handler import UpgradeHandler

__all__ = ["install"]


def install(config: Config | None = None) -> None:
    """Puts ``UpgradeHandler`` in gevent-websocket's place, for programs that import its handler.

    Call it before they do: ``socketio.run(app)``, bottle-websocket, gunicorn's
    ``-k geventwebsocket.gunicorn.workers.GeventWebSocketWorker``. Modules of gevent-websocket that
    are loaded already are changed too. ``config`` sets the limits of their sessions, such as
    ``max_message_size``, which gevent-websocket does not have.
    """
    if config is not None:
        UpgradeHandler.config = config
    original_handler.WebSocketHandler = UpgradeHandler
    original_server.WebSocketServer.handler_class = UpgradeHandler
    workers: Any = sys.modules.get("geventwebsocket.gunicorn.workers")
    if workers is not None:
        workers.GeventWebSocketWorker.wsgi_handler = UpgradeHandler
