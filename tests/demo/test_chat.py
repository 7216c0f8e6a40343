"""The chat, by its JSON messages, in the process of the tests."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from greenws import ConnectionClosed
from greenws.testing import TestSocket
from run_server import make_routes

from ..support.demo import Member, MemberFactory
from ..support.limits import again_after_standstill, limit, pace


class LocalMember(Member):
    """A member whose connection is no network's."""

    connection: Any

    def receive(self) -> dict[str, Any]:
        event = json.loads(self.connection.receive())
        assert isinstance(event, dict)
        return event


@pytest.fixture
def member(websocket: Callable[..., TestSocket]) -> MemberFactory:
    """Opens a connection to the chat, and joins if there is a name."""
    routes = make_routes()

    def make(name: str | None = None) -> Member:
        member = LocalMember(
            websocket(routes, "/chat", subprotocols=["chat"], timeout=limit(20))  # type: ignore[arg-type]
        )
        if name is not None:
            member.join(name)
        return member

    return make


def test_the_first_member_is_welcomed_to_an_empty_room(member: MemberFactory) -> None:
    welcome = member().join("Ada")
    assert welcome.pop("id")
    assert welcome == {"type": "welcome", "name": "Ada", "members": ["Ada"], "history": []}


def test_a_newcomer_is_announced_and_learns_who_is_here(member: MemberFactory) -> None:
    ada = member("Ada")
    welcome = member().join("Grace")
    assert welcome["members"] == ["Ada", "Grace"]
    ada.expect(type="joined", name="Grace")


def test_a_client_that_has_not_joined_receives_nothing(member: MemberFactory) -> None:
    onlooker, ada = member(), member("Ada")
    ada.say("among ourselves")
    ada.expect(type="message")
    assert onlooker.join("Grace")["members"] == ["Ada", "Grace"]  # its first event


def test_a_message_reaches_everybody_as_it_was_written(member: MemberFactory) -> None:
    ada, grace = member("Ada"), member("Grace")
    ada.expect(type="joined", name="Grace")
    before = time.time() * 1000 - 1
    for sender, name in ((ada, "Ada"), (grace, "Grace")):
        text = f"<script>alert('{name}')</script> & \u00fc \U0001f331\nline"
        sender.say(text)
        events = [each.expect(type="message", name=name, text=text) for each in (ada, grace)]
        assert events[0] == events[1]
        assert before <= events[0]["time"] <= time.time() * 1000 + 60_000


def test_leaving_is_announced_after_a_close_and_after_a_lost_connection(
    member: MemberFactory,
) -> None:
    ada, grace, linus = member("Ada"), member("Grace"), member("Linus")
    ada.expect(type="joined", name="Grace")
    ada.expect(type="joined", name="Linus")
    grace.connection.close()
    ada.expect(type="left", name="Grace")
    linus.connection.cut()
    ada.expect(type="left", name="Linus")
    ada.say("alone again")
    ada.expect(type="message", text="alone again")
    assert member().join("Grace")["members"] == ["Ada", "Grace"]


def test_a_taken_name_gets_a_number_until_it_is_free(member: MemberFactory) -> None:
    first, second = member(), member()
    assert first.join("Ada")["name"] == "Ada"
    assert second.join("ada")["name"] == "ada (2)"
    assert member().join("ADA")["name"] == "ADA (3)"
    first.expect(type="joined", name="ada (2)")
    first.connection.close()
    second.expect(type="joined", name="ADA (3)")
    second.expect(type="left", name="Ada")
    assert member().join("Ada")["name"] == "Ada"


def test_a_long_taken_name_stays_within_the_limit(member: MemberFactory) -> None:
    names = [member().join("n" * 32)["name"] for _ in range(3)]
    assert names == ["n" * 32, "n" * 28 + " (2)", "n" * 28 + " (3)"]


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("  Ada \t Lovelace\n", "Ada Lovelace"),
        ("A\x00d\x1b[1ma\x7f", "Ad[1ma"),
        ("\u202eAda\u200b\ufeff", "Ada"),
        ("m" * 32, "m" * 32),
        ("\u65e5\u672c\u8a9e \U0001f331", "\u65e5\u672c\u8a9e \U0001f331"),
        ("<b>Ada</b>", "<b>Ada</b>"),
    ],
)
def test_invisible_characters_are_removed_from_names(
    wanted: str, given: str, member: MemberFactory
) -> None:
    assert member().join(wanted)["name"] == given


BEFORE_JOINING: list[str | bytes] = [
    "not json",
    "",
    "[]",
    "null",
    "17",
    '"join"',
    "{}",
    '{"type": "join"',
    '{"type": "unknown"}',
    '{"type": ["join"]}',
    '{"type": "message", "text": "too early"}',
    '{"type": "join"}',
    '{"type": "join", "name": null}',
    '{"type": "join", "name": 7}',
    '{"type": "join", "name": ["Ada"]}',
    '{"type": "join", "name": ""}',
    '{"type": "join", "name": " \\t "}',
    '{"type": "join", "name": "\\u0000\\u001b\\u200b\\ud800"}',
    '{"type": "join", "name": "' + "n" * 33 + '"}',
    "[" * 100_000,
    "1" * 100_000,
    b"\xff\xfe\x00",
    b"",
]


def test_bad_input_before_joining_gets_an_error_and_no_close(
    member: MemberFactory,
) -> None:
    ada = member()
    for message in BEFORE_JOINING:
        ada.connection.send(message)
        error = ada.expect(type="error")
        assert error["message"], message
    assert ada.join("Ada")["members"] == ["Ada"]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "message"},
        {"type": "message", "text": None},
        {"type": "message", "text": ["list"]},
        {"type": "message", "text": ""},
        {"type": "message", "text": " \n\t"},
        {"type": "message", "text": "x" * 2001},
        {"type": "join", "name": "Another"},
        {"type": "leave"},
        {},
    ],
    ids=lambda event: str(event)[:50],
)
def test_bad_input_after_joining_reaches_nobody_else(event: object, member: MemberFactory) -> None:
    ada, grace = member("Ada"), member("Grace")
    ada.expect(type="joined", name="Grace")
    ada.send(event)
    assert ada.expect(type="error")["message"]
    ada.say("x" * 2000)
    for each in (ada, grace):
        each.expect(type="message", name="Ada", text="x" * 2000)


def test_half_a_surrogate_pair_breaks_nothing(member: MemberFactory) -> None:
    ada, grace = member("Ada"), member("Grace")
    ada.expect(type="joined", name="Grace")
    ada.connection.send('{"type": "message", "text": "half \\ud83c of it"}')
    for each in (ada, grace):
        each.expect(type="message", text="half \ud83c of it")


def test_a_newcomer_gets_the_last_50_messages_in_order(member: MemberFactory) -> None:
    ada = member("Ada")
    for number in range(55):
        ada.say(f"message {number}")
        ada.expect(type="message")
    history = member().join("Grace")["history"]
    assert [event["text"] for event in history] == [f"message {n}" for n in range(5, 55)]
    assert {event["name"] for event in history} == {"Ada"}
    assert all(a["time"] < b["time"] for a, b in itertools.pairwise(history))


PERSON = "0123456789abcdef"


def test_the_pages_of_one_person_are_one_member(member: MemberFactory) -> None:
    ada = member("Ada")
    first, second = member(), member()
    assert first.join("Grace", person=PERSON)["members"] == ["Ada", "Grace"]
    ada.expect(type="joined", name="Grace")
    welcome = second.join("Another", person=PERSON)
    assert (welcome["name"], welcome["members"]) == ("Grace", ["Ada", "Grace"])
    second.say("from the second page")
    for each in (ada, first, second):
        each.expect(type="message", name="Grace")
    first.connection.close()
    second.say("still here")
    ada.expect(type="message", text="still here")
    second.connection.close()
    ada.expect(type="left", name="Grace")  # it has said that it leaves


def test_a_page_that_is_reloaded_is_not_reported(member: MemberFactory) -> None:
    ada, grace = member("Ada"), member()
    grace.join("Grace", person=PERSON)
    ada.expect(type="joined", name="Grace")
    grace.connection.close(1001)  # as a browser does
    again = member()
    assert again.join("Grace", person=PERSON)["name"] == "Grace"
    again.say("I am back")
    ada.expect(type="message", text="I am back")


@pytest.mark.parametrize("person", ["", "short", "x" * 65, 7, None, ["x" * 16]])
def test_a_person_without_a_proper_secret_is_a_member_for_each_page(
    person: Any, member: MemberFactory
) -> None:
    one, two = member(), member()
    assert one.join("Ada", person=person)["name"] == "Ada"
    assert two.join("Ada", person=person)["name"] == "Ada (2)"


def test_a_member_that_is_removed_learns_by_whom_and_is_closed(member: MemberFactory) -> None:
    ada, pages = member("Ada"), [member(), member()]
    for each in pages:
        each.join("Grace", person=PERSON)
    ada.expect(type="joined", name="Grace")
    ada.send({"type": "remove", "name": "Grace"})
    for each in (ada, *pages):
        removed = each.expect(type="removed", name="Grace", by="Ada")
        assert removed["id"] and removed["time"]
    ada.expect(type="left", name="Grace")
    for each in pages:
        with pytest.raises(ConnectionClosed, match="4001.*You were removed"):
            each.receive()
    assert member().join("Linus")["history"][-1]["type"] == "removed"


@pytest.mark.parametrize("name", ["Nobody", "Ada", None, ["Grace"]])
def test_nobody_is_removed_who_is_not_there(name: Any, member: MemberFactory) -> None:
    ada = member("Ada")
    ada.send({"type": "remove", "name": name})
    ada.expect(type="error", message="Nobody else here has that name.")


def test_a_rendered_page_misses_nothing_until_its_first_connection(member: MemberFactory) -> None:
    ada = member()
    position = ada.join("Ada")["id"]
    ada.say("after the page was rendered")
    ada.expect(type="message")
    grace = member()
    grace.send({"type": "join", "name": "Grace", "since": position})
    grace.expect(type="message", text="after the page was rendered")
    assert grace.expect(type="welcome")["history"] == []


@again_after_standstill(0.5)
def test_a_member_that_does_not_read_delays_nobody(member: MemberFactory) -> None:
    sloth, ada, grace = member("Sloth"), member("Ada"), member("Grace")
    ada.expect(type="joined", name="Grace")
    sloth.connection.stall()
    text = "\u00fc" * 2000  # 12,000 bytes as JSON

    for _ in range(300):  # more than the room's queue holds
        started = time.monotonic()
        ada.say(text)
        for each in (ada, grace):
            each.expect(type="message", name="Ada", text=text)
        assert time.monotonic() - started < pace(2)
    sloth.connection.resume()
    with pytest.raises(ConnectionClosed, match="1013"):
        while True:
            sloth.receive()
    for each in (ada, grace):
        each.expect(type="left", name="Sloth")
