"""The texts of the package's errors and log lines, as its source has them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from .paths import ROOT

__all__ = ["Text", "find_texts"]

PACKAGE = ROOT / "greenws"
HOLE = "…"
LEVELS = {"warning", "error", "exception", "critical"}
# Their texts say themselves what is right; or they never reach a user.
SELF_EXPLAINING = {"TypeError", "ValueError", "KeyError", "AttributeError", "ImportError"}


class Text(NamedTuple):
    place: str
    kind: str
    """The name of the exception, or the level."""
    text: str
    """With … in the places that are filled in."""

    @property
    def pattern(self) -> str:
        """What a page has that explains it."""
        parts = [part for part in self.text.split(HOLE) if part.strip()]
        return ".*".join(re.escape(part.strip()) for part in parts)


def find_texts() -> Iterator[Text]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                kind = _name(node.exc.func)
                if kind in SELF_EXPLAINING:
                    continue
                for argument in node.exc.args:
                    text = _text(argument)
                    if len(text.replace(HOLE, "").split()) > 1:
                        yield Text(place, kind, text)
            elif isinstance(node, ast.Call) and _name(node.func) in LEVELS and node.args:
                text = re.sub(r"%[.\d]*[sdrgf]", HOLE, _text(node.args[0]))
                if len(text.replace(HOLE, "").split()) > 1:
                    yield Text(place, _name(node.func), text)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or HOLE) + (_text(node.right) or HOLE)
    return ""
