"""The texts of the package's errors and log lines, as its source has them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from greenws import exceptions

from .paths import ROOT

__all__ = ["Text", "find_strings", "find_texts"]

PACKAGE = ROOT / "greenws"
HOLE = "…"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
CALLS = {
    "Error": 0,
    "Warning": 0,
    "log": 1,
    "log_error": 1,
    "warn": 0,
    "fail": 0,
    "_close": 1,
    "timed_out": 0,
}
"""Other calls that get a text, and the number of the argument."""
ERRORS = {*exceptions.__all__, "RuntimeError", "TimeoutError"}
"""Where they are made, which may be before they are raised."""
ASSIGNED = {
    "args": ["client"],
    "failure": ["hub"],
    "reason": ["http", "rooms"],
    "text": ["refusals.py"],
    "TOO_MANY": ["server"],
}
"""Names, and folders or modules in which what is assigned to them ends in a log or an error."""
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
            for kind, expression in _expressions(node, name.parts):
                for text in _texts(expression):
                    if len(re.findall(r"\w+", text)) > 1:
                        yield Text(f"{name}:{expression.lineno}", kind, text)


def find_strings() -> Iterator[str]:
    """All strings of the package, with … in the places that are filled in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.expr) and (text := _text(node)):
                yield re.sub(r"%[.\d]*[sdrgf]|\{\w*\}", HOLE, text)


def _expressions(node: ast.AST, place: tuple[str, ...]) -> Iterator[tuple[str, ast.expr]]:
    """Those of a node that make a text for somebody, with what becomes of it."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        kind = _name(node.exc.func)
        if kind not in SELF_EXPLAINING:
            yield from ((kind, argument) for argument in node.exc.args)
    elif isinstance(node, ast.Call):
        kind = _name(node.func)
        if kind in LEVELS:
            yield from ((kind, argument) for argument in node.args[:1])
        elif kind in ERRORS:
            yield from ((kind, argument) for argument in node.args)
        elif kind in CALLS:
            yield from ((kind, argument) for argument in node.args[CALLS[kind] :][:1])
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and node.value:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in map(_name, targets):
            if {*ASSIGNED.get(name, [])} & {*place}:
                yield name, node.value
    elif isinstance(node, ast.FunctionDef) and node.name == "__str__":
        returns = (each for each in ast.walk(node) if isinstance(each, ast.Return))
        yield from ((node.name, each.value) for each in returns if each.value)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _texts(node: ast.expr) -> list[str]:
    """What an expression may be: more than one text if it has an ``if``."""
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    if isinstance(node, (ast.Dict, ast.Tuple)):
        parts = node.values if isinstance(node, ast.Dict) else node.elts
        return [text for part in parts for text in _texts(part)]
    return [re.sub(r"%[.\d]*[sdrgf]", HOLE, _text(node))]


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or HOLE) + (_text(node.right) or HOLE)
    return ""
