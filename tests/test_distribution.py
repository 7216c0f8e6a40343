"""The distribution: its version, and the unrelated one that is mistaken for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from greenws import distribution

from .support.paths import ROOT

pytestmark = pytest.mark.no_io


def run(folder, program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    """A folder of packages with greenws in it."""
    (tmp_path / "greenws").symlink_to(ROOT / "greenws")
    package = tmp_path / "copy" / "greenws"
    package.mkdir(parents=True)
    for name in ("__init__", "form", "lazy", "distribution"):
        source = (ROOT / "greenws" / f"{name}.py").read_text(encoding="utf-8")
        (package / f"{name}.py").write_text(source, encoding="utf-8")
    (package / "integrations").mkdir()
    (package / "integrations" / "__init__.py").touch()
    flask = (ROOT / "greenws" / "integrations" / "flask.py").read_text(encoding="utf-8")
    (package / "integrations" / "flask.py").write_text(flask, encoding="utf-8")
    return package.parent


def add_distribution(folder, name, version):
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_the_first_import_warns_of_the_unrelated_one_beside_it(folder):
    add_distribution(folder, "greenws_wsgi", "0.1.0")
    assert run(folder, "import greenws").stderr == ""
    add_distribution(folder, "greenws", "0.1.0a7")
    done = run(folder, "import greenws\nimport greenws.form")
    assert done.returncode == 0
    assert done.stderr.count("RuntimeWarning") == 1
    assert "pip uninstall greenws" in done.stderr and "<string>:1" in done.stderr


def test_the_unrelated_one_is_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert distribution.unrelated() is None
    add_distribution(tmp_path, "greenws", "0.1.0a7")
    assert distribution.unrelated() == str(tmp_path)


def test_an_installed_package_has_the_version_of_its_metadata(folder):
    program = "import greenws; print(greenws.__version__)"
    assert run(folder, program).stdout == "0+unknown\n" or distribution.version() == "0.1.0"
    add_distribution(folder, "greenws_wsgi", "7.8.9")
    assert run(folder, program).stdout == "7.8.9\n"


def test_a_pyproject_of_another_program_is_not_read(folder):
    (folder / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "5"\n')
    add_distribution(folder, "greenws_wsgi", "7.8.9")
    assert run(folder, "import greenws; print(greenws.__version__)").stdout == "7.8.9\n"
