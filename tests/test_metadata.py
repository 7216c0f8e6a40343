"""pyproject.toml is the one place for what the distribution says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import greenws
from greenws import distribution

from .support.paths import ROOT
from .support.require import require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.no_io

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_requirements_txt_has_the_dependencies():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert requirements == PROJECT["dependencies"]


def test_setup_py_holds_nothing_but_the_extension_modules():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    call = text[text.index("\nsetup(") :]
    assert re.findall(r"^    (\w+)=", call, re.MULTILINE) == ["ext_modules", "cmdclass"]


def test_the_version_is_that_of_pyproject():
    assert greenws.__version__ == distribution.version() == PROJECT["version"]


def test_the_name_is_that_of_pyproject():
    assert distribution.NAME == PROJECT["name"] == "greenws-wsgi"


def test_every_supported_python_has_a_classifier():
    prefix = "Programming Language :: Python :: 3."
    minors = [int(c.removeprefix(prefix)) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert minors == [10, 11, 12, 13, 14]
    assert PROJECT["requires-python"] == f">=3.{minors[0]}"


@pytest.mark.parametrize("pattern", ["*.md", "greenws/**/*.py", "demo/*.py", "examples/**/*.*"])
def test_no_hint_installs_the_unrelated_distribution(pattern):
    for path in filter(Path.is_file, ROOT.glob(pattern)):
        if path.suffix == ".pyc":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""\binstall (-\S+ )*['"]?greenws\b(?!-wsgi)""", text), path
        assert not re.search(r"""['"]greenws\[""", text), path


def test_the_extras_that_hints_name_exist():
    named = set()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("greenws/**/*.py"), *ROOT.glob("demo/*.py")]:
        text = path.read_text(encoding="utf-8")
        for extras in re.findall(r"'(?:greenws-wsgi|\.)\[([\w,]+)\]'", text):
            named.update(extras.split(","))
    assert {"gunicorn", "redis", "metrics"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_sdist_holds_all_of_the_top_level():
    """What MANIFEST.in does not name is either missing from the sdist or should not be tracked."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    require(tracked, "git and the repository")
    by_setuptools = ["LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"]
    (included,) = re.findall(
        r"^include (.+)", (ROOT / "MANIFEST.in").read_text(encoding="utf-8"), re.MULTILINE
    )
    files = {name for name in tracked if "/" not in name and name != ".gitignore"}
    assert files == {*by_setuptools, *included.split()}
