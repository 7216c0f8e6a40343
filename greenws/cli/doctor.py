"""Checks this installation, and says what to do about it."""

from __future__ import annotations

import argparse
import platform

from .. import distribution, form

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    print(
        f"greenws {distribution.version()}, {form.DESCRIPTION}; Python {platform.python_version()}"
    )
    return 0
