"""The types of options, against the options. What type checkers make of them is in typed.py."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from greenws import Config, options
from greenws.config import SERVER_ONLY

pytestmark = pytest.mark.no_io

FIELDS = {field.name: field.type for field in dataclasses.fields(Config)}


def test_the_typed_options_of_a_session_are_those_of_config():
    typed = {name: type_.__forward_arg__ for name, type_ in annotations("SessionOptions")}
    assert typed == {name: type_ for name, type_ in FIELDS.items() if name not in SERVER_ONLY}


def test_the_typed_options_of_config_are_its_fields():
    typed = {name: type_.__forward_arg__ for name, type_ in annotations("ConfigOptions")}
    assert typed == FIELDS


def annotations(name):
    return getattr(options, name).__annotations__.items()


def test_no_option_is_required():
    for name in options.__all__:
        assert not getattr(options, name).__required_keys__


def test_nothing_of_it_is_imported_at_run_time():
    program = (
        "import sys, greenws; greenws.WebSocketServer, greenws.Routes, greenws.Rooms\n"
        "assert 'greenws.options' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
