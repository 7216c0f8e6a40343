"""What a page of "Coming from" has its reader do, done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from ..support.limits import limit
from ..support.pages import blocks_in
from ..support.paths import ROOT
from ..support.processes import Process, connect
from ..support.redis_server import RedisServer
from ..support.require import require_program

pytestmark = pytest.mark.one_form
CHANNELS = ROOT / "docs" / "migrate" / "channels.md"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.stop()


def test_the_chat_of_channels(tmp_path: Path, redis: RedisServer) -> None:
    files = {block.caption: block.text for block in blocks_in(CHANNELS)}
    command = [sys.executable, "-m", "django", "startproject", "mysite", "."]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=limit(20))
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "urls.py").write_text("urlpatterns = []\n")
    for name in ("mysite/urls.py", "chat/sockets.py"):
        (tmp_path / name).write_text(files[name].replace("redis://localhost", redis.url))
    program = tmp_path / "manage.py"
    program.write_text(files["manage.py"] + program.read_text())
    settings = tmp_path / "mysite" / "settings.py"
    (application,) = re.findall(r'`("greenws[.\w]+")` in the place', CHANNELS.read_text())
    apps = "INSTALLED_APPS = ["
    settings.write_text(settings.read_text().replace(apps, f"{apps}{application},"))

    serve = ["manage.py", "runserver", "127.0.0.1:0", "--noreload"]
    with Process(*serve, cwd=tmp_path) as process:
        process.wait_for("System check identified no issues")
        url = process.wait_for_port().url("/ws/chat/tea/")
        with connect(url, origin=process.url("", "http")) as one, connect(url) as two:
            one.send(json.dumps({"message": "I am here"}))
            assert json.loads(one.recv(limit())) == {"message": "I am here"}
            two.send(json.dumps({"message": "hello"}))
            assert json.loads(one.recv(limit())) == {"message": "hello"}
            while json.loads(two.recv(limit())) != {"message": "hello"}:
                pass
        with pytest.raises(InvalidStatus, match="403"), connect(url, origin="http://else.where"):
            pass
    assert "Traceback" not in process.output, process.output
