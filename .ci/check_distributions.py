"""Checks what `make wheel` has built in dist/: the sdist holds everything that is under version
control, the wheel only the package, with its compiled modules."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def newest(pattern: str) -> Path:
    return max((ROOT / "dist").glob(pattern), key=lambda path: path.stat().st_mtime)


def main() -> None:
    with tarfile.open(newest("*.tar.gz")) as archive:
        sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(newest("*.whl")) as wheel:
        names = wheel.namelist()
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
    if not any(name.startswith("greenws/websocket.cpython") for name in names):
        problems.append("the wheel holds no compiled modules")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
