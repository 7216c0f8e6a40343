"""run_server.py as its users meet it: a process, its options, its output, and its two services."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from ..support.demo import Demo, connect, narrow_socket, run, running
from ..support.limits import limit
from ..support.redis_server import RedisServer

TALKS = 40  # what a kernel takes for one who does not read may be a lot


@pytest.fixture
def demo() -> Iterator[Demo]:
    with running("--port", "0") as demo:
        yield demo
        assert "Traceback" not in "\n".join(demo.stderr)


@pytest.fixture
def client(demo: Demo) -> Iterator[Callable[..., ClientConnection]]:
    """Opens connections to the demo by path and subprotocol; they are closed with the test."""
    with contextlib.ExitStack() as stack:

        def open_connection(path: str, protocol: str, **options: Any) -> ClientConnection:
            url = demo.ws_url + path
            return stack.enter_context(connect(url, protocol, close_timeout=1, **options))

        yield open_connection


def closed_with(connection: ClientConnection) -> int | None:
    """Read to the end, and tell the close code."""
    with pytest.raises(ConnectionClosed):
        while True:
            connection.recv(timeout=limit(20))
    return connection.close_code


# The command line


def test_help_names_every_option_with_its_default() -> None:
    result = run("--help")
    assert result.returncode == 0
    for option in (
        "--host",
        "--port",
        "--certfile",
        "--keyfile",
        "--log-level",
        "--workers",
        "--redis",
    ):
        assert option in result.stdout
    for default in ("127.0.0.1", "8181", "info"):
        assert default in result.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--certfile", "cert.pem"], "--certfile and --keyfile go together"),
        (["--keyfile", "key.pem"], "--certfile and --keyfile go together"),
        (["--certfile", "absent.pem", "--keyfile", "absent.key"], "absent.pem"),
        (["--certfile", __file__, "--keyfile", "absent.key"], "absent.key"),
        (["--certfile", __file__, "--keyfile", __file__], "cannot use"),
        (["--port", "65536"], "'65536' is not a port"),
        (["--port", "http"], "'http' is not a port"),
        (["--redis", "localhost"], "cannot use --redis 'localhost': Redis URL must specify"),
        (["--redis", ""], "cannot use --redis '': Redis URL must specify"),
        (["--workers", "0"], "'0' is not a number of processes"),
        (["--log-level", "loud"], "loud"),
    ],
)
def test_options_that_cannot_work_are_refused(arguments: list[str], complaint: str) -> None:
    result = run("--port", "0", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_a_port_that_is_taken_is_one_line_and_exit_code_1(workers: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("--port", str(port), *workers)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"cannot listen on 127.0.0.1:{port}: the port is taken\n"


@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
def test_a_host_that_does_not_exist_is_one_line_and_exit_code_1(workers: tuple[str, ...]) -> None:
    result = run("--host", "no-such-host.invalid", "--port", "0", *workers)
    assert result.returncode == 1
    assert result.stderr.startswith("cannot listen on no-such-host.invalid:0: ")
    assert result.stderr.count("\n") == 1


# Starting and stopping


def test_it_prints_one_line_with_its_address(demo: Demo) -> None:
    line = demo.wait_for(demo.stdout, ".*").group()
    assert re.fullmatch(r"greenws demo on http://127\.0\.0\.1:[1-9]\d*/  \(Ctrl-C stops it\)", line)
    assert demo.stop() == 0
    assert demo.stdout == [line]


def test_it_finds_its_pages_from_any_directory(tmp_path: Path) -> None:
    with running("--port", "0", cwd=tmp_path) as demo:
        with urllib.request.urlopen(demo.url + "/", timeout=limit(20)) as response:
            assert response.headers.get_content_type() == "text/html"
            page = response.read().decode()
        files = re.findall(r'(?:href|src)="([^"#]+)"', page)
        assert {"style.css", "chat.js", "echo.js", "favicon.svg"} <= set(files)
        for name in files:
            with urllib.request.urlopen(f"{demo.url}/{name}", timeout=limit(20)) as response:
                assert response.status == 200
                if name.endswith(".js"):
                    assert response.headers.get_content_type() == "text/javascript"
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{demo.url}/run_server.py", timeout=limit(20))
        assert refusal.value.code == 404


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_closes_the_sessions_and_ends_it_cleanly(
    number: signal.Signals, demo: Demo, client: Callable[..., ClientConnection]
) -> None:
    echo, chat = client("/echo", "echo"), client("/chat", "chat")
    echo.send("before")
    assert echo.recv(timeout=limit(20)) == "before"
    chat.send(json.dumps({"type": "join", "name": "Ada"}))
    assert json.loads(chat.recv(timeout=limit(20)))["type"] == "welcome"

    demo.process.send_signal(number)

    assert closed_with(echo) == 1001
    assert closed_with(chat) == 1001
    assert demo.exit_code() == 0
    assert "Traceback" not in "\n".join(demo.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_without_sessions_ends_it_at_once(number: signal.Signals, demo: Demo) -> None:
    assert demo.url
    started = time.monotonic()
    assert demo.stop(number) == 0
    assert time.monotonic() - started < limit()
    assert "Traceback" not in "\n".join(demo.stderr)


def test_tls_serves_https_and_wss(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(certfile, append=True)
    certificate.private_key_pem.write_to_path(keyfile)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    # With no tickets behind the handshake: see the fixture tls of tests/test_clients.py.
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    arguments = ("--port", "0", "--certfile", str(certfile), "--keyfile", str(keyfile))
    with running(*arguments) as demo:
        assert demo.url.startswith("https://127.0.0.1:")
        with urllib.request.urlopen(demo.url + "/", timeout=limit(20), context=context) as response:
            assert b"greenws" in response.read()
        with connect(demo.ws_url + "/echo", "echo", ssl=context) as connection:
            connection.send("over TLS")
            assert connection.recv(timeout=limit(20)) == "over TLS"
            demo.process.send_signal(signal.SIGTERM)
            assert closed_with(connection) == 1001
        assert demo.exit_code() == 0
        assert "Traceback" not in "\n".join(demo.stderr)


# Many workers


def test_workers_share_their_rooms_and_their_metrics(redis: RedisServer) -> None:
    with running("--port", "0", "--workers", "3", "--redis", redis.url) as demo:
        with contextlib.ExitStack() as stack:
            members = []
            for number in range(9):
                connection = stack.enter_context(connect(demo.ws_url + "/chat/garden", "chat"))
                members.append(Member(connection))
                members[-1].send({"type": "join", "name": f"Ada {number}"})
            for member in members:
                while member.receive()["type"] != "welcome":
                    pass
            members[0].say("hello")
            for member in members:
                while (event := member.receive())["type"] != "message":
                    pass
                assert (event["name"], event["text"]) == ("Ada 0", "hello")

            def metrics() -> list[str]:
                with urllib.request.urlopen(f"{demo.url}/metrics", timeout=limit(20)) as response:
                    lines: list[str] = response.read().decode().splitlines()
                    return lines

            # Each worker tells the others once in a second.
            deadline = time.monotonic() + limit()
            expected = {
                "greenws_rooms_members 9.0",
                "greenws_rooms_sent_total 1.0",
                "greenws_connections_total 9.0",
            }
            while not expected <= set(metrics()):
                assert time.monotonic() < deadline, metrics()
                time.sleep(0.1)
            demo.process.send_signal(signal.SIGTERM)
            for member in members:
                assert closed_with(member.connection) == 1001
        assert demo.exit_code() == 0, "\n".join(demo.stderr)
        assert "Traceback" not in "\n".join(demo.stderr)


def test_workers_without_redis_are_warned_of() -> None:
    with running("--port", "0", "--workers", "2") as demo:
        assert demo.url
        demo.wait_for(demo.stderr, "each worker has rooms of its own: give --redis too")
        assert demo.stop() == 0


@pytest.mark.parametrize("module", ["gunicorn", "packaging"])  # which its gevent worker imports
def test_workers_without_gunicorn_are_one_line_and_exit_code_1(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(f"raise ImportError('no {module}')")
    result = run("--port", "0", "--workers", "2", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert f"no {module}; pip install 'gunicorn[gevent]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_metrics_without_prometheus_client_say_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('no client')")
    with running("--port", "0", PYTHONPATH=str(tmp_path)) as demo:
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{demo.url}/metrics", timeout=limit(20))
    assert refusal.value.code == 501
    assert b"no client; pip install prometheus-client" in refusal.value.read()


def test_redis_without_redis_py_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('no redis')")
    result = run("--port", "0", "--redis", "redis://localhost", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert "no redis; pip install redis" in result.stderr
    assert "Traceback" not in result.stderr


# The echo service


def test_echo_sends_back_what_it_reads_and_logs_it(
    demo: Demo, client: Callable[..., ClientConnection]
) -> None:
    echo = client("/echo", "echo")
    assert echo.subprotocol == "echo"
    for text in ("hello", "", "gr\u00fc\u00df \U0001f331", "x" * 70_000):
        echo.send(text)
        assert echo.recv(timeout=limit(20)) == text
    demo.wait_for(demo.stderr, r"INFO greenws\.demo: Read msg: 'hello' op: TEXT fin: True$")


def test_echo_keeps_the_fragments(demo: Demo, client: Callable[..., ClientConnection]) -> None:
    echo = client("/echo", "echo", compression=None)
    echo.send(["one ", "two ", "three"])
    assert list(echo.recv_streaming())[:3] == ["one ", "two ", "three"]
    demo.wait_for(demo.stderr, r"Read msg: 'one ' op: TEXT fin: False$")
    demo.wait_for(demo.stderr, r"Read msg: 'three' op: CONTINUATION fin: ")


def test_what_is_logged_is_escaped_and_cut(
    demo: Demo, client: Callable[..., ClientConnection]
) -> None:
    echo = client("/echo", "echo")
    echo.send("one\r\nERROR forged: line\x1b[31m")
    echo.send("y" * 1000)
    demo.wait_for(demo.stderr, r"Read msg: 'one\\r\\nERROR forged: line\\x1b\[31m' op: TEXT")
    demo.wait_for(demo.stderr, r"Read msg: 'y{200}'\.\.\. op: TEXT fin: True$")


def test_the_log_level_is_obeyed() -> None:
    with running("--port", "0", "--log-level", "warning") as demo:
        with connect(demo.ws_url + "/echo", "echo") as connection:
            connection.send("quiet")
            assert connection.recv(timeout=limit(20)) == "quiet"
        assert demo.stop() == 0
        assert demo.stderr == []


@pytest.mark.parametrize("path", ["/echo", "/chat"])
def test_a_client_without_the_subprotocol_is_refused(
    path: str, client: Callable[..., ClientConnection]
) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        client(path, "other")
    assert refusal.value.response.status_code == 400


# The chat room


class Member:
    """One client of the chat, which speaks JSON objects."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, event: object) -> None:
        self.connection.send(json.dumps(event))

    def say(self, text: str) -> None:
        self.send({"type": "message", "text": text})

    def receive(self) -> dict[str, Any]:
        event = json.loads(self.connection.recv(timeout=limit(20)))
        assert isinstance(event, dict)
        return event

    def expect(self, **expected: Any) -> dict[str, Any]:
        """The next event, which must have these values."""
        event = self.receive()
        assert expected.items() <= event.items(), event
        return event

    def join(self, name: str) -> dict[str, Any]:
        """Join, and pass over the news of it; the welcome."""
        self.send({"type": "join", "name": name})
        welcome = self.expect(type="welcome")
        self.expect(type="joined", name=welcome["name"])
        return welcome


@pytest.fixture
def member(client: Callable[..., ClientConnection]) -> Callable[..., Member]:
    """Opens a connection to the chat, and joins if there is a name."""

    def make(name: str | None = None, **options: Any) -> Member:
        member = Member(client("/chat", "chat", **options))
        if name is not None:
            member.join(name)
        return member

    return make


MemberFactory = Callable[..., Member]


def test_the_first_member_is_welcomed_to_an_empty_room(member: MemberFactory) -> None:
    welcome = member().join("Ada")
    assert welcome.pop("id")
    assert welcome == {"type": "welcome", "name": "Ada", "members": ["Ada"], "history": []}


def test_a_newcomer_is_announced_and_learns_who_is_here(member: MemberFactory) -> None:
    ada = member("Ada")
    welcome = member().join("Grace")
    assert welcome["members"] == ["Ada", "Grace"]
    ada.expect(type="joined", name="Grace")


def test_somebody_who_has_not_joined_hears_nothing(member: MemberFactory) -> None:
    onlooker, ada = member(), member("Ada")
    ada.say("among ourselves")
    ada.expect(type="message")
    assert onlooker.join("Grace")["members"] == ["Ada", "Grace"]  # its first event of all


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
    linus.connection.socket.shutdown(socket.SHUT_RDWR)
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
def test_names_are_cleaned_of_what_cannot_be_seen(
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


def test_bad_input_before_joining_is_an_error_and_not_the_end(member: MemberFactory) -> None:
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


def test_a_member_who_does_not_read_holds_up_nobody(demo: Demo, member: MemberFactory) -> None:
    sloth = member("Sloth", sock=narrow_socket(demo), compression=None)
    ada, grace = member("Ada"), member("Grace")
    ada.expect(type="joined", name="Grace")
    text = "\u00fc" * 2000  # 12,000 bytes as JSON

    for _ in range(800):  # 10 MB: more than the kernel holds and the room lets wait
        started = time.monotonic()
        ada.say(text)
        for each in (ada, grace):
            each.expect(type="message", name="Ada", text=text)
        assert time.monotonic() - started < limit(2)
    assert closed_with(sloth.connection) == 1013
    for each in (ada, grace):
        each.expect(type="left", name="Sloth")


# The live picture of the server


class Watcher:
    """Who reads a snapshot a second."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def next(self) -> dict[str, Any]:
        snapshot = json.loads(self.connection.recv(timeout=limit(20)))
        assert isinstance(snapshot, dict)
        return snapshot

    def wait_for(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + limit(20)
        while not condition(snapshot := self.next()):
            assert time.monotonic() < deadline, snapshot
        return snapshot


@pytest.fixture
def watcher(client: Callable[..., ClientConnection]) -> Callable[[], Watcher]:
    return lambda: Watcher(client("/server/live", "live"))


WatcherFactory = Callable[[], Watcher]


def test_a_snapshot_comes_at_once_and_then_each_second(demo: Demo, watcher: WatcherFactory) -> None:
    watch = watcher()
    first, second, third = watch.next(), watch.next(), watch.next()
    assert abs(first["time"] - time.time() * 1000) < 60_000
    assert 900 < second["time"] - first["time"] < 10_000
    assert second["time"] < third["time"]
    process = third["process"]
    assert process["pid"] == demo.process.pid
    assert process["one_of_several"] is False
    assert process["started"] == first["process"]["started"] <= first["time"]
    assert 2**20 < process["memory"] < 2**30
    assert first["rates"] is None
    assert 0 < third["rates"]["messages_out"] < 2  # this one client's snapshots
    assert third["rates"]["messages_in"] == 0
    assert third["server"]["connections_open"] == 1
    assert third["largest_rooms"] == third["slow_members"] == []


def test_snapshots_tell_of_connections_messages_refusals_and_closes(
    watcher: WatcherFactory, member: MemberFactory, client: Callable[..., ClientConnection]
) -> None:
    watch = watcher()
    before = watch.next()["server"]
    assert (before["connections_open"], before["messages_in"], before["refused"]) == (1, 0, {})
    ada, echo = member("Ada"), client("/echo", "echo")
    for number in range(20):
        echo.send(f"message {number}")
        assert echo.recv(timeout=limit(20))
    with pytest.raises(InvalidStatus):
        client("/echo", "other")
    echo.close(4001)
    snapshot = watch.wait_for(lambda snapshot: snapshot["server"]["closes"])
    server = snapshot["server"]
    assert (server["connections_open"], server["connections_total"]) == (2, 3)
    assert server["messages_in"] == 1 + 20  # Ada joined
    assert server["messages_out"] > 20
    assert server["refused"] == {"subprotocol": 1}
    assert server["closes"] == {"4001": 1}
    assert snapshot["largest_rooms"] == [{"name": "lobby", "members": 1}]
    assert snapshot["rooms"]["members"] == 1
    ada.connection.close()
    watch.wait_for(lambda snapshot: snapshot["largest_rooms"] == [])


def test_rates_are_what_changed_in_a_second(
    watcher: WatcherFactory, client: Callable[..., ClientConnection]
) -> None:
    watch, echo = watcher(), client("/echo", "echo")
    snapshots = [watch.next()]
    for _ in range(2):
        for _ in range(50):
            echo.send("x" * 100)
            assert echo.recv(timeout=limit(20))
        snapshots.append(watch.next())
    snapshots.append(watch.next())
    for one, other in itertools.pairwise(snapshots):
        seconds = (other["time"] - one["time"]) / 1000
        for name in ("messages_in", "messages_out", "bytes_in", "bytes_out"):
            change = other["server"][name] - one["server"][name]
            assert other["rates"][name] == pytest.approx(change / seconds, rel=0.2)
    assert snapshots[-1]["server"]["messages_in"] == 100


def test_one_who_comes_later_is_sent_the_last_minute_first(watcher: WatcherFactory) -> None:
    first = watcher()
    seen = [first.next() for _ in range(3)]
    second = watcher()
    assert [second.next() for _ in range(3)] == seen
    assert second.next() == first.next()
    for each in (first, second):
        each.connection.close()
    third = watcher()  # the picture goes on where it stopped
    assert third.next() == seen[0]
    third.wait_for(lambda snapshot: snapshot["server"]["connections_total"] == 3)


def test_a_snapshot_names_the_members_that_do_not_read_and_counts_those_closed(
    demo: Demo, watcher: WatcherFactory, member: MemberFactory
) -> None:
    sloth = member("Sloth", sock=narrow_socket(demo), compression=None)
    ada, watch = member("Ada"), watcher()
    assert watch.next()["slow_members"] == []

    def talk(until: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Fewer messages between two snapshots than may wait for a member."""
        for _ in range(TALKS):
            for _ in range(100):
                ada.say("\u00fc" * 2000)
                ada.expect(type="message")
            if until(snapshot := watch.next()):
                return snapshot
        raise AssertionError(snapshot)

    snapshot = talk(until=lambda snapshot: snapshot["slow_members"])
    assert snapshot["rooms"]["lagging"] == 1
    [slow] = snapshot["slow_members"]
    assert (slow["name"], slow["room"]) == ("Sloth", "lobby")
    assert 0 < slow["waiting"] <= 200
    snapshot = talk(until=lambda snapshot: snapshot["rooms"]["closed"])
    assert snapshot["rooms"]["lagging"] == 0
    assert snapshot["slow_members"] == []
    assert closed_with(sloth.connection) == 1013


def test_nothing_ticks_while_nobody_watches(demo: Demo, watcher: WatcherFactory) -> None:
    first = watcher()
    seen = [first.next() for _ in range(2)]
    first.connection.close()
    time.sleep(2.5)  # nothing tells that nothing happens
    second = watcher()
    told = [second.next() for _ in range(len(seen))]
    assert told == seen
    after = second.wait_for(lambda snapshot: snapshot["server"]["connections_total"] == 2)
    assert after["time"] - seen[-1]["time"] > 2400
    assert after["rates"] is None


def test_the_page_of_the_server_is_there(demo: Demo) -> None:
    with urllib.request.urlopen(demo.url + "/server", timeout=limit(20)) as response:
        assert response.headers.get_content_type() == "text/html"
        assert b"server.js" in response.read()


def test_with_redis_each_process_tells_those_who_watch_at_another(redis: RedisServer) -> None:
    options = ("--port", "0", "--redis", redis.url)
    with running(*options) as one, running(*options) as other:
        pids = {one.process.pid, other.process.pid}
        with connect(one.ws_url + "/server/live", "live") as connection:
            watch = Watcher(connection)
            seen: dict[int, dict[str, Any]] = {}
            with connect(other.ws_url + "/chat", "chat") as ada:
                ada.send(json.dumps({"type": "join", "name": "Ada"}))
                while seen.keys() != pids or not seen[other.process.pid]["largest_rooms"]:
                    snapshot = watch.next()
                    seen[snapshot["process"]["pid"]] = snapshot
            assert seen[one.process.pid]["server"]["connections_open"] == 1
            assert seen[other.process.pid]["server"]["connections_open"] == 1
            assert not seen[one.process.pid]["process"]["one_of_several"]
        with connect(other.ws_url + "/server/live", "live") as connection:
            told = [Watcher(connection).next() for _ in range(4)]
            assert {snapshot["process"]["pid"] for snapshot in told} == pids  # the last minute
        log = "greenws:demo-server:room:all"
        time.sleep(1.5)  # nothing tells that nothing happens
        length = redis.call("XLEN", log)
        time.sleep(1.5)
        assert redis.call("XLEN", log) == length


def test_a_worker_says_that_it_is_one_of_several() -> None:
    with running("--port", "0", "--workers", "2", "--log-level", "warning") as demo:
        with connect(demo.ws_url + "/server/live", "live") as connection:
            process = Watcher(connection).next()["process"]
        assert process["one_of_several"] is True
        assert process["pid"] != demo.process.pid
        assert demo.stop() == 0
