"""``webroot/reconnecting.js`` in node, with the WebSocket of ``ws``; test_browser.py has it in a
browser."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import gevent

from greenws import Rooms, Routes
from greenws.rooms import json_id

from ..support.limits import limit
from ..support.paths import ROOT
from ..support.require import require, require_program

NODE = ROOT / "tests" / "node"


def test_a_page_that_opens_again_after_4001_misses_nothing(serve: Callable[..., Any]) -> None:
    require_program("node")
    require((NODE / "node_modules" / "ws").is_dir(), "ws (npm --prefix tests/node install)")
    rooms, routes, offered = Rooms(stamp=json_id), Routes(), []

    @routes.websocket("/news", protocols=["old", "new"])
    def news(request, socket):
        offered.append(socket.subprotocol)
        room = rooms["news"]
        with room.join(socket, since=request.args["since"], gap='{"gap": true}'):
            room.send({"text": socket.subprotocol})
        # The page is not there, and has missed this if it comes back without a position.
        room.send({"text": f"after {socket.subprotocol}"})
        socket.close(4001, "token expired")

    address = f"http://127.0.0.1:{serve(routes).server_port}/"
    order = {
        "module": (ROOT / "webroot" / "reconnecting.js").as_uri(),
        "address": address,
        "protocols": ["old", "new"],
    }

    def play() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["node", NODE / "come_back.mjs"],
            input=json.dumps(order),
            capture_output=True,
            encoding="utf-8",
            timeout=limit(20),
        )

    done = gevent.get_hub().threadpool.apply(play)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert offered == ["old", "new"]
    assert [message["text"] for message in seen["messages"]] == ["old", "after old", "new"]
    ids = [message["id"] for message in seen["messages"]]
    expired = [4001, "token expired"]
    assert seen["closes"] == [[*expired, ids[0]], [*expired, ids[2]]]
    assert seen["sent"] == [False, False]
    assert seen["lastId"] is None
    connection = ["connecting", "open", "closed"]
    assert seen["states"] == ["connecting", *connection, *connection, "closed"]


def test_an_attempt_ends_whatever_the_page_does() -> None:
    require_program("node")
    module = (ROOT / "webroot" / "reconnecting.js").as_uri()
    done = subprocess.run(
        ["node", NODE / "attempts.mjs", module],
        capture_output=True,
        encoding="utf-8",
        timeout=limit(20),
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    # A function that never answers has failed, and is called again.
    assert seen["delays"] == [30000]
    unanswered = seen["unanswered"]
    assert unanswered["states"] == ["connecting", "waiting", "connecting", "closed"]
    [(code, reason)] = unanswered["closes"]
    assert (code, "took longer than 30 s" in reason) == (1006, True)
    assert unanswered["connected"] == ["ws://localhost/answered"]
    assert unanswered["timers"] == 0

    # An invalid subprotocol is an error that the page sees, and is not tried again.
    error = "SyntaxError: invalid subprotocol: not valid"
    ended = {"states": ["connecting", "closed"], "closes": []}
    assert seen["value"] == {**ended, "thrown": error}
    assert seen["answer"] == {**ended, "rejected": [error]}

    # A page that has closed the socket is not asked, and nothing follows.
    assert seen["closed"] == {**ended, "asked": 0}
    assert seen["loggedOut"] == ended
