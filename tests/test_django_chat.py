"""The example of Django, run as its docstring says, with clients and in a browser."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import re
import shutil
import urllib.parse
import urllib.request

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from .support.limits import limit
from .support.paths import ROOT
from .support.processes import Process, connect
from .support.require import require_program
from .support.wire import Peer

FOLDER = ROOT / "examples" / "django_chat"
PASSWORD = "correct horse battery"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    options = {"DATABASE": str(tmp_path_factory.mktemp("chat") / "chat.sqlite3")}
    for command in (["makemigrations", "--check"], ["migrate"]):
        with Process("manage.py", *command, cwd=FOLDER, **options) as process:
            assert process.popen.wait(limit(20)) == 0, process.output
    return options


@pytest.fixture(scope="module")
def runserver(env):
    command = ["manage.py", "runserver", "127.0.0.1:0"]
    with Process(*command, cwd=FOLDER, **env) as process:
        process.wait_for("System check identified no issues")
        yield process.wait_for_port()
    process.assert_no_trouble()


class Visitor:
    """A browser without JavaScript: cookies, forms, pages."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))

    def get(self, path: str) -> str:
        with self._opener.open(self.process.url(path, "http"), timeout=limit()) as response:
            return response.read().decode()

    def post(self, path: str, **fields: str) -> str:
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', self.get(path))[1]
        data = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token}).encode()
        url = self.process.url(path, "http")
        with self._opener.open(url, data, timeout=limit()) as response:
            return response.read().decode()

    def sign_up(self, name: str) -> Visitor:
        self.post("/signup/", username=name, password1=PASSWORD, password2=PASSWORD)
        return self

    def connect(self, path: str):
        cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.jar)
        return connect(self.process.url(path), additional_headers={"Cookie": cookie})


_seen: dict[object, set[int]] = {}


def receive(ws):
    """The next message; one that is said while a client joins may come twice, with the same id."""
    seen = _seen.setdefault(ws.id, set())
    while (message := json.loads(ws.recv(timeout=limit())))["id"] in seen:
        pass
    seen.add(message["id"])
    return message["author"], message["text"]


def test_a_stranger_is_sent_to_the_login(runserver):
    with Peer.connect(runserver.address) as peer:
        response = peer.shake("/rooms/lobby/socket/", Host=f"127.0.0.1:{runserver.port}")
    assert response.status == 302
    assert response.headers["location"].startswith("/login/")


def test_two_visitors_talk_and_the_orm_remembers(runserver):
    ada, bob = Visitor(runserver).sign_up("ada"), Visitor(runserver).sign_up("bob")
    with ada.connect("/rooms/tea/socket/") as one, bob.connect("/rooms/tea/socket/") as two:
        one.send("Hello, <b>Bob</b>.")
        assert receive(one) == receive(two) == ("ada", "Hello, <b>Bob</b>.")
        two.send("Hello, Ada.")
        assert receive(one) == receive(two) == ("bob", "Hello, Ada.")
    page = Visitor(runserver)
    page.post("/login/", username="bob", password=PASSWORD)
    assert "Hello, Ada." in page.get("/rooms/tea/")
    assert "<b>Bob" not in page.get("/rooms/tea/")
    with page.connect("/rooms/tea/socket/?after=0") as ws:  # what a client has missed
        assert [receive(ws)[0] for _ in range(2)] == ["ada", "bob"]


def test_under_gunicorn(env):
    command = ["-m", "gunicorn", "chat.wsgi", "--bind", "127.0.0.1:0"]
    with Process(*command, cwd=FOLDER, **env) as process:
        process.wait_for_port(r"Listening at: http://127\.0\.0\.1:(\d+)")
        assert "greenws.gunicorn.Worker" in process.wait_for("Using worker").string
        visitor = Visitor(process).sign_up("eve")
        assert "WebSocket" in visitor.get("/static/chat/room.js")
        with visitor.connect("/rooms/hall/socket/") as ws:
            ws.send("Is anybody here?")
            assert receive(ws) == ("eve", "Is anybody here?")


def test_in_a_browser(runserver, tmp_path):
    require_program("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    with contextlib.closing(_Browser(driver)) as browser:
        driver.get(runserver.url("/signup/", "http"))
        browser.type("[name=username]", "grace")
        browser.type("[name=password1]", PASSWORD)
        browser.type("[name=password2]", PASSWORD)
        browser.click("form button")
        browser.wait_for("#state", "connected")
        browser.type("#input", "Hello from a browser.")
        browser.click("#form button")
        browser.wait_for("#log", "grace: Hello from a browser.")
        visitor = Visitor(runserver).sign_up("linus")
        with visitor.connect("/rooms/lobby/socket/") as ws:
            ws.send("Hello from a client.")
            browser.wait_for("#log", "linus: Hello from a client.")
        driver.refresh()
        browser.wait_for("#log", "grace: Hello from a browser.\nlinus: Hello from a client.")


class _Browser:
    def __init__(self, driver):
        self._driver = driver

    def find(self, selector):
        return self._driver.find_element(By.CSS_SELECTOR, selector)

    def type(self, selector, text):
        self.find(selector).send_keys(text)

    def click(self, selector):
        self.find(selector).click()

    def wait_for(self, selector, text):
        wait = WebDriverWait(self._driver, limit(20), ignored_exceptions=[Exception])
        wait.until(lambda driver: text in self.find(selector).text)

    def close(self):
        self._driver.quit()
