"""Writes into the pages what they show of the examples; so they are whole as plain Markdown too.

A comment before a code block names the file, and where to begin and end, if not with its first and
last line:

    <!-- copy of examples/tutorial/3_workers/app.py, from "rooms =", to "rooms =" -->

`python docs/copies.py` brings the blocks up to date; tests/docs/test_pages.py finds old ones.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = re.compile(
    r'^<!-- copy of (?P<path>[^\s,]+)(?:, from "(?P<first>[^"]+)")?'
    r'(?:, to "(?P<last>[^"]+)")? -->\n'
    r"```(?P<info>\{code-block\} \w+\n(?:^:\w+: .*\n)*)(?P<text>(?:.*\n)*?)^```$",
    re.M,
)


def excerpt(path: str, first: str | None, last: str | None) -> str:
    """The lines of a file from the one that begins with ``first`` to the next with ``last``,
    without what is for ruff."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(first)) if first else 0
    end = len(lines)
    if last:
        end = next(i for i in range(begin, end) if lines[i].startswith(last)) + 1
    return "".join(line.partition("  # noqa")[0] + "\n" for line in lines[begin:end])


def with_copies(page: str) -> str:
    """The text of a page, with its copies as the files are now."""

    def write(found: re.Match[str]) -> str:
        text = excerpt(found["path"], found["first"], found["last"])
        return found[0][: found.start("text") - found.start()] + text + "```"

    return _BLOCK.sub(write, page)


if __name__ == "__main__":
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        if (new := with_copies(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))
