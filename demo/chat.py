"""The chat: rooms by name, JSON messages, a history, and who is there."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from greenws import Room, Rooms, WebSocket
from greenws.brokers import BrokerUnavailable

MAX_NAME = 32
MAX_TEXT = 2000
MAX_HISTORY = 50


class BadInput(ValueError):
    """Input that the room refuses; the message is for the person who sent it."""


class Chat:
    """Rooms by name. Each text message in either direction is one JSON object.

    A client sends {"type": "join", "name"}, then any number of {"type": "message", "text"}, and
    leaves by closing. It gets "welcome" (the name it was given, the members, the history, the "id"
    up to which that is), then "joined", "left" and "message" as they happen, each with an "id", and
    "error" for what was refused. One that comes back adds "since", the last id it saw, to "join":
    it gets what it missed before its welcome, and "gap" if that is not all known any more.
    """

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._last_time = 0

    def attend(self, socket: WebSocket, room: Room) -> None:
        """Serve one client until its connection ends."""
        with contextlib.ExitStack() as membership:
            name = ""
            for message in socket:
                try:
                    event = self._parse(message)
                    if event.get("type") == "join" and not name:
                        name = self._join(membership, socket, room, event)
                    elif event.get("type") == "message" and name:
                        self._say(room, name, event.get("text"))
                    else:
                        raise BadInput(
                            'Join once, with a "name", and then send messages with a "text".'
                        )
                except BadInput as error:
                    socket.send(json.dumps({"type": "error", "message": str(error)}))

    def _parse(self, message: str | bytes) -> dict[str, Any]:
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise BadInput("A message must be a JSON object.")
        return event

    def _join(
        self,
        membership: contextlib.ExitStack,
        socket: WebSocket,
        room: Room,
        event: dict[str, Any],
    ) -> str:
        wanted, since = event.get("name"), event.get("since")
        name = " ".join(wanted.split()) if isinstance(wanted, str) else ""
        name = "".join(character for character in name if character.isprintable()).strip()
        if not 1 <= len(name) <= MAX_NAME:
            raise BadInput(f"A name needs 1 to {MAX_NAME} visible characters.")
        since = since if isinstance(since, str) else None
        name = _free_name(name, room)
        member = membership.enter_context(
            room.join(
                socket,
                since=since,
                gap=json.dumps({"type": "gap"}),
                presence=self._tell_presence,
                name=name,
            )
        )
        history = [] if since else [json.loads(message) for message in room.history(MAX_HISTORY)]
        welcome = {
            "type": "welcome",
            "name": name,
            "members": [str(each.info.get("name")) for each in room.members],
            "history": history,
            "id": member.position,
        }
        socket.send(json.dumps(welcome))
        socket.send(self._tell_presence("join", member.info))
        return name

    def _tell_presence(self, kind: str, info: dict[str, Any]) -> str:
        event = {"type": "joined" if kind == "join" else "left", "name": info.get("name")}
        return json.dumps({**event, "time": self._now()})

    def _say(self, room: Room, name: str, text: object) -> None:
        text = text.strip() if isinstance(text, str) else ""
        if not 1 <= len(text) <= MAX_TEXT:
            raise BadInput(f"A message needs a text of 1 to {MAX_TEXT} characters.")
        said = {"type": "message", "name": name, "text": text, "time": self._now()}
        try:
            room.send(json.dumps(said))
        except BrokerUnavailable:
            raise BadInput("The chat is cut off from its other servers; try again.") from None

    def _now(self) -> int:
        """Milliseconds since 1970, never the same twice."""
        self._last_time = max(self._last_time + 1, int(time.time() * 1000))
        return self._last_time


def _free_name(wanted: str, room: Room) -> str:
    """The name itself, or with a number behind it when somebody here has it."""
    taken = {str(member.info.get("name")).casefold() for member in room.members}
    name, number = wanted, 1
    while name.casefold() in taken:
        number += 1
        suffix = f" ({number})"
        name = wanted[: MAX_NAME - len(suffix)] + suffix
    return name
