"""The demo's pages in a real browser, Chromium, against run_server.py in a real process.

The screenshots of ``test_the_page_looks_right_on_every_screen`` are in pytest's temporary directory
(``--basetemp`` chooses it): look at them after a change of style.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as websockets_connect

from ..support.demo import Demo, connect, narrow_socket, running
from ..support.limits import limit
from ..support.processes import children, free_port
from ..support.redis_server import RedisServer
from ..support.require import require_program

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--lang=en-US",
)
SCREENS = {"phone": (390, 844), "desktop": (1280, 900)}
MARKUP = """<img src=x onerror="document.title='hacked'"><script>document.title='hacked'</script>"""

# Every visible text whose contrast is below WCAG's AA, as [text, ratio]. Colors may be oklch():
# a canvas turns them into RGB.
LOW_CONTRAST = """
const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function rgba(color) {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data;
}
function luminance(color) {
  const [r, g, b] = [...rgba(color)].slice(0, 3).map((part) => {
    const value = part / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function background(node) {
  for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (rgba(color)[3] === 255) return color;
  }
  return "white";
}
const found = [];
function check(node, style, text) {
  const [low, high] = [style.color, background(node)].map(luminance).sort((a, b) => a - b);
  const ratio = (high + 0.05) / (low + 0.05);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) found.push([text, ratio]);
}
for (const node of document.body.querySelectorAll("*")) {
  if (!node.checkVisibility({ visibilityProperty: true })) continue;
  const own = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE);
  const text = own.map((child) => child.data.trim()).join(" ").trim();
  if (text) check(node, getComputedStyle(node), text);
  if (node.placeholder) check(node, getComputedStyle(node, "::placeholder"), node.placeholder);
}
return found;
"""


class Page:
    """The demo's page, as in a browser of its own."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.expected_errors: str | None = None  # a pattern, for a test that provokes some

    def open(self, url: str) -> None:
        self.emulate(*SCREENS["desktop"])
        self.driver.get(url)

    def emulate(
        self, width: int, height: int, scheme: str = "light", motion: str = "reduce"
    ) -> None:
        """A screen of this size, and a person with these preferences.

        Smooth scrolling would move things away from under a click: less motion is the default.
        """
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        preferences = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        features = [{"name": name, "value": value} for name, value in preferences.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def __call__(self, element_id: str) -> WebElement:
        return self.driver.find_element(By.ID, element_id)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that match, taken at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)"
        texts: list[str] = self.run(script, selector)
        return texts

    def wait_until(self, condition: Callable[[], Any], what: str) -> Any:
        wait = WebDriverWait(self.driver, limit(20), poll_frequency=0.05)
        return wait.until(lambda _: condition(), what)

    def wait_for_text(self, selector: str, text: str) -> None:
        """Wait until some element that matches has exactly this text."""
        self.wait_until(lambda: text in self.texts(selector), f"{selector} with {text!r}")

    def wait_for_state(self, panel: str, text: str) -> None:
        self.wait_for_text(f"#{panel}-state", text)

    def wait_for_reconnecting(self) -> None:
        pattern = r"reconnecting in \d+ s"
        self.wait_until(lambda: re.fullmatch(pattern, self("chat-state").text), pattern)

    def join(self, name: str) -> None:
        self("chat-name").clear()
        self("chat-name").send_keys(name, Keys.ENTER)
        self.wait_for_state("chat", "connected")

    def say(self, text: str) -> None:
        self("chat-input").send_keys(text, Keys.ENTER)

    def wait_for_message(self, name: str, text: str) -> None:
        self.wait_until(lambda: (name, text) in self.messages(), f"{text!r} of {name}")

    def messages(self) -> list[tuple[str, str]]:
        # In one query: between two, another message may arrive.
        pairs = self.driver.execute_script(
            """return [...document.querySelectorAll('#chat-log li[data-kind="message"]')].map(
                (li) => ["name", "text"].map(
                    (field) => li.querySelector(`[data-field=${field}]`).textContent));"""
        )
        return [(name, text) for name, text in pairs]

    def members(self) -> list[str]:
        return self.texts("#chat-members [data-field=name]")

    def wait_for_members(self, *names: str) -> None:
        self.wait_until(lambda: self.members() == list(names), f"members {names}")
        assert self("chat-count").text == str(len(names))

    def focused(self) -> str:
        return str(self.driver.switch_to.active_element.get_attribute("id"))

    def screenshot(self, path: Path) -> None:
        options = {"format": "png", "captureBeyondViewport": True}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path.write_bytes(base64.b64decode(picture["data"]))

    def overflow(self) -> int:
        """Pixels by which the page, or something in a log, is wider than its container."""
        return int(
            self.run("""
            const nodes = [document.documentElement, ...document.querySelectorAll(".log")];
            return Math.max(...nodes.map((node) => node.scrollWidth - node.clientWidth))""")
        )

    def errors(self) -> list[str]:
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        errors = [entry["message"] for entry in entries if entry["level"] != "INFO"]
        if self.expected_errors is not None:
            errors = [error for error in errors if not re.search(self.expected_errors, error)]
        return errors


class Browser:
    """A Chromium that serves test after test, each in a browser context of its own: no storage, no
    cache and no cookie of one is there for the next."""

    def __init__(self, profile: Path, insecure: bool = False) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.accept_insecure_certs = insecure
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = Service(executable_path=str(shutil.which("chromedriver")))
        # Without keep_alive, no test leaves a connection to chromedriver behind.
        self.driver = webdriver.Chrome(options=options, service=service, keep_alive=False)
        self._profile = profile
        address = self.driver.capabilities["goog:chromeOptions"]["debuggerAddress"]
        with urllib.request.urlopen(f"http://{address}/json/version") as response:
            self._url = json.load(response)["webSocketDebuggerUrl"]
        self._home = self.driver.current_window_handle
        self._context = ""

    def _call(self, method: str, **parameters: Any) -> Any:
        """A call of the DevTools protocol to the browser; chromedriver makes them to pages only."""
        with websockets_connect(self._url, proxy=None) as devtools:
            devtools.send(json.dumps({"id": 1, "method": method, "params": parameters}))
            while (answer := json.loads(devtools.recv(limit(20)))).get("id") != 1:
                pass
        return answer["result"]

    def open(self, url: str) -> Page:
        created = self._call("Target.createBrowserContext", disposeOnDetach=False)
        self._context = created["browserContextId"]
        target = self._call(
            "Target.createTarget",
            url="about:blank",
            browserContextId=self._context,
            newWindow=True,
        )
        self.driver.switch_to.window(target["targetId"])
        self.driver.set_page_load_timeout(limit(20))
        page = Page(self.driver)
        page.open(url)
        return page

    def forget(self) -> None:
        """Closes the page, with its context."""
        for handle in self.driver.window_handles:
            if handle != self._home:
                self.driver.switch_to.window(handle)
                self.driver.close()
        self.driver.switch_to.window(self._home)
        self._call("Target.disposeBrowserContext", browserContextId=self._context)
        self.driver.get_log("browser")  # type: ignore[no-untyped-call]

    def quit(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)


@pytest.fixture(scope="session")
def browsers() -> Iterator[list[Browser]]:
    """The browsers that no test uses now."""
    idle: list[Browser] = []
    yield idle
    for browser in idle:
        browser.quit()


@pytest.fixture
def browse(
    browsers: list[Browser], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Page]]:
    """Opens the demo's page as in a new browser. At the end no page may have logged an error."""
    require_program("chromium", "chromedriver")
    pages: list[Page] = []
    with contextlib.ExitStack() as stack:

        def open_browser(url: str, insecure: bool = False) -> Page:
            if insecure or not browsers:
                browser = Browser(tmp_path_factory.mktemp("profile"), insecure)
            else:
                browser = browsers.pop()

            def put_back() -> None:
                try:
                    browser.forget()
                except Exception:
                    browser.quit()
                    raise
                browsers.append(browser)

            stack.callback(browser.quit if insecure else put_back)
            page = browser.open(url)
            pages.append(page)
            return page

        yield open_browser
        assert [page.errors() for page in pages] == [[] for _ in pages]


Browse = Callable[..., Page]


@pytest.fixture
def demo() -> Iterator[Demo]:
    """On a port that nobody else is given while a test restarts it."""
    with running("--port", str(free_port())) as demo:
        yield demo


@pytest.fixture
def page(demo: Demo, browse: Browse) -> Page:
    return browse(demo.url + "/")


@pytest.mark.one_form
def test_the_page_needs_nothing_from_elsewhere(demo: Demo, page: Page) -> None:
    assert page.driver.title.startswith("greenws")
    names = page.run("return performance.getEntriesByType('resource').map((r) => r.name)")
    assert {name.rpartition("/")[2] for name in names} >= {"style.css", "echo.js", "chat.js"}
    assert [name for name in names if not name.startswith(demo.url + "/")] == []
    assert page("echo-url").text == demo.ws_url + "/echo"


def test_echo_panel_connects_echoes_and_disconnects(page: Page) -> None:
    page.wait_for_state("echo", "connected")  # by itself
    assert page("echo-toggle").text == "Disconnect"
    assert page.focused() != "echo-input"

    page("echo-input").send_keys("hello", Keys.ENTER)
    page.wait_for_text("#echo-log li[data-kind=received] [data-field=text]", "hello")
    page("echo-input").send_keys(MARKUP)
    page("echo-send").click()
    page.wait_for_text("#echo-log li[data-kind=received] [data-field=text]", MARKUP)
    assert page.texts("#echo-log li[data-kind=sent] [data-field=text]") == ["hello", MARKUP]
    for took in page.texts("#echo-log li[data-kind=received] .meta"):
        assert re.fullmatch(r"\d+\.\d ms", took)
    assert page.texts("#echo-log img, #echo-log script") == []

    page("echo-toggle").click()
    page.wait_for_state("echo", "disconnected")
    assert "Closed (1000)." in page.texts("#echo-log [data-field=text]")
    assert not page("echo-send").is_enabled()
    page("echo-toggle").click()
    page.wait_for_state("echo", "connected")
    assert page.focused() == "echo-input"


def test_the_browser_exchanges_compressed_messages(demo: Demo, page: Page) -> None:
    page.driver.set_script_timeout(limit(20))
    extensions, same = page.driver.execute_async_script(
        """
        const [url, done] = arguments;
        const socket = new WebSocket(url, "echo");
        const texts = ["greenws ".repeat(20000), "short", "", "grün ".repeat(500)];
        const received = [];
        socket.onopen = () => texts.forEach((text) => socket.send(text));
        socket.onclose = () => done([socket.extensions, null]);
        socket.onmessage = ({ data }) => {
          received.push(data);
          if (received.length < texts.length) return;
          socket.onclose = null;
          socket.close();
          done([socket.extensions, received.every((text, i) => text === texts[i])]);
        };
        """,
        demo.ws_url + "/echo",
    )
    assert extensions.startswith("permessage-deflate; server_no_context_takeover")
    assert same is True


@pytest.mark.one_form
def test_messages_of_one_name_are_shown_together(page: Page, demo: Demo) -> None:
    page.join("Ada")
    with connect(demo.ws_url + "/chat", "chat") as bob:
        bob.send(json.dumps({"type": "join", "name": "Bob"}))
        for text in ("one", "two"):
            bob.send(json.dumps({"type": "message", "text": text}))
            page.wait_for_text("#chat-log li[data-kind=message] [data-field=text]", text)
    follows = "return [...document.querySelectorAll('#chat-log li[data-kind=message]')]"
    assert page.run(follows + ".map((item) => 'follows' in item.dataset)") == [False, True]
    assert page.run("return document.querySelectorAll('.byline.visually-hidden').length") == 1


@pytest.mark.one_form
def test_a_page_that_is_not_there(demo: Demo, browse: Browse) -> None:
    page = browse(demo.url + "/nowhere")
    assert "Not found" in page.driver.title
    assert [error for error in page.errors() if "404" not in error] == []
    page.run("document.querySelector('main a').click()")
    page.wait_for_state("echo", "connected")
    with urllib.request.urlopen(demo.url + "/404.html", timeout=limit()) as response:
        assert b"Not found" in response.read()
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(demo.url + "/nowhere", timeout=limit())
    assert missing.value.code == 404


def test_echo_panel_shows_why_the_server_closed(demo: Demo, page: Page) -> None:
    page.wait_for_state("echo", "connected")
    assert demo.stop() == 0
    page.wait_for_state("echo", "disconnected")
    assert re.match(r"Closed \(1001\b", page.texts("#echo-log [data-field=text]")[-1])


def test_two_browsers_chat_with_each_other(demo: Demo, browse: Browse) -> None:
    ada, grace = browse(demo.url + "/"), browse(demo.url + "/")
    ada.join("Ada")
    ada.wait_for_members("Ada")
    assert ada("chat-self").text == "Ada"
    grace.join("Grace")
    for each in (ada, grace):
        each.wait_for_members("Ada", "Grace")
    joined = "#chat-log li[data-kind=joined] [data-field=text]"
    ada.wait_for_text(joined, "Grace joined")

    ada.say("Hello, Grace.")
    grace.wait_for_message("Ada", "Hello, Grace.")
    grace("chat-input").send_keys("Hello, Ada.")
    grace("chat-send").click()
    for each in (ada, grace):
        each.wait_for_message("Grace", "Hello, Ada.")
        assert each.messages() == [("Ada", "Hello, Grace."), ("Grace", "Hello, Ada.")]
        assert each("chat-input").get_attribute("value") == ""
        times = "return [...document.querySelectorAll('#chat-log time')].map((t) => t.dateTime)"
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", time) for time in each.run(times))
    assert ada.texts("#chat-log li[data-self] [data-field=text]") == ["Hello, Grace."]

    grace.run("document.getElementById('chat-leave').click()")
    ada.wait_for_text("#chat-log li[data-kind=left] [data-field=text]", "Grace left")
    ada.wait_for_members("Ada")
    assert grace("chat-state").text == "not joined"
    assert grace.focused() == "chat-name"
    assert grace("chat-name").get_attribute("value") == "Grace"


@pytest.mark.one_form
def test_markup_is_shown_and_not_run(demo: Demo, browse: Browse) -> None:
    ada, mallory = browse(demo.url + "/"), browse(demo.url + "/")
    name = "<img src=x onerror=alert(1)>"
    ada.join("Ada")
    mallory.join(name)
    mallory.say(MARKUP)
    for each in (ada, mallory):
        each.wait_for_message(name, MARKUP)
        each.wait_for_members(name, "Ada")
        assert each.run("return document.querySelectorAll('#chat img, #chat script').length") == 0
        assert each.driver.title.startswith("greenws")
    mallory("chat-leave").click()
    left = "#chat-log li[data-kind=left] [data-field=text]"
    ada.wait_for_text(left, f"{name} left")


@pytest.mark.one_form
def test_a_taken_name_gets_a_number_and_a_notice(demo: Demo, browse: Browse) -> None:
    first, second = browse(demo.url + "/"), browse(demo.url + "/")
    first.join("Ada")
    second.join("Ada")
    notice = "#chat-log li[data-kind=notice] [data-field=text]"
    second.wait_for_text(notice, "Ada is taken; you are Ada (2).")
    assert second("chat-self").text == "Ada (2)"
    first.wait_for_members("Ada", "Ada (2)")


@pytest.mark.one_form
def test_a_name_is_required(page: Page) -> None:
    page("chat-name").send_keys("   ", Keys.ENTER)
    page.wait_for_text("#chat-join-error", "Please enter a name.")
    assert page.focused() == "chat-name"
    page.join("Ada")
    page("chat-leave").click()
    page("chat-name").clear()
    page("chat-name").send_keys("\u200b", Keys.ENTER)  # the page lets it through, the room does not
    page.wait_for_text("#chat-join-error", "A name must have 1 to 32 visible characters.")
    assert page("chat-state").text == "not joined"


@pytest.mark.one_form
def test_a_reload_joins_again_with_the_same_name(page: Page) -> None:
    page.join("Ada")
    page.say("before the reload")
    page.wait_for_message("Ada", "before the reload")
    page.driver.refresh()
    page.wait_for_state("chat", "connected")
    page.wait_for_members("Ada")
    assert page.messages() == [("Ada", "before the reload")]
    page("chat-leave").click()
    page.driver.refresh()
    assert page("chat-name").get_attribute("value") == "Ada"
    assert page("chat-state").text == "not joined"


def test_coming_back_shows_what_was_missed_and_repeats_nothing(demo: Demo, page: Page) -> None:
    page.join("Ada")
    with connect(demo.ws_url + "/chat", "chat") as grace:
        grace.send(json.dumps({"type": "join", "name": "Grace"}))
        page.wait_for_members("Ada", "Grace")
        page.say("see you")
        page.wait_for_message("Ada", "see you")
        page("chat-leave").click()
        while json.loads(grace.recv(timeout=limit(20)))["type"] != "left":
            pass
        grace.send(json.dumps({"type": "message", "text": "too late"}))
        assert json.loads(grace.recv(timeout=limit(20)))["text"] == "too late"
        page.join("Ada")
        page.wait_for_message("Grace", "too late")
        assert page.messages() == [("Ada", "see you"), ("Grace", "too late")]


@pytest.mark.one_form
def test_a_page_shows_messages_from_before_it_joined(demo: Demo, browse: Browse) -> None:
    ada = browse(demo.url)
    ada.join("Ada")
    ada.say("before the page was rendered")
    ada.wait_for_message("Ada", "before the page was rendered")
    grace = browse(demo.url)
    assert grace("chat-rendered").text.startswith("One message is here, of Ada at ")
    ada.say("after it was")
    ada.wait_for_message("Ada", "after it was")
    grace.join("Grace")
    assert [text for _, text in grace.messages()] == [
        "before the page was rendered",
        "after it was",
    ]


def test_two_tabs_are_one_person_and_a_reload_is_not_reported(demo: Demo, browse: Browse) -> None:
    ada, grace = browse(demo.url), browse(demo.url)
    ada.join("Ada")
    grace.join("Grace")
    first, before = grace.driver.current_window_handle, {*grace.driver.window_handles}
    # A tab of the same browser context: it has the same local storage.
    grace.run("window.open(location.href)")
    grace.wait_until(lambda: {*grace.driver.window_handles} - before, "the second tab")
    (second,) = {*grace.driver.window_handles} - before
    grace.driver.switch_to.window(second)
    grace.wait_for_state("chat", "connected")  # with the name, which the new tab has got
    grace.run("document.getElementById('chat-leave').click()")
    grace.join("Somebody else")
    grace.wait_for_members("Ada", "Grace")
    assert any("You are here already, as Grace." in text for text in grace.texts("#chat-log li"))
    grace.driver.close()
    grace.driver.switch_to.window(first)
    grace.driver.refresh()
    grace.wait_for_state("chat", "connected")
    grace.say("back at once")
    ada.wait_for_message("Grace", "back at once")
    assert sum("Grace" in text for text in ada.texts("#chat-log li:not([data-kind=message])")) == 1


def test_a_member_can_be_removed_and_may_join_again(demo: Demo, browse: Browse) -> None:
    ada, grace = browse(demo.url), browse(demo.url)
    ada.join("Ada")
    grace.join("Grace")
    ada.wait_for_members("Ada", "Grace")
    ada.run("document.querySelector('[aria-label=\"Remove Grace from the room\"]').click()")
    said = "Ada has removed you from the room. You may join again."
    grace.wait_for_text("#chat-join-error", said)
    assert grace("chat-state").text == "not joined"
    ada.wait_for_members("Ada")
    grace.join("Grace")
    ada.wait_for_members("Ada", "Grace")


def test_a_gap_is_shown_in_words(browse: Browse) -> None:
    port = str(free_port())
    with running("--port", port) as demo:
        page = browse(demo.url)
        page.expected_errors = "ERR_CONNECTION_REFUSED"
        page.join("Ada")
        page.say("kept in the memory of that server")
        page.wait_for_message("Ada", "kept in the memory of that server")
    page.wait_for_reconnecting()
    with running("--port", port):  # which knows nothing of it
        page.run("dispatchEvent(new Event('online'))")
        page.wait_for_state("chat", "connected")
        (told,) = page.texts("#chat-log li[data-kind=gap] [data-field=text]")
    pattern = (
        r"Messages are missing: the server no longer keeps all of the \d+ s without a connection\."
    )
    assert re.fullmatch(pattern, told)


@pytest.mark.one_form
def test_the_chat_works_with_the_keyboard_alone(page: Page) -> None:
    def press(*keys: str) -> None:
        page.driver.switch_to.active_element.send_keys(*keys)

    press(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the demos"
    press(Keys.ENTER)
    page.wait_until(lambda: page.focused() == "main", "the skip link's target")
    press(Keys.TAB)
    assert page.focused() == "chat-name"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) == "solid"
    press("Ada", Keys.ENTER)
    page.wait_for_state("chat", "connected")
    page.wait_until(lambda: page.focused() == "chat-input", "the message field")
    press("no mouse", Keys.ENTER)
    page.wait_for_message("Ada", "no mouse")
    assert page.focused() == "chat-input"
    unnamed = """
    return [...document.querySelectorAll("input, button, [role=log]")].filter(
      (node) => !(node.labels?.length || node.ariaLabel || node.textContent.trim())
    ).map((node) => node.outerHTML)"""
    assert page.run(unnamed) == []


@pytest.mark.one_form
def test_the_page_reconnects_when_the_server_is_back(demo: Demo, browse: Browse) -> None:
    ada, grace = browse(demo.url + "/"), browse(demo.url + "/")
    for each, name in ((ada, "Ada"), (grace, "Grace")):
        each.expected_errors = "WebSocket connection to .* failed"
        each.join(name)
    ada.wait_for_members("Ada", "Grace")
    ada.say("before")
    grace.wait_for_message("Ada", "before")
    port = str(demo.port)
    assert demo.stop() == 0
    for each in (ada, grace):
        each.wait_for_reconnecting()
        assert not each("chat-send").is_enabled()
        assert each.members() == []
    with running("--port", port) as again:
        assert again.url == demo.url
        for each in (ada, grace):
            each.wait_for_state("chat", "connected")
            each.wait_for_members("Ada", "Grace")
        assert ada("chat-self").text == "Ada"
        ada.say("after")
        for each in (ada, grace):
            each.wait_for_message("Ada", "after")
            assert each.messages() == [("Ada", "before"), ("Ada", "after")]


def test_nothing_is_missed_when_one_of_two_servers_is_killed(
    browse: Browse, redis: RedisServer
) -> None:
    with contextlib.ExitStack() as stack:
        options = ("--redis", redis.url, "--port")
        port = str(free_port())
        one = stack.enter_context(running(*options, port))
        other = stack.enter_context(running(*options, "0"))
        ada, grace = browse(one.url + "/?room=garden"), browse(other.url + "/?room=garden")
        ada.expected_errors = "WebSocket connection to .* failed"
        ada.join("Ada")
        ada.say("is anybody here?")
        ada.wait_for_message("Ada", "is anybody here?")
        grace.join("Grace")
        for each in (ada, grace):
            each.wait_for_members("Ada", "Grace")
            each.wait_for_message("Ada", "is anybody here?")
        one.kill()
        ada.wait_for_reconnecting()
        said = [f"number {number}" for number in range(5)]
        for text in said:
            grace.say(text)
            grace.wait_for_message("Grace", text)
        again = stack.enter_context(running(*options, port))
        assert again.url == one.url
        ada.wait_for_state("chat", "connected")
        ada.say("here I am")
        for each in (ada, grace):
            # The same person, though the room does not know yet that the first Ada is gone.
            each.wait_for_message("Ada", "here I am")
            texts = ["is anybody here?", *said, "here I am"]
            assert [text for _, text in each.messages()] == texts
        grace.expected_errors = ada.expected_errors  # the servers end before the pages


def test_nothing_is_missed_when_workers_are_killed(browse: Browse, redis: RedisServer) -> None:
    """Workers are killed one after the other, so that each page loses its worker at least once."""
    with contextlib.ExitStack() as stack:
        demo = stack.enter_context(running("--port", "0", "--workers", "2", "--redis", redis.url))
        ada, grace = (browse(demo.url + "/?room=garden") for _ in range(2))
        for each, name in ((ada, "Ada"), (grace, "Grace")):
            each.expected_errors = "WebSocket connection to .* failed"
            each.join(name)
        ada.wait_for_members("Ada", "Grace")
        ada.say("before")
        texts = ["before"]
        for number, worker in enumerate(children(demo.process.pid)):
            grace.wait_for_message("Ada", "before")
            os.kill(worker, signal.SIGKILL)
            name = f"Bob {number}"  # the worker of the last one may have been killed with him in it
            with connect(demo.ws_url + "/chat/garden", "chat", max_queue=None) as bob:
                bob.send(json.dumps({"type": "join", "name": name}))
                for text in (f"meanwhile {number}", f"and more {number}"):
                    bob.send(json.dumps({"type": "message", "text": text}))
                    texts.append(text)
                for each in (ada, grace):
                    each.wait_for_message(name, texts[-1])
                    each.wait_for_state("chat", "connected")
        grace.say("after")
        for each in (ada, grace):
            each.wait_until(lambda each=each: each.messages()[-1][1] == "after", "the last message")
            assert [text for _, text in each.messages()] == [*texts, "after"]


@pytest.mark.one_form
def test_reconnecting_can_be_forced_and_cancelled(demo: Demo, page: Page) -> None:
    page.expected_errors = "WebSocket connection to .* failed"
    page.join("Ada")
    page.run("window.setInterval = () => 0")  # only the button can end the wait
    port = str(demo.port)
    assert demo.stop() == 0
    page.wait_for_reconnecting()
    with running("--port", port) as again:
        assert again.url
        page("chat-retry").click()
        page.wait_for_state("chat", "connected")
        assert again.stop() == 0
    page.wait_for_reconnecting()
    page("chat-leave").click()
    page.wait_for_state("chat", "not joined")
    assert not page("chat-retry").is_displayed()


@pytest.mark.one_form
def test_newest_messages_stay_in_view_until_the_reader_scrolls_up(demo: Demo, page: Page) -> None:
    page.join("Ada")
    with connect(demo.ws_url + "/chat", "chat", max_queue=None) as grace:
        grace.send(json.dumps({"type": "join", "name": "Grace"}))

        def say(text: str) -> None:
            grace.send(json.dumps({"type": "message", "text": text}))
            page.wait_for_message("Grace", text)

        below = "const l = document.getElementById('chat-log');"
        below += "return l.scrollHeight - l.scrollTop - l.clientHeight"
        for number in range(20):
            say(f"message {number}")
        assert page.run(below) < 2
        page.run("document.getElementById('chat-log').scrollTop = 0")
        page.wait_until(lambda: page.run(below) > 100, "a log that is scrolled up")
        to_newest = page.driver.find_element(By.CSS_SELECTOR, "#chat .to-newest")
        say("one more")
        page.wait_until(to_newest.is_displayed, "the button to the newest message")
        assert page.run("return document.getElementById('chat-log').scrollTop") == 0
        to_newest.click()
        page.wait_until(lambda: page.run(below) < 2, "the newest message")
        assert not to_newest.is_displayed()


def test_over_tls_the_page_uses_wss(browse: Browse, tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(certfile)
    certificate.private_key_pem.write_to_path(keyfile)
    arguments = ("--port", "0", "--certfile", str(certfile), "--keyfile", str(keyfile))
    with running(*arguments) as demo:
        page = browse(demo.url + "/", insecure=True)
        assert page("echo-url").text == demo.ws_url + "/echo"
        assert demo.ws_url.startswith("wss://")
        page.wait_for_state("echo", "connected")
        page("echo-input").send_keys("over TLS", Keys.ENTER)
        page.wait_for_text("#echo-log li[data-kind=received] [data-field=text]", "over TLS")
        page.join("Ada")
        page.driver.get("about:blank")  # the server ends before the browser


@pytest.mark.one_form
def test_reduced_motion_is_respected(page: Page) -> None:
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    page.run("document.getElementById('chat-state').dataset.state = 'connecting'")
    page.emulate(*SCREENS["desktop"], motion="no-preference")
    assert page.run(style, "html", "scrollBehavior") == "smooth"
    assert page.run(style, ".button", "transitionDuration") != "0s"
    page.emulate(*SCREENS["desktop"], motion="reduce")
    assert page.run(style, "html", "scrollBehavior") == "auto"
    assert page.run(style, ".button", "transitionDuration") == "0s"
    dot = "return getComputedStyle(document.getElementById('chat-state'), '::before').animationName"
    assert page.run(dot) == "none"
    page.emulate(*SCREENS["desktop"], motion="no-preference")
    assert page.run(dot) == "pulse"


@pytest.mark.one_form
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_looks_right_on_every_screen(
    screen: str, scheme: str, demo: Demo, page: Page, tmp_path: Path
) -> None:
    page.emulate(*SCREENS[screen], scheme=scheme)
    page.screenshot(tmp_path / f"{screen}-{scheme}-start.png")
    assert page.run(LOW_CONTRAST) == []
    page.wait_for_state("echo", "connected")
    for text in ("hello", "a longer text that takes more than one line of the log" * 2):
        page("echo-input").send_keys(text, Keys.ENTER)
        page.wait_for_text("#echo-log li[data-kind=received] [data-field=text]", text)
    page.join("Grace")
    names = ("Ada", "Linus", "A name of thirty-two characters!", "x" * 32)
    with contextlib.ExitStack() as stack:
        for name in names:
            member = stack.enter_context(connect(demo.ws_url + "/chat", "chat"))
            for event in (
                {"type": "join", "name": name},
                {"type": "message", "text": f"This is {name}. " + "Some more words follow. " * 4},
            ):
                member.send(json.dumps(event))
            page.wait_for_text("#chat-members [data-field=name]", name)
        long_word = "w" * 200
        page.say(f"My answer, with <b>markup</b> and {long_word}")
        page.wait_until(lambda: len(page.messages()) == len(names) + 1, "all messages")
        page.run("scrollTo(0, 0)")
        page.screenshot(tmp_path / f"{screen}-{scheme}-busy.png")
        assert page.run(LOW_CONTRAST) == []
        assert page.overflow() <= 0
        page.emulate(320, 640, scheme=scheme)
        assert page.overflow() <= 0
    background = "return getComputedStyle(document.body).backgroundColor"
    light = sum(map(int, re.findall(r"\d+", page.run(background))[:3])) > 3 * 128
    assert light == (scheme == "light")


# The page about the server


@pytest.fixture
def server_page(demo: Demo, browse: Browse) -> Page:
    page = browse(demo.url + "/server")
    page.wait_for_state("server", "connected")
    return page


def wait_for_rates(page: Page) -> None:
    """The second snapshot, at the earliest."""
    page.wait_until(lambda: page("messages-out-rate").text != "\u2013", "rates")


def messages_in(page: Page) -> int:
    return int(page("messages-in").text.split()[0].replace(",", ""))


@pytest.mark.one_form
def test_the_chat_and_the_server_link_to_each_other(demo: Demo, page: Page) -> None:
    page.driver.find_element(By.LINK_TEXT, "Watch the server").click()
    page.wait_for_state("server", "connected")
    assert page.driver.current_url == demo.url + "/server"
    names = page.run("return performance.getEntriesByType('resource').map((r) => r.name)")
    assert [name for name in names if not name.startswith(demo.url + "/")] == []
    page.driver.find_element(By.LINK_TEXT, "Back to the demos").click()
    page.wait_until(lambda: page.driver.current_url == demo.url + "/", "the chat page")
    page.join("Ada")


@pytest.mark.one_form
def test_the_server_page_shows_live_figures(demo: Demo, browse: Browse, server_page: Page) -> None:
    assert server_page("process").text == f"Process {demo.process.pid}."
    assert not server_page("several").is_displayed()
    server_page.wait_for_text("#connections-open", "1")
    assert server_page.texts("#rooms-table tbody tr") == ["No rooms are open."]
    wait_for_rates(server_page)
    assert re.fullmatch(r"\d+(\.\d)? MB", server_page("memory").text)
    assert re.fullmatch(r"(\d+ min )?\d+ s", server_page("uptime").text)

    ada = browse(demo.url + "/")
    ada.wait_for_state("echo", "connected")
    ada.join("Ada")
    server_page.wait_for_text("#connections-open", "3")
    server_page.wait_for_text("#rooms-table tbody td:first-child", "lobby")
    server_page.wait_for_text("#slow-members-all", "of 1 room member")
    with connect(demo.ws_url + "/echo", "echo") as echo:
        for number in range(40):
            echo.send(str(number))
            assert echo.recv(timeout=limit(20)) == str(number)
    server_page.wait_until(lambda: messages_in(server_page) == 41, "all messages")
    ada("chat-leave").click()
    closes = "#closes-table tbody td:nth-child(2)"
    server_page.wait_for_text(closes, "normal")
    server_page.wait_for_text("#connections-total", "4 in total")
    server_page.wait_for_text("#rooms-table tbody td", "No rooms are open.")
    line = "return document.querySelector('#messages-chart .line:last-of-type').getAttribute('d')"
    server_page.wait_until(lambda: server_page.run(line).count("L") >= 2, "a line")
    server_page.driver.refresh()  # the last minute is there again
    server_page.wait_until(lambda: (server_page.run(line) or "").count("L") >= 2, "a line")


@pytest.mark.one_form
def test_names_on_the_server_page_are_shown_as_text(demo: Demo, server_page: Page) -> None:
    with connect(demo.ws_url + "/chat/%3Cimg%20src=x%20onerror=alert(1)%3E", "chat") as mallory:
        mallory.send(json.dumps({"type": "join", "name": "Mallory"}))
        name = "<img src=x onerror=alert(1)>"
        server_page.wait_for_text("#rooms-table tbody td:first-child", name)
        assert server_page.run("return document.querySelectorAll('main img').length") == 0


@pytest.mark.one_form
def test_the_server_page_reconnects_after_a_restart(demo: Demo, server_page: Page) -> None:
    server_page.expected_errors = "WebSocket connection to .* failed"
    port = str(demo.port)
    assert demo.stop() == 0
    pattern = r"reconnecting in \d+ s"
    state = server_page("server-state")
    server_page.wait_until(lambda: re.fullmatch(pattern, state.text), pattern)
    with running("--port", port) as again:
        assert again.url == demo.url
        server_page.wait_for_state("server", "connected")
        server_page.wait_for_text("#process", f"Process {again.process.pid}.")
        server_page.wait_for_text("#connections-total", "1 in total")


@pytest.mark.one_form
def test_the_server_page_adds_up_several_processes(browse: Browse, redis: RedisServer) -> None:
    with contextlib.ExitStack() as stack:
        demo = stack.enter_context(running("--port", "0", "--workers", "2", "--redis", redis.url))
        page = browse(demo.url + "/server")
        page.wait_for_text("#process", "2 processes.")
        assert not page("several").is_displayed()
        for number in range(6):
            member = stack.enter_context(connect(demo.ws_url + "/chat/garden", "chat"))
            member.send(json.dumps({"type": "join", "name": f"Ada {number}"}))
        page.wait_for_text("#connections-open", "7")
        page.wait_for_text("#rooms-table tbody td:nth-child(2)", "6")
        page.wait_for_text("#slow-members-all", "of 6 room members")

        def workers() -> list[str]:
            return sorted(page.texts("#processes-table tbody td:first-child"))

        def is_of(pids: list[int]) -> Callable[[], bool]:
            return lambda: workers() == sorted(map(str, pids))

        pids = children(demo.process.pid)
        page.wait_until(is_of(pids), "both workers")
        page.expected_errors = "WebSocket connection to .* failed"
        os.kill(pids[0], signal.SIGKILL)
        page.wait_until(lambda: str(pids[0]) not in workers(), "one worker less")
        page.wait_until(lambda: len(workers()) == 2, "another worker")
        assert page.overflow() <= 0


@pytest.mark.one_form
def test_the_server_page_says_that_a_worker_is_one_of_several(browse: Browse) -> None:
    with running("--port", "0", "--workers", "2") as demo:
        page = browse(demo.url + "/server")
        page.expected_errors = "favicon.ico"  # which /metrics does not have
        page.wait_until(page("several").is_displayed, "a word about the others")
        page.driver.find_element(By.LINK_TEXT, "/metrics").click()
        page.wait_until(lambda: "greenws_connections_open" in page.driver.page_source, "metrics")


@pytest.mark.one_form
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_server_page_looks_right_on_every_screen(
    screen: str, scheme: str, demo: Demo, server_page: Page, tmp_path: Path
) -> None:
    page = server_page
    page.emulate(*SCREENS[screen], scheme=scheme)
    wait_for_rates(page)
    with contextlib.ExitStack() as stack:
        for name in ("garden", "w" * 200):
            for number in range(3):
                member = stack.enter_context(connect(f"{demo.ws_url}/chat/{name}", "chat"))
                member.send(json.dumps({"type": "join", "name": f"Ada {number}"}))
        with connect(demo.ws_url + "/echo", "echo") as echo:
            echo.close(4001)
        with pytest.raises(InvalidStatus):
            connect(demo.ws_url + "/echo", "other")
        options = {"sock": narrow_socket(demo), "compression": None, "close_timeout": 0.1}
        sloth = stack.enter_context(connect(f"{demo.ws_url}/chat/library", "chat", **options))
        sloth.send(json.dumps({"type": "join", "name": "S" * 32}))
        talker = stack.enter_context(connect(f"{demo.ws_url}/chat/library", "chat"))
        talker.send(json.dumps({"type": "join", "name": "Grace"}))
        text = json.dumps({"type": "message", "text": "\u00fc" * 2000})
        sent = 8  # those that joined
        while page("slow").text != "1":
            for _ in range(100):  # fewer between two snapshots than a member's queue holds
                talker.send(text)
                talker.recv(timeout=limit(20))
            sent += 100
            page.wait_until(lambda sent=sent: messages_in(page) >= sent, "the messages")
        page.screenshot(tmp_path / f"server-{screen}-{scheme}.png")
        assert page.run(LOW_CONTRAST) == []
        assert page.overflow() <= 0
        page.emulate(320, 640, scheme=scheme)
        assert page.overflow() <= 0
