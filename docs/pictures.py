"""Draws the pictures of the documentation into ``_static/``: ``make pictures``.

The drawings are SVG, on a ground of their own, so that they are legible on light and dark pages.
With ``--demo`` Chromium takes a picture of the demo, too.
"""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

STATIC = Path(__file__).resolve().parent / "_static"
ROOT = STATIC.parents[1]
INK, GROUND, BOX, LINE, ACCENT = "#1f2933", "#f7faf7", "#ffffff", "#3f7d58", "#d9efe0"
STYLE = "font-family: system-ui, sans-serif; font-size: 15px"


class Drawing:
    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'role="img" aria-label="{html.escape(title)}" style="{STYLE}">',
            f'<rect width="{width}" height="{height}" rx="10" fill="{GROUND}"/>',
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" '
            f'fill="{LINE}"/></marker></defs>',
        ]

    def box(self, x: int, y: int, width: int, height: int, *lines: str, fill: str = BOX) -> None:
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" '
            f'stroke="{LINE}" stroke-width="1.5"/>'
        )
        top = y + height / 2 - 10 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            weight = ' font-weight="600"' if number == 0 else ' font-size="13"'
            self.text(x + width / 2, top + 20 * number, line, weight)

    def text(self, x: float, y: float, text: str, more: str = "", anchor: str = "middle") -> None:
        self._parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{INK}"{more}>'
            f"{html.escape(text)}</text>"
        )

    def arrow(self, x1: int, y1: int, x2: int, y2: int, both: bool = False) -> None:
        start = ' marker-start="url(#tip)"' if both else ""
        self._parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}" stroke-width="2" '
            f'marker-end="url(#tip)"{start}/>'
        )

    def save(self, name: str) -> None:
        (STATIC / name).write_text("\n".join([*self._parts, "</svg>", ""]))


def layers() -> None:
    drawing = Drawing(760, 400, "The layers of greenws")
    rows = [
        ("your application", "Flask, Django, bare WSGI; handlers that block", ACCENT),
        ("integrations/, gunicorn.py, testing/, cli/", "how programs meet it", BOX),
        ("server/", "accepts, parses heads, calls the application, stops", BOX),
        ("rooms/", "one log for all processes, presence, policies", BOX),
        (
            "session.py, upgrade.py, routes.py, websocket.py, client/",
            "a session and its socket",
            BOX,
        ),
        ("http/", "heads and bodies", BOX),
        ("hub/", "waiting, buffers, turns, forks: all I/O", BOX),
        ("protocol/", "frames, messages, handshakes, compression: no I/O at all", BOX),
    ]
    for number, (name, what, fill) in enumerate(rows):
        drawing.box(30, 20 + 45 * number, 700, 40, fill=fill)
        drawing.text(45, 45 + 45 * number, name, ' font-weight="600"', "start")
        drawing.text(715, 45 + 45 * number, what, ' font-size="13"', "end")
    drawing.save("layers.svg")


def message() -> None:
    drawing = Drawing(760, 250, "The way of a message")
    drawing.box(20, 90, 100, 60, "browser")
    drawing.box(180, 30, 160, 60, "receive buffer", "one for all sockets")
    drawing.box(400, 30, 140, 60, "parse", "unmask, inflate")
    drawing.box(585, 90, 165, 60, "handler", "for message in socket", fill=ACCENT)
    drawing.box(400, 160, 140, 60, "frame", "deflate, header")
    drawing.box(180, 160, 160, 60, "outbox", "held back, sent once")
    drawing.arrow(120, 105, 178, 65)
    drawing.arrow(340, 60, 398, 60)
    drawing.arrow(540, 65, 583, 103)
    drawing.arrow(584, 138, 542, 180)
    drawing.arrow(400, 190, 342, 190)
    drawing.arrow(180, 185, 122, 140)
    drawing.text(370, 130, "the kernel's recv and send: four fifths of the time", ' font-size="13"')
    drawing.save("message.svg")


def room() -> None:
    drawing = Drawing(760, 330, "A room over Redis")
    for number, name in enumerate(("worker 1", "worker 2", "worker 3")):
        x = 40 + 240 * number
        drawing.box(x, 130, 200, 70, name, "the room's tail in memory")
        for client in range(3):
            drawing.box(x + 70 * client, 250, 60, 40, "client", fill=ACCENT)
            drawing.arrow(x + 30 + 70 * client, 202, x + 30 + 70 * client, 248, both=True)
        drawing.arrow(x + 100, 128, 380 + 60 * (number - 1), 88, both=True)
    drawing.box(230, 20, 300, 66, "Redis", "log of the room; leases of who is there")
    drawing.text(
        380,
        315,
        "appended once, published in order; what was missed is read on in the log",
        ' font-size="13"',
    )
    drawing.save("room.svg")


def demo() -> None:
    """Two people in the chat; the echo has answered."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    command = [sys.executable, str(ROOT / "run_server.py"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    drivers = []

    def visit(url: str, name: str) -> webdriver.Chrome:
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
            options.add_argument(argument)
        driver = webdriver.Chrome(options=options)
        drivers.append(driver)
        driver.set_window_size(1200, 1250)
        driver.get(url)
        write(driver, "chat-name", name)
        return driver

    def write(driver: webdriver.Chrome, field: str, text: str) -> None:
        found = driver.find_element(By.ID, field)
        WebDriverWait(driver, 10).until(lambda _: found.is_displayed() and found.is_enabled())
        found.send_keys(text, Keys.ENTER)

    try:
        url = next(line for line in server.stdout if "http://" in line)
        url = "http://" + url.split("http://")[1].split()[0]
        ada, grace = visit(url, "Ada"), visit(url, "Grace")
        write(ada, "chat-input", "Does it run under gunicorn?")
        WebDriverWait(grace, 10).until(lambda _: "gunicorn" in grace.page_source)
        write(grace, "chat-input", "Four workers, one Redis.")
        write(grace, "chat-input", "I killed one. Did you miss anything?")
        WebDriverWait(ada, 10).until(lambda _: "miss anything" in ada.page_source)
        write(ada, "chat-input", "Not a word.")
        write(ada, "echo-input", "hello")
        WebDriverWait(ada, 10).until(
            lambda _: len(ada.find_elements(By.CSS_SELECTOR, "#echo-log li")) > 1
        )
        ada.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        ada.save_screenshot(str(STATIC / "demo.png"))
    finally:
        for driver in drivers:
            driver.quit()
        server.terminate()
        server.wait()


if __name__ == "__main__":
    layers()
    message()
    room()
    if "--demo" in sys.argv:
        demo()
