"""What the packages export is what their ``__all__`` says."""

from __future__ import annotations

from importlib import import_module

import pytest

PACKAGES = ["greenws", "greenws.brokers", "greenws.rooms", "greenws.testing"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists_and_is_listed(package: str) -> None:
    module = import_module(package)
    names = module.__all__
    assert len(set(names)) == len(names)
    assert set(names) <= set(dir(module))
    for name in names:
        assert getattr(module, name) is not None
