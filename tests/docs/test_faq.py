"""Every error and log line that a user can meet is explained."""

from __future__ import annotations

import re

import pytest

from ..support.messages import HOLE, find_strings, find_texts
from ..support.paths import ROOT

pytestmark = pytest.mark.no_io

FAQ = (ROOT / "docs" / "faq.md").read_text()
LOGS = (ROOT / "docs" / "reference" / "logs.md").read_text()


def test_every_text_is_explained():
    texts = sorted(set(find_texts()))
    assert len(texts) > 200
    pages = {"debug": LOGS, "info": LOGS}
    missing = [text for text in texts if not re.search(text.pattern, pages.get(text.kind, FAQ))]
    assert not missing, (
        "add a row to docs/faq.md (info, debug: reference/logs.md) for each:\n"
        + "\n".join(map(str, missing))
    )


# Texts of other programs, and those that are put together.
NOT_IN_THE_SOURCE = {
    "WebSocket connection to '",
    "' failed",
    "Connection reset by peer",
    "Control server error:",
    "Permission denied",
    "TypeError: 'str' object is not callable",
    "connection lost: TLS:",
    "lost connection to Redis:",
    "reconnected to Redis",
    "Redis refuses commands:",
    "Redis accepts commands again",
    "Redis refuses:",
    "responded with status 400",
    "No WebSocket here: WSGIServer/0.2 does not hand over the socket; put "
    "'greenws.integrations.django' into INSTALLED_APPS, for Django's runserver, or",
}


def test_every_text_that_is_explained_exists():
    strings = "\n".join(find_strings())
    rows = re.findall(r"^\| (.*) \| ", FAQ, re.M)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    parts = [part.strip() for text in quoted for part in text.split(HOLE)]
    assert len(parts) > 200
    assert {part for part in parts if len(part) > 5 and part not in strings} == NOT_IN_THE_SOURCE


def test_every_row_is_in_a_table():
    lines = FAQ.splitlines()
    after_blank = [line for before, line in zip(lines, lines[1:], strict=False) if not before]
    firsts = {line[:11] for line in after_blank if line.startswith("|")}
    assert firsts == {"| you see |"}
