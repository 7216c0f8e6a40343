"""Scripts that run in Redis, each in one step. ``load`` gives the text of one."""

from __future__ import annotations

from pathlib import Path

__all__ = ["load"]


def load(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8")
