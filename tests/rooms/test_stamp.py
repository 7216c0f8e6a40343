"""Stamps: what puts the id into a message."""

from __future__ import annotations

import json

import pytest

from greenws.rooms.stamp import check, json_id

pytestmark = pytest.mark.no_io


@pytest.mark.parametrize("text", ["{}", '{"a":1}', '{ "a": 1 }', "{ }"])
def test_json_id_puts_the_id_first(text):
    stamped = json_id("7-0", text)
    assert stamped.startswith('{"id":"7-0"')
    assert json.loads(stamped) == {"id": "7-0", **json.loads(text)}


@pytest.mark.parametrize("stamp", ["x", 7, {}])
def test_a_stamp_is_a_function(stamp):
    with pytest.raises(TypeError, match="stamp is a function of an id and data"):
        check(stamp)
    check(None)
    check(json_id)
