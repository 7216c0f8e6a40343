"""The options of run_server.py, and what it prints if it cannot start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ..support.demo import (
    connect,
    run,
    running,
)
from ..support.limits import limit

pytestmark = pytest.mark.one_form


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
        (["--certfile", "cert.pem"], "--certfile and --keyfile must be given together"),
        (["--keyfile", "key.pem"], "--certfile and --keyfile must be given together"),
        (["--certfile", "absent.pem", "--keyfile", "absent.key"], "absent.pem"),
        (["--certfile", __file__, "--keyfile", "absent.key"], "absent.key"),
        (["--certfile", __file__, "--keyfile", __file__], "cannot use"),
        (["--port", "65536"], "'65536' is not a port number"),
        (["--port", "http"], "'http' is not a port number"),
        (
            ["--redis", "localhost"],
            "cannot use --redis 'localhost': the URL of a Redis begins with redis://",
        ),
        (["--redis", ""], "cannot use --redis '': the URL of a Redis begins with redis://"),
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
    assert result.stderr == f"cannot listen on 127.0.0.1:{port}: the port is already in use\n"


@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
def test_a_host_that_does_not_exist_is_one_line_and_exit_code_1(workers: tuple[str, ...]) -> None:
    result = run("--host", "no-such-host.invalid", "--port", "0", *workers)
    assert result.returncode == 1
    assert result.stderr.startswith("cannot listen on no-such-host.invalid:0: ")
    assert result.stderr.count("\n") == 1


def test_redis_without_redis_py_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('no redis', name='redis')")
    result = run("--port", "0", "--redis", "redis://localhost", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert "no redis; pip install redis" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_log_level_is_obeyed() -> None:
    with running("--port", "0", "--log-level", "warning") as demo:
        with connect(demo.ws_url + "/echo", "echo") as connection:
            connection.send("quiet")
            assert connection.recv(timeout=limit(20)) == "quiet"
        assert demo.stop() == 0
        assert demo.stderr == []
