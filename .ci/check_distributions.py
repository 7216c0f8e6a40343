"""Checks what `make wheel` has built in dist/: the sdist holds everything that is under version
control, the wheel only the package, with its compiled modules, stripped. Installed into a new
environment, which has the dependencies of the one that runs this, it is the compiled form."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import importlib, pathlib, greenws
folder = pathlib.Path(greenws.__file__).parent
assert folder.parent == pathlib.Path.cwd(), folder
modules = list(folder.rglob("*.so"))
for path in modules:
    assert b".symtab" not in path.read_bytes(), f"{path} is not stripped"
    name = ".".join(path.relative_to(folder.parent).with_name(path.name.partition(".")[0]).parts)
    assert importlib.import_module(name).__file__ == str(path), name
assert len(modules) > 8 and greenws.form.DESCRIPTION == "compiled" and not greenws.form.PURE
"""


def newest(pattern: str) -> Path:
    return max((ROOT / "dist").glob(pattern), key=lambda path: path.stat().st_mtime)


def check_installed(wheel: Path) -> str:
    """What is wrong with the wheel when it is installed."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        (packages,) = Path(folder).glob("lib/*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        python = Path(folder, "bin", "python")
        for command in (
            [
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-index",
                "--no-deps",
                "--ignore-installed",
                wheel,
            ],
            ["-c", PROGRAM],
            ["-m", "greenws", "doctor"],
        ):
            done = subprocess.run([python, *command], cwd=packages, capture_output=True, text=True)
            if done.returncode:
                return f"{command}: {done.stdout}{done.stderr}"
    return ""


def main() -> None:
    wheel = newest("*.whl")
    with tarfile.open(newest("*.tar.gz")) as archive:
        sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    missing = [name for name in tracked if name != ".gitignore" and name not in sdist]
    foreign = [name for name in names if not name.startswith(("greenws/", "greenws_wsgi-"))]
    problems = []
    if missing:
        problems.append(f"missing from the sdist: {missing}")
    if foreign:
        problems.append(f"not part of the package, but in the wheel: {foreign}")
    if problem := check_installed(wheel):
        problems.append(f"installed into a new environment: {problem}")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
