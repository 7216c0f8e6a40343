"""Installing greenws where its extension modules cannot be built: the pure form, and it says so.

The environments here are new, and take the dependencies from that of the tests: nothing comes from
the network. What needs the network or a compiler is in `make wheel` (.ci/check_distributions.py)
and `make test-pythons` (.ci/pythons).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from .support.paths import ROOT
from .support.require import require

pytestmark = [pytest.mark.no_io, pytest.mark.one_form]

LEFT_OUT = shutil.ignore_patterns(
    "*.so", "*.egg-info", "__pycache__", "node_modules", "results", ".*", "build", "dist"
)


@pytest.fixture(scope="module", autouse=True)
def backend():
    for name in ("setuptools", "wheel", "pip"):
        require(importlib.util.find_spec(name), name)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout with nothing built in it."""
    folder = tmp_path_factory.mktemp("source") / "greenws"
    folder.mkdir()
    tracked = ["greenws", "demo", "examples", "webroot"]
    for name in tracked:
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    for path in (folder / "greenws").rglob("*.c"):
        if path.name != "_masking.c":
            path.unlink()
    return folder


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    program = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=checkout, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


class Environment:
    """A new one, with the packages of the tests, but greenws."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        (self.packages,) = folder.glob("lib/*/site-packages")
        pip = importlib.util.find_spec("pip")
        (self.packages / "tests.pth").write_text(str(Path(pip.origin).parent.parent))
        self.python = folder / "bin" / "python"

    def run(self, *arguments: str, **env: str) -> str:
        path = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env}
        command = [str(self.python), *arguments]
        done = subprocess.run(command, cwd=self.packages, env=path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, source: Path, *options: str, **env: str) -> str:
        pip = (
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "install",
            "--no-index",
        )
        pip += ("--no-deps", "--no-build-isolation", "--force-reinstall", *options)
        return self.run(*pip, str(source), **env)


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


ECHO = """
import gevent
from geventwebsocket import WebSocketError
import greenws, greenws.protocol.masking
from greenws import Routes, WebSocketServer, connect
routes = Routes()
@routes.websocket("/")
def echo(request, socket):
    for message in socket:
        socket.send(message)
server = WebSocketServer(("127.0.0.1", 0), routes)
server.start()
with connect(f"ws://127.0.0.1:{server.server_port}/") as socket:
    socket.send("hello")
    print(socket.receive())
server.stop()
print(greenws.form.DESCRIPTION, greenws.form.PURE, greenws.__version__)
print(greenws.protocol.masking.apply_mask.__module__)
"""


FROM_A_ZIP_FILE = """
import re
from greenws.rooms.redis import scripts
print(re.search(r"packages.zip", greenws.__file__)[0])
print(re.search(r"redis.call", scripts.load("append"))[0])
"""


def check_pure(environment: Environment) -> None:
    output = environment.run("-c", ECHO).splitlines()
    description = "pure Python (the extension modules were not built when greenws was installed)"
    assert output[0] == "hello"
    assert output[1] == f"{description} True {version()}"
    assert output[2] == "greenws.protocol.masking"
    assert list((environment.packages / "greenws").rglob("*.so")) == []
    assert description in environment.run("-m", "greenws", "doctor")
    (info,) = environment.packages.glob("greenws_wsgi-*.dist-info")
    assert "Tag: py3-none-any" in (info / "WHEEL").read_text()


def version() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]


def test_a_compiler_that_fails_leaves_the_pure_form(environment, checkout):
    output = environment.install(checkout, "-v", CC="/bin/false")
    assert "the extension modules are not built, so the pure form is installed" in output
    assert "'/bin/false' failed" in output  # the reason
    check_pure(environment)


def test_no_compiler_leaves_the_pure_form_of_the_sdist(environment, sdist):
    output = environment.install(sdist, PATH=str(environment.python.parent))
    # Without -v, pip shows the name of the wheel alone.
    assert "greenws_wsgi" in output and "py3-none-any.whl" in output
    check_pure(environment)


def test_without_cython_the_pure_form_is_installed(environment, checkout):
    require(shutil.which("gcc"), "gcc")
    assert importlib.util.find_spec("Cython") is None  # nor has it the environment
    output = environment.install(checkout, "-v")
    assert "No module named 'Cython'; building needs Cython>=3.1 and greenlet" in output
    check_pure(environment)


TRANSLATE = """
import os, runpy, sys, setuptools
from types import ModuleType
setuptools.setup = lambda **options: None
cython, build, greenlet = map(ModuleType, ["Cython", "Cython.Build", "greenlet"])
cython.__version__ = "3.2"
build.cythonize = lambda modules, compiler_directives: modules
greenlet.__file__ = os.path.abspath("greenlet/__init__.py")
sys.modules.update({module.__name__: module for module in (cython, build, greenlet)})
setup = runpy.run_path(sys.argv[1])
for text in (None, "one", "one", "other"):
    if text:
        os.makedirs("greenlet", exist_ok=True)
        with open("greenlet/greenlet.h", "w") as file:
            file.write(text)
    try:
        setup["translate"]([])
    except setup["NotHere"] as error:
        print(error)
    else:
        (name,) = os.listdir("build/include")
        with open(f"build/include/{name}") as file:
            print(name, os.fstat(file.fileno()).st_ino, file.read())
"""


def test_the_header_of_greenlet_may_be_missing_and_is_replaced_only_by_another(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRANSLATE, str(ROOT / "setup.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    missing, *copies = done.stdout.splitlines()
    assert "greenlet.h" in missing and missing.endswith("building needs the header of greenlet")
    names, numbers, texts = zip(*(line.split() for line in copies), strict=True)
    assert names == ("greenlet.h",) * 3 and texts == ("one", "one", "other")
    assert numbers[0] == numbers[1] != numbers[2]  # another build may read it at the same time


def test_an_editable_install_without_a_compiler_is_pure(environment, checkout):
    stale = (
        checkout / "greenws" / "protocol" / f"_masking{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    )
    stale.write_bytes(b"of an older build")
    environment.install(checkout, "--editable", CC="/bin/false")
    assert not stale.exists()
    hello, description, *_ = environment.run("-c", ECHO).splitlines()
    assert hello == "hello" and "not built in this checkout; pip install -e . builds" in description


def test_the_pure_form_may_be_asked_for(environment, checkout):
    output = environment.install(checkout, "-v", GREENWS_PURE_PYTHON="1")
    assert "GREENWS_PURE_PYTHON is set" in output
    assert list((environment.packages / "greenws").rglob("*.so")) == []


def test_what_is_installed_is_the_package_with_its_data(environment, checkout):
    environment.install(checkout, CC="/bin/false")
    names = {path.name for path in environment.packages.iterdir()}
    assert {name for name in names if "greenws" in name} == {
        "greenws",
        f"greenws_wsgi-{version()}.dist-info",
    }
    installed = {
        str(path.relative_to(environment.packages))
        for path in (environment.packages / "greenws").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "greenws"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    require(listed, "git and the repository")
    assert installed == {name for name in listed if not name.endswith(".c")}


def test_the_package_runs_from_a_zip_file(tmp_path):
    """As a zipapp that is not unpacked; without its C modules, which Python cannot load there."""
    folder = ROOT / "greenws"
    with zipfile.ZipFile(tmp_path / "packages.zip", "w") as archive:
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.lua")]):
            archive.write(path, path.relative_to(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", ECHO + FROM_A_ZIP_FILE],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "packages.zip"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout.splitlines()
    assert output[0] == "hello"
    assert output[1].startswith("pure Python (the extension modules were not built")
    assert output[-2:] == ["packages.zip", "redis.call"]


def test_the_built_modules_are_stripped():
    built = list((ROOT / "greenws").rglob("*.so"))
    require(built, "the compiled form")
    assert [path for path in built if b".symtab" in path.read_bytes()] == []
    assert sum(path.stat().st_size for path in built) < 3 << 20
