"""Which form of the modules is imported: compiled, if they were built, or pure Python.

A compiled module is in the folder of its source, under the same name, and Python prefers it. The
sources are imported with ``GREENWS_PURE_PYTHON=1``, and if the modules could not be compiled when
greenws was installed, because there was no C compiler.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

__all__ = ["DESCRIPTION", "FORCED", "PURE"]

_FOLDER = os.path.dirname(os.path.abspath(__file__))

FORCED = os.environ.get("GREENWS_PURE_PYTHON", "") not in ("", "0")
"""Whether ``GREENWS_PURE_PYTHON`` asks for the pure form."""

# setup.py builds either all of the modules or none.
_BUILT = any(
    os.path.isfile(os.path.join(_FOLDER, "protocol", f"_masking{suffix}"))
    for suffix in EXTENSION_SUFFIXES
)

PURE = FORCED or not _BUILT
"""Whether this is the pure form."""

_NOT_BUILT = (
    "the extension modules are not built in this checkout; pip install -e . builds them"
    if os.path.isfile(os.path.join(os.path.dirname(_FOLDER), "pyproject.toml"))
    else "the extension modules were not built when greenws was installed"
)

DESCRIPTION = (
    "pure Python (GREENWS_PURE_PYTHON is set)"
    if FORCED
    else "compiled"
    if _BUILT
    else f"pure Python ({_NOT_BUILT})"
)
"""The form, in words."""


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


if FORCED:
    sys.meta_path.insert(0, _SourcesOnly())
