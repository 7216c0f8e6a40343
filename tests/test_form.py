"""The two forms: compiled where it was built, and pure Python on demand."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

import greenws.form
import greenws.protocol.frames

from .support.paths import ROOT
from .support.require import require

SETUP = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
(COMPILED,) = [
    ast.literal_eval(node.value)
    for node in SETUP.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED"
]
MODULES = [f"greenws.{name.replace('/', '.')}" for name in COMPILED]

PROGRAM = """
import greenws.protocol.masking, importlib
for name in {modules}:
    print(importlib.import_module(name).__file__)
print(greenws.protocol.masking.apply_mask.__module__)
"""


def run(**env: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM.format(modules=MODULES)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return result.stdout.split()


def built() -> bool:
    return importlib.util.find_spec("greenws.protocol._masking") is not None


def test_the_pure_form_on_demand():
    *files, masking = run(GREENWS_PURE_PYTHON="1")
    assert [file.endswith(".py") for file in files] == [True] * len(MODULES)
    assert masking == "greenws.protocol.masking"


@pytest.mark.parametrize("value", ["", "0"])
def test_the_compiled_form_where_it_was_built(value):
    require(built(), "the compiled form")
    *files, masking = run(GREENWS_PURE_PYTHON=value)
    assert [file.endswith(".py") for file in files] == [False] * len(MODULES)
    assert masking == "greenws.protocol._masking"


def test_the_form_that_these_tests_run_on():
    compiled = built() and not greenws.form.PURE
    assert greenws.protocol.frames.__file__.endswith(".py") is not compiled


def test_a_build_that_is_broken_says_so(tmp_path):
    package = tmp_path / "greenws"
    shutil.copytree(ROOT / "greenws", package, ignore=shutil.ignore_patterns("*.so"))
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (package / "protocol" / f"_masking{suffix}").write_bytes(b"not a library")
    command = [sys.executable, "-c", "import greenws.protocol.masking"]
    env = {**os.environ, "PYTHONPATH": "", "GREENWS_PURE_PYTHON": ""}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode != 0 and "ImportError" in result.stderr


def test_programs_that_collect_modules_find_the_twin():
    """PyInstaller reads import statements. Without the twin a program would be the pure form."""
    tree = ast.parse((ROOT / "greenws" / "protocol" / "masking.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "_masking" in imported


def test_the_twin_is_asked_right():
    require(built(), "the compiled form")
    apply_mask = importlib.import_module("greenws.protocol._masking").apply_mask
    assert apply_mask(bytearray(b"cde"), b"\x01\x02\x03\x04") == b"bff"
    for wrong in ((b"a",), (b"a", b"123"), ("a", b"1234"), (b"a", b"1234", 1), (b"a",) * 5):
        with pytest.raises((TypeError, ValueError)):
            apply_mask(*wrong)
