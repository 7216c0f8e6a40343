"""The chat: a JSON protocol over the rooms of greenws."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from greenws import CloseCode, Member, Room, WebSocket
from greenws.brokers import BrokerUnavailable

MAX_NAME = 32  # characters
MAX_TEXT = 2000
MAX_HISTORY = 50  # messages that a new member gets
MIN_PERSON, MAX_PERSON = 16, 64  # characters of a person's secret
LINGER = 5.0  # seconds for which a person whose pages are gone is still a member
REMOVED = 4001  # the close code of a member that was removed
UNREACHABLE = "This server cannot reach the others. Please try again."


class BadInput(ValueError):
    """Input that the chat refuses; its text is for the person who sent it."""


class Chat:
    """Serves the members of all rooms. Each text message in either direction is one JSON object.

    A client sends {"type": "join", "name"}, then any number of {"type": "message", "text"}, and
    leaves by closing the connection. First it gets "welcome": the "name" that it was given, the
    "members", the "history", and the "id" up to which the history goes. After that it gets
    "joined", "left" and "message" as they happen, each with an "id", and "error" if its input was
    refused.

    A client that comes back adds "since", the last id that it saw, to "join"; a page that was
    rendered with the history, the position after it. It gets the messages that it missed before its
    welcome, with "gap" where some of them are no longer known.

    A client may add "person", a secret that all pages of one person share: they are one member,
    with one name, also while a page is reloaded. {"type": "remove", "name"} removes a member
    (any member may do that: it is a demo). All get "removed", with "name" and "by"; the pages
    of that person are closed with 4001.
    """

    def __init__(self) -> None:
        self._last_time = 0

    def serve(self, socket: WebSocket, room: Room) -> None:
        """Serve one client until its connection ends."""
        with contextlib.ExitStack() as membership:
            member: Member | None = None
            for message in socket:
                try:
                    event = self._parse(message)
                    if event.get("type") == "join" and member is None:
                        member = self._join(membership, socket, room, event)
                    elif event.get("type") == "message" and member is not None:
                        self._send(room, member.info["name"], event.get("text"))
                    elif event.get("type") == "remove" and member is not None:
                        self._remove(room, member, event.get("name"))
                    else:
                        raise BadInput(
                            'Send one "join" with a "name" first, then "message" with a "text".'
                        )
                except BadInput as error:
                    socket.send(json.dumps({"type": "error", "message": str(error)}))
            if member is not None and socket.close_code == CloseCode.NORMAL:
                member.linger = 0.0  # it has left; a page that is reloaded closes with 1001

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
    ) -> Member:
        wanted, since = event.get("name"), event.get("since")
        name = " ".join(wanted.split()) if isinstance(wanted, str) else ""
        name = "".join(character for character in name if character.isprintable()).strip()
        if not 1 <= len(name) <= MAX_NAME:
            raise BadInput(f"A name must have 1 to {MAX_NAME} visible characters.")
        since = since if isinstance(since, str) else None
        person = event.get("person")
        if not isinstance(person, str) or not MIN_PERSON <= len(person) <= MAX_PERSON:
            person = None
        name = _free_name(name, room, person)
        member = membership.enter_context(
            room.join(
                socket,
                since=since,
                gap=json.dumps({"type": "gap"}),
                presence=self._presence_event,
                presence_key=person,
                presence_linger=LINGER if person else 0,
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
        socket.send(self._presence_event("join", member.id, member.info))
        return member

    def _presence_event(self, kind: str, member: str, info: dict[str, Any]) -> str:
        event = {"type": "joined" if kind == "join" else "left", "name": info.get("name")}
        return json.dumps({**event, "time": self._now()})

    def _send(self, room: Room, name: str, text: object) -> None:
        text = text.strip() if isinstance(text, str) else ""
        if not 1 <= len(text) <= MAX_TEXT:
            raise BadInput(f"The text of a message must have 1 to {MAX_TEXT} characters.")
        event = {"type": "message", "name": name, "text": text, "time": self._now()}
        try:
            room.send(json.dumps(event))
        except BrokerUnavailable:
            raise BadInput(UNREACHABLE) from None

    def _remove(self, room: Room, member: Member, name: object) -> None:
        found = [each for each in room.members if each.info.get("name") == name]
        if not found or found[0].id == member.id:
            raise BadInput("Nobody else here has that name.")
        event = {"type": "removed", "name": name, "by": member.info["name"], "time": self._now()}
        try:
            room.send(json.dumps(event))
            room.disconnect(REMOVED, "You were removed from the room.", found[0])
        except BrokerUnavailable:
            raise BadInput(UNREACHABLE) from None

    def _now(self) -> int:
        """Milliseconds since 1970, never the same value twice."""
        self._last_time = max(self._last_time + 1, int(time.time() * 1000))
        return self._last_time


def _free_name(wanted: str, room: Room, person: str | None) -> str:
    """The name itself, or with a number appended if a member of the room has it. A person who is
    there already has one."""
    members = room.members
    for member in members:
        if member.id == person:
            return str(member.info.get("name"))
    taken = {str(member.info.get("name")).casefold() for member in members}
    name, number = wanted, 1
    while name.casefold() in taken:
        number += 1
        suffix = f" ({number})"
        name = wanted[: MAX_NAME - len(suffix)] + suffix
    return name
