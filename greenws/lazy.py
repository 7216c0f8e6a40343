"""Names that a package exports, imported at their first use (PEP 562).

So ``import greenws`` is quick, and parts that do not use gevent do not import it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["export"]


def export(
    package: str, names: Mapping[str, str], modules: tuple[str, ...] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of ``package``.

    ``names``: for each exported name, the module that defines it, relative to the package.
    ``modules``: submodules that are attributes of the package without an import of their own.
    """

    def load(name: str) -> Any:
        if name in names:
            value = getattr(import_module(names[name], package), name)
        elif name in modules:
            value = import_module(f".{name}", package)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names, *modules})

    return load, listing
