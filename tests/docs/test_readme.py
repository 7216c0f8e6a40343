"""What the README shows, run as its reader would run it."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.limits import limit, wait_until
from ..support.pages import blocks_in
from ..support.paths import ROOT
from ..support.processes import Process, connect, free_port

README = ROOT / "README.md"
BLOCKS = blocks_in(README)
ECHO, CHAT = (block.text for block in BLOCKS if block.language == "python")
SETUP, BY_HAND, COMMANDS = (block.text for block in BLOCKS if block.language == "sh")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "app.py"


def wait_for_server(process: Process, port: int) -> None:
    """The address is printed before the server listens."""
    process.wait_for(rf"://127\.0\.0\.1:{port}")
    process.port = port

    def answers() -> bool:
        assert process.popen.poll() is None, process.output
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(process.address).close()
            return True
        return False

    wait_until(answers)


def with_port(text: str, port: int) -> str:
    return re.sub(r"\b(8181|8000)\b", str(port), text)


def run(command: str, app: Path) -> Process:
    name, *arguments = shlex.split(command, comments=True)
    module = [] if name == "python" else ["-m", name]
    return Process(*module, *arguments, cwd=app.parent)


def test_the_echo(app: Path) -> None:
    port = free_port()
    app.write_text(with_port(ECHO, port))
    with run("python app.py", app) as process:
        wait_for_server(process, port)
        with connect(process.url("/echo")) as ws:
            ws.send("hello")
            assert ws.recv(timeout=limit()) == "hello"
    process.assert_no_trouble()


def commands() -> list[str]:
    return [line for line in COMMANDS.splitlines() if not line.startswith("pip ")]


def test_there_are_three_servers() -> None:
    assert [shlex.split(command)[0] for command in commands()] == ["python", "gunicorn", "flask"]


@pytest.mark.parametrize("command", commands(), ids=["own", "gunicorn", "flask"])
def test_the_chat(app: Path, command: str) -> None:
    port = free_port()
    app.write_text(with_port(CHAT, port))
    with run(with_port(command, port), app) as process:
        wait_for_server(process, port)
        with connect(process.url("/chat/lobby")) as ann, connect(process.url("/chat/lobby")) as bob:
            for client, text in ((ann, "ann"), (bob, "bob")):
                client.send(text)
                while client.recv(timeout=limit()) != text:  # until it is in the room
                    pass
            assert ann.recv(timeout=limit()) == "bob"
            ann.send("hello")
            assert ann.recv(timeout=limit()) == bob.recv(timeout=limit()) == "hello"


def test_the_other_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", SETUP, re.M):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"(?:-r |python )(\S+\.\w+)", BY_HAND):
        assert (ROOT / path).exists()
    extras = re.findall(r"'\.\[([\w,]+)\]'", BY_HAND + COMMANDS)
    pyproject = (ROOT / "pyproject.toml").read_text()
    for extra in ",".join(extras).split(","):
        assert f"\n{extra} = [" in pyproject


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 110
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
