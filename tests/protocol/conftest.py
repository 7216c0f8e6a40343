"""Most tests of the protocol open no socket."""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    if not {"pair", "serve"} & set(getattr(item, "fixturenames", ())):
        item.add_marker("no_io")
