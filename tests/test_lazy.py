"""Names that are imported on first use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .support.paths import ROOT

pytestmark = pytest.mark.no_io

PACKAGE = """
from greenws.lazy import export

__getattr__, __dir__ = export(__name__, {"Name": ".part", "absent": ".part"}, ("part",))
"""


def run(folder, source):
    package = folder / "lazily"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "part.py").write_text("print('imported')\nclass Name: pass\n")
    command = [sys.executable, "-c", source]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_name_is_imported_on_first_use_and_once(tmp_path):
    source = """
import lazily
print("before")
first = lazily.Name
print("after", first is lazily.Name, "Name" in vars(lazily))
"""
    assert run(tmp_path, source) == ["before", "imported", "after", "True", "True"]


def test_a_submodule_is_an_attribute_of_its_package(tmp_path):
    source = "import lazily; print(lazily.part.Name.__module__)"
    assert run(tmp_path, source) == ["imported", "lazily.part"]


def test_names_are_listed_before_they_are_imported(tmp_path):
    source = "import lazily; print({'Name', 'part', '__getattr__'} <= set(dir(lazily)))"
    assert run(tmp_path, source) == ["True"]


def test_an_unknown_name_is_an_attribute_error_that_names_it(tmp_path):
    source = """
import lazily
for name in ("Other", "absent"):
    try:
        getattr(lazily, name)
    except AttributeError as error:
        print(repr(name) in str(error))
"""
    assert run(tmp_path, source) == ["True", "imported", "True"]
