"""The figures that the documentation shows are those of benchmarks/results."""

from __future__ import annotations

import re

import pytest

from ..support.paths import ROOT

pytestmark = pytest.mark.no_io

SERVERS = {
    "Bun 1.4": "bun",
    "picows 2.3": "picows",
    "`ws` 8.23": "node-ws",
    "aiohttp 3.14": "aiohttp",
    "`websockets` 17.4": "websockets-asyncio",
    "gevent-websocket 0.10": "gevent-websocket",
    "Flask-Sock 0.7": "flask-sock",
    "greenws, pure": "greenws-pure",
}
CASES = {
    "32 bytes, 100 connections": "32B-100",
    "32 bytes, 1,000 connections": "32B-1000",
    "32 bytes, 16 in flight on each of 100": "32B-100x16",
    "4 KiB, 100 connections": "4KiB-100",
    "1 MiB, 8 connections": "1MiB-8",
    "32 bytes over TLS, 100 connections": "tls-32B-100",
    "64 bytes to a room of 1,000": "fanout-64B-1000",
}
SMALL = ("32B-100", "32B-1000")


def table_after(text: str, mark: str, first: str = "| |") -> tuple[list[str], list[list[str]]]:
    """The columns and rows of the first table after ``mark`` that begins with ``first``."""
    lines = text[text.index(mark) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[0], rows[2:]


def ratios_of(name: str) -> dict[tuple[str, str], float]:
    """By case and server."""
    text = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text()
    servers, rows = table_after(text, "Cost of each", "| case")
    return {
        (case, server): float(cell.split()[0].replace(",", ""))
        for case, *cells in rows
        for server, cell in zip(servers[1:], cells, strict=True)
        if cell
    }


def is_rounded(text: str, value: float) -> bool:
    """Whether ``text`` is ``value``, with as many decimals as it has."""
    decimals = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5 * 10**-decimals + 1e-9


@pytest.mark.parametrize("name", ["echoes", "tls", "main"])
def test_the_ratios_are_those_of_the_results(name):
    page = (ROOT / "docs" / "topics" / "memory-and-speed.md").read_text()
    ratios = ratios_of(name)
    columns, rows = table_after(page, f"`benchmarks/results/{name}.md`")
    shown = {
        (CASES[label], SERVERS[column]): cell
        for label, *cells in rows
        if label in CASES
        for column, cell in zip(columns[1:], cells, strict=True)
        if cell
    }
    assert len(shown) >= 2
    wrong = {key: cell for key, cell in shown.items() if not is_rounded(cell, ratios[key])}
    assert wrong == {}


def is_range(text: str, values: list[float]) -> bool:
    """``text`` is "1.1", or "1.4 to 1.5": the least and the largest of ``values``."""
    least, _, largest = text.partition(" to ")
    return is_rounded(least, min(values)) and is_rounded(largest or least, max(values))


def test_the_readme_says_what_was_measured():
    text = (ROOT / "README.md").read_text()
    ratios = ratios_of("main")
    for name, server in {
        "Bun": "bun",
        "picows": "picows",
        "`ws`": "node-ws",
        "`websockets`": "websockets-asyncio",
        "gevent-websocket": "gevent-websocket",
    }.items():
        found = re.search(rf"(?:: |, |Node's ){re.escape(name)} (\d\S*(?: to [\d.]+)?\d)", text)
        assert found, name
        assert is_range(found[1], [ratios[case, server] for case in SMALL]), found[0]


def test_the_features_say_what_was_measured():
    page = (ROOT / "docs" / "reference" / "features.md").read_text()
    columns, rows = table_after(page, "For picows")
    (cells,) = (dict(zip(columns, row, strict=True)) for row in rows if row[0].startswith("CPU"))
    ratios = ratios_of("main")
    names = {"Flask-Sock": "flask-sock", "websockets": "websockets-asyncio", "ws": "node-ws"}
    for column in (
        "gevent-websocket",
        "Flask-Sock",
        "websockets",
        "aiohttp",
        "picows",
        "ws",
        "Bun",
    ):
        server = names.get(column, column.lower())
        assert is_range(cells[column], [ratios[case, server] for case in SMALL]), column
