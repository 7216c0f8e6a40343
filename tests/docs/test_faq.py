"""Every error and log line that a user can meet is explained."""

from __future__ import annotations

import re

import pytest

from ..support.messages import find_texts
from ..support.paths import ROOT

pytestmark = pytest.mark.no_io

FAQ = (ROOT / "docs" / "faq.md").read_text()


def test_every_text_is_explained():
    texts = sorted(set(find_texts()))
    assert len(texts) > 100
    missing = [text for text in texts if not re.search(text.pattern, FAQ)]
    assert not missing, "add a row to docs/faq.md for each:\n" + "\n".join(map(str, missing))


def test_every_row_is_in_a_table():
    lines = FAQ.splitlines()
    after_blank = [line for before, line in zip(lines, lines[1:], strict=False) if not before]
    firsts = {line[:11] for line in after_blank if line.startswith("|")}
    assert firsts == {"| you see |"}
