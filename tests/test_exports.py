"""What the packages export is what their ``__all__`` says."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

import pytest

from greenws.checks import Hint

from .support.paths import ROOT

PACKAGES = ["greenws", "greenws.brokers", "greenws.rooms", "greenws.testing"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists_and_is_listed(package: str) -> None:
    module = import_module(package)
    names = module.__all__
    assert len(set(names)) == len(names)
    assert set(names) <= set(dir(module))
    for name in names:
        assert getattr(module, name) is not None


def documented() -> dict[Any, set[str] | None]:
    """The names of each class that the reference has; None for all that have a docstring."""
    pages = [ROOT / "docs" / "reference" / name for name in ("api.md", "config.md")]
    found: dict[Any, set[str] | None] = {}
    pattern = r"^\.\. auto(?:class|exception):: ([\w.]+)(?:\(\))?\n((?:   .*\n|\n(?=   ))*)"
    for path, body in re.findall(pattern, "\n".join(page.read_text() for page in pages), re.M):
        module, _, name = path.rpartition(".")
        members = set(re.findall(r"\.\. auto(?:method|attribute):: (\w+)", body))
        found[getattr(import_module(module), name)] = members if ":no-members:" in body else None
    return found


def exported_classes() -> list[Any]:
    modules = [import_module(name) for name in ("greenws", "greenws.testing")]
    exported = [getattr(module, name) for module in modules for name in module.__all__]
    return [each for each in exported if inspect.isclass(each)]


@pytest.mark.parametrize("kind", exported_classes(), ids=lambda kind: kind.__name__)
def test_what_a_class_shows_is_in_the_reference(kind: Any) -> None:
    """What help() shows of it is for users: all else begins with an underscore."""
    reference = documented()
    assert kind in reference
    members = reference[kind]
    ours = [base for base in kind.__mro__ if base.__module__.startswith("greenws")]
    theirs = {name for base in set(kind.__mro__) - set(ours) for name in dir(base)}
    for base in ours:
        known = reference.get(base) if members is not None and base is not kind else members
        for name, value in vars(base).items():
            if name.startswith("_") or name in theirs or isinstance(value, Hint):
                continue
            if members is not None:
                assert name in members | (known or set()), f"{name} is not in the reference"
            elif not inspect.isdatadescriptor(value) and callable(value):
                assert value.__doc__, f"{name} has no docstring, so that the reference lacks it"
