"""The distribution that this package belongs to: its version, and an unrelated one called greenws.

It is called greenws-wsgi; "greenws" in the public index is an unrelated module of 2021.
"""

from __future__ import annotations

import glob
import os
import re
import warnings

__all__ = ["FOLDER", "NAME", "check_neighbours", "is_checkout", "shadowed", "unrelated", "version"]

NAME = "greenws-wsgi"

FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder that holds this package: a checkout, or the folder of installed packages."""


def version() -> str:
    """The version: from pyproject.toml in a checkout, otherwise from the installed metadata."""
    try:
        with open(os.path.join(FOLDER, "pyproject.toml"), encoding="utf-8") as file:
            found = re.search(rf'^name = "{NAME}"\nversion = "(.+)"$', file.read(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return found[1]
    from importlib import metadata

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:  # a copy of the package's folder
        return "0+unknown"


def is_checkout() -> bool:
    """Whether this package is in a checkout, not installed."""
    return os.path.isfile(os.path.join(FOLDER, "pyproject.toml"))


def unrelated() -> str | None:
    """Where a distribution called "greenws" is installed, in any folder of ``sys.path``."""
    from importlib import metadata

    for found in metadata.distributions(name="greenws"):
        folder = os.path.abspath(str(found.locate_file("")))
        # A checkout that was once installed under that name still has its metadata.
        if folder != FOLDER or not is_checkout():
            return folder
    return None


def shadowed() -> str | None:
    """The folder of another greenws that is installed, but hidden by this one."""
    from importlib import metadata

    for found in metadata.distributions(name=NAME):
        folder = os.path.abspath(str(found.locate_file("")))
        # The folder of an editable installation holds only metadata.
        if folder != FOLDER and os.path.isdir(os.path.join(folder, __package__ or "")):
            return folder
    return None


def check_neighbours() -> None:
    """Warns if a distribution called "greenws" is installed in the same folder as this package."""
    # Only that one folder: to look through sys.path would double the time of `import greenws`.
    if glob.glob(os.path.join(glob.escape(FOLDER), "greenws-[0-9]*.dist-info")):
        warnings.warn(
            f'The distribution "greenws" in {FOLDER} is an unrelated project; this package '
            f"belongs to {NAME}. Remove it: pip uninstall greenws",
            RuntimeWarning,
            stacklevel=3,
        )


def __getattr__(name: str) -> str:
    if name == "__version__":
        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
