"""The demo's page in Firefox, driven by WebDriver BiDi, and in WebKitGTK, under Xvfb: the handshake
with a subprotocol, a compressed echo, and the close with its reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.webkitgtk.options import Options
from selenium.webdriver.webkitgtk.service import Service
from websockets.sync.client import connect

from ..support.demo import Demo, running
from ..support.limits import limit
from ..support.processes import free_port
from ..support.require import require, require_program

MINI_BROWSERS = sorted(Path("/usr/lib").glob("*/webkit2gtk-4*/MiniBrowser"))

# Resolves to what a page sees of a session, as JSON.
SESSION = """
new Promise((done) => {
  const seen = { messages: [] };
  const text = "a message that is worth compressing ".repeat(100);
  const socket = new WebSocket(location.origin.replace("http", "ws") + "/echo", ["other", "echo"]);
  socket.onopen = () => {
    seen.protocol = socket.protocol;
    seen.extensions = socket.extensions;
    socket.send(text);
    socket.send("grüß");
  };
  socket.onmessage = (event) => {
    seen.messages.push(event.data === text ? "the text" : event.data);
    if (seen.messages.length === 2) socket.close(4001, "enough");
  };
  socket.onclose = (event) => {
    seen.close = [event.code, event.reason, event.wasClean];
    done(JSON.stringify(seen));
  };
})
"""


def check(seen: str) -> None:
    found = json.loads(seen)
    assert found.pop("extensions").startswith("permessage-deflate")
    assert found == {
        "messages": ["the text", "grüß"],
        "protocol": "echo",
        "close": [4001, "enough", True],
    }


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running() as started:
        yield started


class Bidi:
    """The commands of WebDriver BiDi that a test needs; geckodriver is not wanted for them."""

    def __init__(self, port: int) -> None:
        deadline = time.monotonic() + limit(30)
        while True:
            try:
                self._connection = connect(f"ws://127.0.0.1:{port}/session", proxy=None)
                self._socket = self._connection.__enter__()
                break
            except OSError:  # it does not listen yet
                assert time.monotonic() < deadline, "Firefox does not start"
                time.sleep(0.05)
        self._number = 0

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(command))
        while True:
            answer = json.loads(self._socket.recv(timeout=limit(20)))
            if answer.get("id") == self._number:
                assert answer["type"] == "success", answer
                return answer["result"]


def test_firefox(demo: Demo) -> None:
    require_program("firefox-esr")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="greenws-firefox-") as folder:
        process = subprocess.Popen(
            ["firefox-esr", "--headless", "--no-remote", "--profile", folder]
            + [f"--remote-debugging-port={port}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": folder},
            start_new_session=True,
        )
        try:
            bidi = Bidi(port)
            bidi.call("session.new", capabilities={})
            context = bidi.call("browsingContext.getTree")["contexts"][0]["context"]
            page = f"http://127.0.0.1:{demo.port}/"
            bidi.call("browsingContext.navigate", context=context, url=page, wait="complete")
            found = bidi.call(
                "script.evaluate",
                expression=SESSION,
                target={"context": context},
                awaitPromise=True,
            )
            check(found["result"]["value"])
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_webkitgtk(demo: Demo) -> None:
    require_program("WebKitWebDriver", "Xvfb")
    require(MINI_BROWSERS, "WebKitGTK's MiniBrowser")
    reading, writing = os.pipe()
    xvfb = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "800x600x24", "-nolisten", "tcp"],
        pass_fds=[writing],
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        display = f":{pipe.readline().strip()}"
    options = Options()
    options.binary_location = str(MINI_BROWSERS[-1])
    options.add_argument("--automation")
    environment = {
        **os.environ,
        "DISPLAY": display,
        "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1",
    }
    try:
        driver = webdriver.WebKitGTK(options, Service("/usr/bin/WebKitWebDriver", env=environment))
        try:
            driver.set_script_timeout(limit(20))
            driver.get(f"http://127.0.0.1:{demo.port}/")
            script = f"const done = arguments[0]; ({SESSION}).then(done);"
            check(driver.execute_async_script(script))
        finally:
            driver.quit()
    finally:
        xvfb.terminate()
        xvfb.wait()
