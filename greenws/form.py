"""Which form of the modules is imported: compiled, if they were built, or pure Python.

A compiled module is in the folder of its source, under the same name, and Python prefers it. With
``GREENWS_PURE_PYTHON=1``, the sources are imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

__all__ = ["PURE"]

PURE = os.environ.get("GREENWS_PURE_PYTHON", "") not in ("", "0")
_FOLDER = os.path.dirname(os.path.abspath(__file__))


class _SourcesOnly(MetaPathFinder):
    """Finds the sources of greenws's modules, even of compiled ones."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, *parts = name.split(".")
        source = os.path.join(_FOLDER, *parts) + ".py"
        if package != __package__ or not parts or not os.path.isfile(source):
            return None
        return spec_from_file_location(name, source)


if PURE:
    sys.meta_path.insert(0, _SourcesOnly())
