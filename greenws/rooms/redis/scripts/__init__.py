"""Scripts that run in Redis, each atomically. ``load`` returns the text of one."""

from __future__ import annotations

import pkgutil

__all__ = ["load"]


def load(name: str) -> str:
    data = pkgutil.get_data(__name__, f"{name}.lua")  # the package may be in a zip file
    if data is None:
        raise ImportError(f"{name}.lua of {__name__} cannot be read: its loader reads no data")
    return data.decode()
