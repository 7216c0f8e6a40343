"""docs/SECURITY.md names tests, and they exist."""

from __future__ import annotations

import ast
import re

import pytest

from greenws import Config

from .support.paths import ROOT

pytestmark = pytest.mark.no_io

TEXT = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ")][2:]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_is_named_exists(file, test):
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_threat_has_its_test():
    assert len(ROWS) > 15
    for row in ROWS:
        assert re.search(r"`[\w/]+\.py::test_\w+` ?(, `|\|$)", row), row


def test_the_options_that_are_named_exist():
    named = set(re.findall(r"`((?:max|write|ping|close|handshake|body|keep)_\w+)`", TEXT))
    assert named and all(hasattr(Config, name) for name in named)
