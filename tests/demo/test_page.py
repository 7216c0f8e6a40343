"""The page with the chat: rendered with what the room holds, and where that ends."""

from __future__ import annotations

import json
import re
from typing import Any

from werkzeug.test import Client

from demo.page import ChatPage
from greenws import BrokerUnavailable, Rooms
from greenws.rooms import json_id
from run_server import WEBROOT, make_routes


def page_data(client: Client, path: str = "/") -> dict[str, Any]:
    response = client.get(path)
    assert (response.status_code, response.mimetype) == (200, "text/html")
    html = response.get_data(as_text=True)
    (text,) = re.findall(r'<script type="application/json" id="chat-page">(.*?)</script>', html)
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_it_holds_the_history_and_the_position_after_it() -> None:
    rooms = Rooms(stamp=json_id)
    client = Client(ChatPage(WEBROOT / "index.html", rooms))
    empty = page_data(client)
    assert (empty["room"], empty["history"]) == ("lobby", [])
    rooms["garden"].send({"type": "message", "text": "elsewhere"})
    rooms["lobby"].send({"type": "message", "text": "</script><b>"})
    found = page_data(client)
    (message,) = found["history"]
    assert message["text"] == "</script><b>"
    assert message["id"] == found["position"] != empty["position"]
    assert page_data(client, "/?room=garden")["history"][0]["text"] == "elsewhere"


def test_a_room_that_has_no_name_it_could_have_is_rendered_without() -> None:
    assert page_data(Client(make_routes()), "/?room=%ED%A0%80")["history"] == []


def test_a_redis_that_is_down_leaves_the_rest_to_the_socket() -> None:
    class Down(Rooms):
        def __getitem__(self, name: str) -> Any:
            raise BrokerUnavailable("down")

    assert page_data(Client(ChatPage(WEBROOT / "index.html", Down()))) == {}
