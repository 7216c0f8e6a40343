"""Clients that are not ours: ``websockets``, ``websocket-client`` and Node's ``ws``.

Each plays the same scripts of actions against a server in this process; the clients block, so they
run in the hub's thread pool.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
import websocket as websocket_client
import websockets
from gevent import ssl as gevent_ssl
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import ClientConnection
from werkzeug.exceptions import Unauthorized

from greenws import Config, OpcodeType, Routes, WebSocketHandler, WebSocketServer

from .support.limits import limit, wait_until
from .support.paths import TESTS
from .support.processes import connect
from .support.require import require, require_program

NODE = TESTS / "node"
MIB = 1 << 20

Payload = str | bytes


@dataclass
class Played:
    """What a client saw while it played a script."""

    protocol: str | None = None
    extensions: str = ""
    received: list[Payload] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    close: tuple[int, str] | None = None  # the server's code and reason, as the client knows them
    refused: tuple[int, str] | None = None  # status and body of the answer that was no 101


# A script is a list of (action, argument): ("send", payload), ("fragments", [payload, ...]),
# ("receive", count), ("ping", payload), ("close", [code, reason]). At its end, and always when it
# did not close itself, the client waits for the server's Close.
Script = list[tuple[str, Any]]
Play = Callable[..., Played]


def play_websockets(
    url: str,
    script: Script,
    protocols: Any = None,
    ca: Any = None,
    headers: Any = None,
    deflate: dict[str, Any] | None = None,
) -> Played:
    played = Played()
    context = ssl.create_default_context(cafile=ca) if ca else None
    options = {"subprotocols": protocols, "ssl": context, "additional_headers": headers}
    if deflate is not None:
        options["extensions"] = [ClientPerMessageDeflateFactory(**deflate)]
    try:
        with connect(url, **options) as client:
            _converse(client, script, played)
    except websockets.InvalidStatus as error:
        played.refused = (error.response.status_code, (error.response.body or b"").decode())
    return played


def _converse(client: ClientConnection, script: Script, played: Played) -> None:
    played.protocol = client.subprotocol
    played.extensions = ", ".join(extension.name for extension in client.protocol.extensions)
    closed = False
    for action, argument in script:
        if action == "send":
            client.send(argument)
        elif action == "fragments":
            client.send(iter(argument))  # websockets ends it with an empty fragment of its own
        elif action == "receive":
            played.received += [client.recv(limit(10)) for _ in range(argument)]
        elif action == "ping":
            assert client.ping(argument).wait(limit(10)), "no pong"
            played.pongs.append(argument)
        elif action == "close":
            client.close(*argument)
            closed = True
    if not closed:
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                played.received.append(client.recv(limit(10)))
    assert client.protocol.close_rcvd is not None
    played.close = (client.protocol.close_rcvd.code, client.protocol.close_rcvd.reason)


def play_websocket_client(
    url: str, script: Script, protocols: Any = None, ca: Any = None, headers: Any = None
) -> Played:
    played = Played()
    try:
        client = websocket_client.create_connection(
            url,
            timeout=limit(10),
            subprotocols=protocols,
            sslopt={"ca_certs": ca} if ca else None,
            header=headers,
            http_no_proxy=["*"],
        )
    except websocket_client.WebSocketBadStatusException as error:
        played.refused = (error.status_code, (error.resp_body or b"").decode())
        return played
    played.protocol = client.subprotocol
    abnf = websocket_client.ABNF

    def receive() -> int:
        """One message, pong or Close; pings are answered by the library."""
        opcode, data = client.recv_data(control_frame=True)
        if opcode == abnf.OPCODE_TEXT:
            played.received.append(data.decode())
        elif opcode == abnf.OPCODE_BINARY:
            played.received.append(data)
        elif opcode == abnf.OPCODE_PONG:
            played.pongs.append(data)
        elif opcode == abnf.OPCODE_CLOSE:
            code = int.from_bytes(data[:2], "big") if data else 1005
            played.close = (code, data[2:].decode())
        return opcode

    for action, argument in script:
        if action == "send":
            kind = abnf.OPCODE_TEXT if isinstance(argument, str) else abnf.OPCODE_BINARY
            client.send(argument, kind)
        elif action == "fragments":
            kind = abnf.OPCODE_TEXT if isinstance(argument[0], str) else abnf.OPCODE_BINARY
            for i, part in enumerate(argument):
                opcode = abnf.OPCODE_CONT if i else kind
                data = part.encode() if isinstance(part, str) else part
                client.send_frame(abnf.create_frame(data, opcode, int(i == len(argument) - 1)))
        elif action == "receive":
            wanted = len(played.received) + argument
            while len(played.received) < wanted:
                receive()
        elif action == "ping":
            client.ping(argument)
            while argument not in played.pongs:
                receive()
        elif action == "close":
            code, reason = argument
            client.send_close(code, reason.encode())
    while played.close is None:
        receive()
    client.shutdown()
    return played


def play_node(
    url: str,
    script: Script,
    protocols: Any = None,
    ca: Any = None,
    headers: Any = None,
    deflate: dict[str, Any] | None = None,
) -> Played:
    def pack(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"hex": value.hex()}
        return {"text": value} if isinstance(value, str) else [pack(item) for item in value]

    def unpack(value: dict[str, str]) -> Payload:
        return bytes.fromhex(value["hex"]) if "hex" in value else value["text"]

    packed = [
        {action: argument if action in ("receive", "close") else pack(argument)}
        for action, argument in script
    ]
    options: dict[str, Any] = {"headers": headers or {}}
    if deflate is not None:
        camel = {re.sub("_(.)", lambda m: m[1].upper(), name): v for name, v in deflate.items()}
        options["perMessageDeflate"] = {"threshold": 0, **camel}
    if headers and "Sec-WebSocket-Version" in headers:
        options["protocolVersion"] = int(headers["Sec-WebSocket-Version"])
    if ca:
        options["ca"] = Path(ca).read_text()
    order = {"url": url, "protocols": protocols or [], "options": options, "script": packed}
    done = subprocess.run(
        ["node", NODE / "play.mjs"],
        input=json.dumps(order),
        capture_output=True,
        encoding="utf-8",
        timeout=limit(20),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "error" not in result, result["error"]
    return Played(
        result["protocol"],
        result["extensions"],
        [unpack(item) for item in result["received"]],
        [bytes.fromhex(item) for item in result["pongs"]],
        result["close"] and tuple(result["close"]),
        result["refused"] and tuple(result["refused"]),
    )


CLIENTS = {
    "websockets": play_websockets,
    "websocket-client": play_websocket_client,
    "node-ws": play_node,
}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    if request.param == "node-ws":
        require_program("node")
        require((NODE / "node_modules" / "ws").is_dir(), "ws (npm --prefix tests/node install)")
    return request.param


@pytest.fixture
def play(client: str) -> Play:
    function = CLIENTS[client]

    def run(*args: Any, **options: Any) -> Played:
        with gevent.Timeout(limit(30)):
            return gevent.get_hub().threadpool.apply(function, args, options)

    return run


class Services:
    """The server's side: what it serves, and the closes that it saw."""

    def __init__(self) -> None:
        self.closes: list[tuple[int | None, str | None]] = []
        self.routes = routes = Routes()

        @routes.websocket("/echo")
        def echo(request, socket):
            for message in socket:
                socket.send(message)

        @routes.websocket("/fragments")
        def fragments(request, socket):
            """Sends every fragment back as a fragment."""
            kind = None
            while True:
                data, opcode, final = socket.read_bytes_message()
                if data is None:
                    return
                if opcode is not OpcodeType.CONTINUATION:
                    kind = opcode
                if kind is OpcodeType.TEXT:
                    socket.send_string_message(data.decode(), final)
                else:
                    socket.send_binary_message(data, final)

        @routes.websocket("/welcome")
        def welcome(request, socket):
            socket.send("welcome")

        @routes.websocket("/ping")
        def ping(request, socket):
            socket.send(f"answered: {socket.ping(timeout=limit()) < limit()}")
            socket.send_ping(b"are you there")
            pong = socket.read_bytes_message()
            socket.send(f"{pong.opcode.name} {pong.data.decode()}")

        @routes.websocket("/chat", protocols=["chat", "superchat"])
        def chat(request, socket):
            socket.send(str(socket.subprotocol))

        @routes.websocket("/close/<int:code>/<reason>")
        def close(request, socket, code, reason):
            socket.close(code, reason)

        @routes.websocket("/crash")
        def crash(request, socket):
            raise ValueError("of the handler")

        @routes.websocket("/listen")
        def listen(request, socket):
            try:
                while socket.is_connected:
                    socket.read_bytes_message()
            finally:
                self.closes.append((socket.close_code, socket.close_reason))

        def nothing(request, protocols):
            return None

        def nobody(request, protocols):
            raise Unauthorized("Log in first.")

        routes.add(uri="/nothing", handler=WebSocketHandler(nothing))
        routes.add(uri="/secret", handler=WebSocketHandler(nobody))


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def url(serve: Any, services: Services) -> str:
    return f"ws://127.0.0.1:{serve(services.routes).server_port}"


@dataclass
class Tls:
    url: str
    ca: str


@pytest.fixture
def tls(serve: Any, services: Services, tmp_path: Path) -> Tls:
    authority = trustme.CA()
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # websockets reads in a thread what comes behind the handshake, while it sends its request; the
    # ssl of older Pythons is not made for that, and one in a thousand connections hangs.
    context.num_tickets = 0
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = serve(services.routes, ssl_context=context)
    return Tls(f"wss://127.0.0.1:{server.server_port}", str(tmp_path / "ca.pem"))


PAYLOADS: list[Payload] = [
    "hello",
    b"\x00\xff bytes",
    "",
    b"",
    "grün \N{GREEN HEART} \u0000",
    "x" * 125,
    "x" * 126,
    b"y" * 65535,
    b"y" * 65536,
    "ü" * (MIB // 2),
    bytes(range(256)) * (MIB // 256),
]
CLOSE = ("close", [1000, ""])


def test_echo_of_every_size_and_kind(play: Play, url: str) -> None:
    script = [step for payload in PAYLOADS for step in [("send", payload), ("receive", 1)]]
    played = play(f"{url}/echo", [*script, CLOSE])
    assert played.received == PAYLOADS
    assert played.close == (1000, "")


def test_a_pipeline_of_messages_comes_back_in_order(play: Play, url: str) -> None:
    messages = [f"message {i} {'x' * (i % 300)}" for i in range(1000)]
    script = [*[("send", message) for message in messages], ("receive", 1000), CLOSE]
    assert play(f"{url}/echo", script).received == messages


def test_over_tls(play: Play, tls: Tls) -> None:
    script = [step for payload in PAYLOADS for step in [("send", payload), ("receive", 1)]]
    pipeline = [f"message {i}" for i in range(200)]
    script += [*[("send", message) for message in pipeline], ("receive", 200)]
    script += [("ping", b"over tls"), ("close", [4000, "done"])]
    played = play(f"{tls.url}/echo", script, ca=tls.ca)
    assert played.received == PAYLOADS + pipeline
    assert played.pongs == [b"over tls"]
    assert played.close == (4000, "done")


@pytest.mark.parametrize("client", ["websockets", "node-ws"], indirect=True)
@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize(
    "deflate",
    [
        {},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_max_window_bits": 9, "client_max_window_bits": 10},
    ],
    ids=["default", "no_takeover", "windows"],
)
def test_compressed_messages(
    play: Play, serve: Any, deflate: dict[str, Any], takeover: bool
) -> None:
    config = Config(deflate_takeover=takeover, deflate_peer_takeover=takeover, deflate_threshold=0)
    server = serve(Services().routes, config=config)
    script = [step for payload in PAYLOADS for step in [("send", payload), ("receive", 1)]]
    parts = ["greenws " * 999, "", "grün" * 999, "", ""]
    script += [("fragments", parts), ("ping", b"between"), ("receive", 1), *script[:6], CLOSE]
    played = play(f"ws://127.0.0.1:{server.server_port}/echo", script, deflate=deflate)
    assert played.extensions == "permessage-deflate"
    assert played.received == [*PAYLOADS, "".join(parts), *PAYLOADS[:3]]
    assert played.pongs == [b"between"]
    assert played.close == (1000, "")
    fragmented = [("fragments", parts), ("fragments", [b"\x01" * 70000, b"\x02", b""])]
    played = play(
        f"ws://127.0.0.1:{server.server_port}/fragments",
        [*fragmented, *fragmented, ("receive", 4), CLOSE],
        deflate=deflate,
    )
    assert played.received == ["".join(parts), b"\x01" * 70000 + b"\x02"] * 2


def test_fragments_of_the_client_are_one_message(play: Play, url: str) -> None:
    script = [
        ("fragments", ["one ", "two ", "three"]),
        ("fragments", [b"\x01" * 70000, b"\x02", b"\x03" * 200]),
        ("fragments", ["", "empty at first"]),
        ("receive", 3),
        CLOSE,
    ]
    assert play(f"{url}/echo", script).received == [
        "one two three",
        b"\x01" * 70000 + b"\x02" + b"\x03" * 200,
        "empty at first",
    ]


def test_fragments_of_the_server_are_one_message(play: Play, url: str) -> None:
    script = [
        ("fragments", ["grün", " und ", "weiß"]),
        ("fragments", [b"\x01" * 70000, b"\x02", b""]),
        ("send", "whole"),
        ("receive", 3),
        CLOSE,
    ]
    assert play(f"{url}/fragments", script).received == [
        "grün und weiß",
        b"\x01" * 70000 + b"\x02",
        "whole",
    ]


def test_ping_and_pong(play: Play, url: str) -> None:
    script = [("ping", b"ping"), ("ping", b"x" * 125), ("send", "after"), ("receive", 1), CLOSE]
    played = play(f"{url}/echo", script)
    assert played.pongs == [b"ping", b"x" * 125]
    assert played.received == ["after"]


def test_the_server_pings(play: Play, url: str) -> None:
    played = play(f"{url}/ping", [("receive", 2)])
    assert played.received == ["answered: True", "PONG are you there"]
    assert played.close == (1000, "")


def test_what_the_server_sends_at_once_is_not_lost(play: Play, url: str) -> None:
    played = play(f"{url}/welcome", [])
    assert played.received == ["welcome"]
    assert played.close == (1000, "")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["chat"], "chat"),
        (["superchat", "chat"], "superchat"),  # the client's preference
        (["unknown", "chat"], "chat"),
    ],
)
def test_subprotocol(play: Play, url: str, offered: list[str], chosen: str) -> None:
    played = play(f"{url}/chat", [("receive", 1)], protocols=offered)
    assert played.protocol == chosen
    assert played.received == [chosen]


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1008, 1011, 1013, 3000, 4999])
def test_close_by_the_server(play: Play, url: str, code: int) -> None:
    assert play(f"{url}/close/{code}/because", []).close == (code, "because")


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 3000, 4999])
def test_close_by_the_client(play: Play, url: str, services: Services, code: int) -> None:
    played = play(f"{url}/listen", [("close", [code, "grün"])])
    wait_until(lambda: services.closes)
    assert services.closes == [(code, "grün")]
    assert played.close is not None
    assert played.close[0] == code


def test_an_error_in_the_handler_closes_with_1011(play: Play, url: str, error_log: Any) -> None:
    assert play(f"{url}/crash", []).close == (1011, "")
    (record,) = error_log.take()
    assert record.exc_info[0] is ValueError


def test_a_message_above_the_limit_closes_with_1009(play: Play, serve: Any) -> None:
    server = serve(Services().routes, config=Config(max_message_size=10_000))
    url = f"ws://127.0.0.1:{server.server_port}/echo"
    played = play(url, [("send", "x" * 10_000), ("receive", 1), ("send", b"x" * 10_001)])
    assert played.received == ["x" * 10_000]
    assert played.close is not None
    assert played.close[0] == 1009


@pytest.mark.parametrize(
    ("path", "options", "status", "body"),
    [
        ("/nothing", {}, 400, "WebSocket protocols not supported."),
        ("/chat", {"protocols": ["other"]}, 400, "WebSocket protocols not supported."),
        ("/secret", {}, 401, "Log in first."),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_refused(play: Play, url: str, path: str, options: Any, status: int, body: str) -> None:
    played = play(url + path, [], **options)
    assert played.refused is not None
    assert played.refused[0] == status
    assert body in played.refused[1]


def test_another_version_is_refused_with_426(play: Play, url: str) -> None:
    played = play(f"{url}/echo", [], headers={"Sec-WebSocket-Version": "8"})
    assert played.refused is not None
    assert played.refused[0] == 426
    assert "Sec-WebSocket-Version must be 13" in played.refused[1]


def test_many_clients_at_once(url: str) -> None:
    """Fifty connections in fifty native threads, each with messages of its own."""
    finished: list[int] = []
    opened = threading.Barrier(50)

    def converse(number: int) -> None:
        with connect(f"{url}/echo") as client:
            opened.wait(limit(10))
            for i in range(20):
                client.send(f"{number}: {i}")
                assert client.recv(limit(10)) == f"{number}: {i}"
        finished.append(number)

    threads = [threading.Thread(target=converse, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), 30)
    assert sorted(finished) == list(range(50))


def test_clients_that_stay_are_closed_with_1001_when_the_server_stops(
    serve: Any, services: Services
) -> None:
    server: WebSocketServer = serve(services.routes)
    url = f"ws://127.0.0.1:{server.server_port}/listen"
    playing = gevent.get_hub().threadpool.spawn(play_websockets, url, [])
    wait_until(lambda: server.clients)
    server.stop(timeout=5)
    assert playing.get(timeout=limit(10)).close == (1001, "")


@pytest.fixture
def plain(serve: Any, services: Services) -> Iterator[str]:
    yield f"http://127.0.0.1:{serve(services.routes).server_port}"


def test_a_plain_request_gets_426_with_advice(plain: str) -> None:
    def get(path: str) -> tuple[int, str, str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError) as caught:
            opener.open(plain + path, timeout=limit(10))
        with caught.value as error:
            return error.code, error.headers["Upgrade"], error.read().decode()

    status, upgrade, body = gevent.get_hub().threadpool.apply(get, ("/echo",))
    assert (status, upgrade) == (426, "websocket")
    assert "Upgrade: websocket" in body
