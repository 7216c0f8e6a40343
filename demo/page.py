"""The page with the chat, rendered with what the room holds and its position."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug import Request, Response

from greenws import BrokerUnavailable, Rooms

from .chat import MAX_HISTORY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_EMPTY = '<script type="application/json" id="chat-page">{}</script>'


class ChatPage:
    """A WSGI application: ``file`` with the messages of the room that ``?room=`` names, and the
    position after them. A socket that gives it as "since" gets what is sent between the rendering
    and its join: nothing is requested twice, and nothing is missed.
    """

    def __init__(self, file: Path, rooms: Rooms) -> None:
        self._file = file
        self._rooms = rooms

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        room = request.args.get("room") or "lobby"
        html = self._file.read_text(encoding="utf-8").replace(_EMPTY, self._data(room), 1)
        response = Response(html, content_type="text/html; charset=utf-8")
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response(environ, start_response)

    def _data(self, name: str) -> str:
        found: dict[str, Any] = {}
        try:
            room = self._rooms[name]
            # First the position: a message sent between the two is in both, not in neither.
            position = room.position
            history = [json.loads(message) for message in room.history(MAX_HISTORY)]
            found = {"room": name, "position": position, "history": history}
        except (BrokerUnavailable, UnicodeEncodeError):  # its socket gets the history, if any
            pass
        # Nothing in it may end the element.
        text = json.dumps(found).replace("<", "\\u003c")
        return _EMPTY.replace("{}", text)
