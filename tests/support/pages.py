"""The code blocks of the documentation, and how each is to be tried.

A comment in the line before a block may say so:

- ``<!-- setup`` and Python up to ``-->``: what the fragments of the page need, and do not show.
- ``<!-- check``, likewise: what must hold when all of them have run.
- ``<!-- not run: REASON -->``: the block is only read.
- ``<!-- run by PATH::TEST -->``: that test does what the block says.
- ``<!-- copy of PATH -->``: an excerpt of an example, which its own tests run (docs/copies.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .paths import ROOT

__all__ = ["PAGES", "Block", "blocks_in", "hidden_of", "name_of"]

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|:{3,})(?P<info>.*)$")
_OPTION = re.compile(r"^:(?P<name>[\w-]+):\s*(?P<value>.*)$")
_COMMENT = re.compile(r"<!-- (?P<text>(?:not run: .+|run by .+|copy of .+)) -->")

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT / "docs").with_suffix(""))


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    caption: str = ""
    """The file that it is."""
    note: str = ""
    """What the comment before it says."""

    @property
    def is_run(self) -> bool:
        return not self.note

    @property
    def test(self) -> str:
        """The test that does what the block says."""
        return self.note.removeprefix("run by ") if self.note.startswith("run by ") else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def hidden_of(page: Path, kind: str) -> str:
    """The Python of the comments of this kind (setup or check)."""
    pattern = rf"^<!-- {kind}\n(.*?)^-->$"
    return "\n".join(re.findall(pattern, page.read_text(), re.M | re.S))


def blocks_in(page: Path) -> list[Block]:
    found = []
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    note = ""
    for number, line in lines:
        if (comment := _COMMENT.search(line)) is not None:
            note = comment["text"]
            continue
        fence = _FENCE.match(line)
        if fence is None:
            if line.strip():
                note = ""
            continue
        info = fence["info"].strip()
        if info.startswith("{") and not info.startswith("{code-block}"):
            note = ""
            continue  # a directive, whose content may hold blocks
        language = info.removeprefix("{code-block}").strip()
        body = []
        caption = ""
        in_options = info.startswith("{code-block}")
        for _, inner in lines:
            text = inner.removeprefix(fence["indent"])
            if text.strip() == fence["marks"]:
                break
            if in_options and (option := _OPTION.match(text)):
                if option["name"] == "caption":
                    caption = option["value"]
                continue
            in_options = False
            body.append(text)
        found.append(
            Block(page, number, language, "\n".join(body).strip("\n") + "\n", caption, note)
        )
        note = ""
    return found
