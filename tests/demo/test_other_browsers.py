"""The demo's pages in Firefox, driven by WebDriver BiDi, and in WebKitGTK, under Xvfb: that each
page loads without an error and works, that the reconnecting client comes back after a restart, and
what a page sees of a session: subprotocol, compression, the close with its reason."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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
from websockets.sync.client import connect as websockets_connect

from ..support.demo import Demo, Member, connect, running
from ..support.limits import limit
from ..support.processes import free_port
from ..support.redis_server import RedisServer
from ..support.require import require, require_program

pytestmark = pytest.mark.one_form

MINI_BROWSERS = sorted(Path("/usr/lib").glob("*/webkit2gtk-4*/MiniBrowser"))

# Resolves to what a page sees of a session.
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
    done(seen);
  };
})
"""

# Changes of the document call a look at it, so that nothing is polled through the driver.
WAIT = """
new Promise((done) => {
  const look = () => {
    const found = (() => %s)();
    if (found) {
      observer.disconnect();
      done(found);
    }
  };
  const observer = new MutationObserver(look);
  const all = { subtree: true, childList: true, characterData: true, attributes: true };
  observer.observe(document, all);
  look();
})
"""

# WebKit's driver does not show the console. A module whose evaluation has failed fails again, with
# the same error, when it is imported again. Resolves to the errors while the page was loaded;
# "noted" gets those to come.
NOTE_ERRORS = """
(async () => {
  const noted = (window.noted = []);
  const note = (...what) => noted.push(what.map(String).join(" "));
  addEventListener("error", (event) => note(event.message, event.target.src ?? ""), true);
  addEventListener("unhandledrejection", (event) => note(event.reason));
  addEventListener("securitypolicyviolation", (event) => note(event.blockedURI));
  for (const level of ["warn", "error"]) console[level] = note;
  for (const { src } of document.querySelectorAll("script[type=module]")) {
    await import(src).catch(note);
  }
  return noted.splice(0);
})()
"""


class Page:
    """A browser's one page. A browser differs in ``open``, ``evaluate`` and ``errors``."""

    def open(self, url: str) -> None:
        raise NotImplementedError

    def evaluate(self, expression: str) -> Any:
        """The value of the expression, or what its promise resolves to."""
        raise NotImplementedError

    def errors(self) -> list[str]:
        """What was written to the console since the last call, and what could not be loaded."""
        raise NotImplementedError

    def quit(self) -> None:
        raise NotImplementedError

    def wait(self, expression: str) -> Any:
        """Until it is true; its value."""
        return self.evaluate(WAIT % expression)

    def wait_for_state(self, panel: str, text: str) -> None:
        self.wait(f"document.getElementById('{panel}-state').textContent === {json.dumps(text)}")

    def texts(self, selector: str) -> list[str]:
        found = f"[...document.querySelectorAll({json.dumps(selector)})].map((n) => n.textContent)"
        texts: list[str] = self.evaluate(found)
        return texts

    def wait_for_text(self, selector: str, text: str) -> None:
        nodes = f"[...document.querySelectorAll({json.dumps(selector)})]"
        self.wait(f"{nodes}.some((node) => node.textContent === {json.dumps(text)})")

    def submit(self, field: str, text: str) -> None:
        """Type the text into the field, and press Enter."""
        element = f"document.getElementById('{field}')"
        self.evaluate(
            f"({element}.value = {json.dumps(text)}, {element}.form.requestSubmit(), undefined)"
        )


class Firefox(Page):
    """The commands of WebDriver BiDi that a test needs; geckodriver is not wanted for them."""

    def __init__(self) -> None:
        require_program("firefox-esr")
        port = free_port()
        self._profile = tempfile.mkdtemp(prefix="greenws-firefox-")
        self._process = subprocess.Popen(
            ["firefox-esr", "--headless", "--no-remote", "--profile", self._profile]
            + [f"--remote-debugging-port={port}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._profile},
            start_new_session=True,
        )
        self._number = 0
        self._errors: list[str] = []
        self._stack = contextlib.ExitStack()
        deadline = time.monotonic() + limit(30)
        try:
            while True:
                try:
                    connection = websockets_connect(f"ws://127.0.0.1:{port}/session", proxy=None)
                    self._socket = self._stack.enter_context(connection)
                    break
                except OSError:  # it does not listen yet
                    assert time.monotonic() < deadline, "Firefox does not start"
                    time.sleep(0.05)
            self._call("session.new", capabilities={})
            events = ["log.entryAdded", "network.responseCompleted", "network.fetchError"]
            self._call("session.subscribe", events=events)
            self._context = self._call("browsingContext.getTree")["contexts"][0]["context"]
        except BaseException:
            self.quit()
            raise

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(command))
        while True:
            answer = json.loads(self._socket.recv(timeout=limit(20)))
            if answer["type"] == "event":
                self._note(answer["method"], answer["params"])
            elif answer.get("id") == self._number:
                assert answer["type"] == "success", answer
                return answer["result"]

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "log.entryAdded":
            if about["level"] in ("warn", "error"):
                self._errors.append(str(about["text"]))
        elif event == "network.fetchError":
            self._errors.append(f"{about['request']['url']}: {about['errorText']}")
        elif about["response"]["status"] >= 400:
            self._errors.append(f"{about['request']['url']}: {about['response']['status']}")

    def open(self, url: str) -> None:
        context = self._context
        self._call("browsingContext.navigate", context=context, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        # As JSON: BiDi has another encoding of values.
        found = self._call(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).then((value) => JSON.stringify([value]))",
            target={"context": self._context},
            awaitPromise=True,
        )
        assert found["type"] == "success", found
        return json.loads(found["result"]["value"])[0]

    def errors(self) -> list[str]:
        self.evaluate("null")  # so that the events before it have arrived
        errors, self._errors = self._errors, []
        return errors

    def quit(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stack.close()
        shutil.rmtree(self._profile, ignore_errors=True)


class WebKit(Page):
    def __init__(self) -> None:
        require_program("WebKitWebDriver", "Xvfb")
        require(MINI_BROWSERS, "WebKitGTK's MiniBrowser")
        self._stack = contextlib.ExitStack()
        try:
            self._start()
        except BaseException:
            self.quit()
            raise

    def _start(self) -> None:
        reading, writing = os.pipe()
        command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "800x600x24"]
        xvfb = subprocess.Popen(
            [*command, "-nolisten", "tcp"], pass_fds=[writing], stderr=subprocess.DEVNULL
        )
        self._stack.callback(xvfb.wait)
        self._stack.callback(xvfb.terminate)
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
        service = Service("/usr/bin/WebKitWebDriver", env=environment)
        self._driver = webdriver.WebKitGTK(options, service)
        self._stack.callback(self._driver.quit)
        self._driver.set_script_timeout(limit(20))
        self._errors: list[str] = []

    def open(self, url: str) -> None:
        self._errors += self._found()
        self._driver.get(url)
        self._errors += self.evaluate(NOTE_ERRORS)

    def evaluate(self, expression: str) -> Any:
        script = f"const done = arguments[0]; Promise.resolve({expression}).then(done)"
        return self._driver.execute_async_script(script)

    def _found(self) -> list[str]:
        found: list[str] = self.evaluate("(window.noted ?? []).splice(0)")
        return found

    def errors(self) -> list[str]:
        errors, self._errors = self._errors + self._found(), []
        return errors

    def quit(self) -> None:
        self._stack.close()


BROWSERS = {"firefox": Firefox, "webkitgtk": WebKit}


@pytest.fixture(scope="module", params=BROWSERS)
def browser(request: pytest.FixtureRequest) -> Iterator[Page]:
    browser = BROWSERS[request.param]()
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running("--port", "0") as started:
        yield started


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    browser.open("about:blank")
    browser.errors()
    yield browser
    assert browser.errors() == []


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.close()


MESSAGES = "#chat-log li[data-kind=message] [data-field=text]"


def test_a_session_with_subprotocol_compression_and_close(demo: Demo, page: Page) -> None:
    page.open(demo.url + "/")  # whose policy allows it
    found = page.evaluate(SESSION)
    assert found.pop("extensions").startswith("permessage-deflate")
    assert found == {
        "messages": ["the text", "grüß"],
        "protocol": "echo",
        "close": [4001, "enough", True],
    }


def test_the_front_page_echoes_and_chats(demo: Demo, page: Page) -> None:
    page.open(demo.url + "/")
    page.wait_for_state("echo", "connected")
    page.submit("echo-input", "hello")
    page.wait_for_text("#echo-log li[data-kind=received] [data-field=text]", "hello")
    page.submit("chat-name", "Ada")
    page.wait_for_state("chat", "connected")
    page.submit("chat-input", "<b>grüß</b>")
    page.wait_for_text(MESSAGES, "<b>grüß</b>")
    page.open(demo.url + "/?room=garden")
    page.wait("document.getElementById('chat-room-name').textContent === 'garden'")
    page.wait_for_state("chat", "connected")  # a reload joins again, whatever the room
    page.evaluate("document.getElementById('chat-leave').click()")
    page.wait_for_state("chat", "not joined")


def test_the_server_page_shows_live_figures(demo: Demo, page: Page) -> None:
    page.open(demo.url + "/server")
    page.wait_for_state("server", "connected")
    page.wait_for_text("#process", f"Process {demo.process.pid}.")
    page.wait_for_text("#connections-open", "1")


def test_a_page_that_is_not_there(demo: Demo, page: Page) -> None:
    page.open(demo.url + "/nowhere")
    assert "Not found" in page.evaluate("document.title")
    for error in page.errors():
        assert error == f"{demo.url}/nowhere: 404"
    page.open(page.evaluate("document.querySelector('main a').href"))
    page.wait_for_state("echo", "connected")


def test_the_chat_comes_back_and_misses_nothing_or_shows_the_gap(
    page: Page, redis: RedisServer
) -> None:
    redis.call("FLUSHALL")  # of another browser's visit
    arguments = ("--redis", redis.url)
    reconnecting = "document.getElementById('chat-state').textContent.startsWith('reconnecting in')"
    port = str(free_port())
    with running("--port", "0", *arguments) as other, contextlib.ExitStack() as stack:
        grace = Member(stack.enter_context(connect(other.ws_url + "/chat", "chat")))
        grace.join("Grace")
        with running("--port", port, *arguments) as demo:
            page.open(demo.url + "/")
            page.submit("chat-name", "Ada")
            page.wait_for_state("chat", "connected")
            grace.say("before")
            page.wait_for_text(MESSAGES, "before")
            assert demo.stop() == 0
        page.wait(reconnecting)
        grace.say("meanwhile")
        with running("--port", port, *arguments) as demo:
            assert demo.url
            page.evaluate("dispatchEvent(new Event('online'))")
            page.wait_for_state("chat", "connected")
            page.wait_for_text(MESSAGES, "meanwhile")
            assert page.texts(MESSAGES) == ["before", "meanwhile"]
            assert page.texts("#chat-log li[data-kind=gap]") == []
            assert demo.stop() == 0
        page.wait(reconnecting)
    with running("--port", port) as demo:  # which knows nothing of that room
        assert demo.url
        page.evaluate("dispatchEvent(new Event('online'))")
        page.wait_for_state("chat", "connected")
        (told,) = page.texts("#chat-log li[data-kind=gap] [data-field=text]")
        assert told.startswith("Messages are missing: the server no longer keeps all of ")
        assert page.texts(MESSAGES) == ["before", "meanwhile"]
    page.errors()  # of attempts while nobody was there
