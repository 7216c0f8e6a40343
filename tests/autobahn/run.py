"""Runs the Autobahn testsuite: its fuzzing client against a greenws server that echoes, and its
fuzzing server against a greenws client that echoes.

    python tests/autobahn/run.py [--cases quick] [--role server] [compiled] [pure]

Both roles, and both forms side by side, unless one is named. Prints the counts and every case that
is not OK. Exits with 1 if a case fails or ends with an unclean close, and with 3 if the testsuite
cannot run here: it needs Python 2.7, from $PYTHON27, pyenv or the PATH, and is installed in
build/autobahn/.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "autobahn"
REQUIREMENTS = HERE / "requirements.txt"
VIRTUALENV = (
    "virtualenv==20.21.1"  # the last line of versions that makes environments of Python 2.7
)
FORMS = {"compiled": "", "pure": "1"}
ROLES = ["server", "client"]
PASSED = ("OK", "INFORMATIONAL")  # INFORMATIONAL: either behaviour conforms to the RFC
UNAVAILABLE = 3
INSTALL_TIMEOUT = 600.0  # seconds
RUN_TIMEOUT = 3600.0

CASES = {
    "all": ["*"],
    # Sections 12 and 13 send 1000 messages a case, up to 128 KiB each: nine minutes of CPU a form.
    # These send small ones with each set of options, and some that arrive in fragments.
    "quick": ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
    + [f"12.{options}.{case}" for options in range(1, 6) for case in (1, 3)]
    + [f"13.{options}.{case}" for options in range(1, 8) for case in (1, 3)]
    + ["12.1.11", "12.5.11", "13.1.11", "13.6.11"],
    # For the client, whose codec is the server's: without large messages.
    "brief": [f"{section}.*" for section in (1, 2, 3, 4, 5, 6, 7, 10)]
    + ["12.1.1", "12.2.3", *(f"13.{options}.1" for options in range(1, 8))],
}


class Unavailable(Exception):
    """The testsuite cannot run on this machine."""


def find_python27() -> str:
    named = os.environ.get("PYTHON27")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = (
        [named] if named else [*sorted(pyenv.glob("versions/2.7*/bin/python")), "python2.7"]
    )
    for candidate in candidates:
        path = shutil.which(str(candidate))
        # A shim of pyenv's is on the PATH even where it leads to nothing.
        if path and subprocess.run([path, "-c", "import ssl"], capture_output=True).returncode == 0:
            return path
    raise Unavailable(f"no Python 2.7 found (looked for {', '.join(map(str, candidates))})")


def install(python27: str) -> Path:
    """An environment with the testsuite; returns its Python."""
    environment = BUILD / "python2.7"
    python = environment / "bin" / "python"
    stamp = environment / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + python27.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    tool = BUILD / "virtualenv"
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command, env in [
        ([sys.executable, *pip, "--upgrade", "--target", tool, VIRTUALENV], {}),
        (
            [sys.executable, "-m", "virtualenv", "--quiet", "--python", python27, environment],
            {"PYTHONPATH": str(tool)},
        ),
        ([python, "-W", "ignore", *pip, "--no-deps", "--requirement", REQUIREMENTS], {}),
    ]:
        try:
            subprocess.run(
                [*map(str, command)],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                timeout=INSTALL_TIMEOUT,
            )
        except subprocess.CalledProcessError as error:
            lines = error.stdout.strip().splitlines()
            raise Unavailable(f"cannot install it: {lines[-1] if lines else error}") from error
    stamp.write_text(wanted)
    return python


@contextlib.contextmanager
def serving(form: str) -> Iterator[int]:
    """A server of that form; gives its port."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "server.py")],
        env={**os.environ, "GREENWS_PURE_PYTHON": FORMS[form], "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        if not line or line[0] != form:
            sys.exit(f"expected a {form} server, got {line}: are the modules compiled?")
        yield int(line[1])
        if process.poll() is not None:
            sys.exit(f"the {form} server ended with {process.returncode}")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def run(python: Path, role: str, form: str, cases: list[str]) -> dict[str, dict[str, Any]]:
    """The testsuite's verdict on each case."""
    folder = BUILD / f"{role}-{form}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec: dict[str, Any] = {
        "outdir": str(folder),
        "cases": cases,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    if role == "server":
        run_fuzzing_client(python, form, folder, spec)
    else:
        run_fuzzing_server(python, form, folder, spec)
    announced = re.search(r"will run (\d+) test cases", (folder / "log.txt").read_text())
    results: dict[str, dict[str, Any]] = json.loads((folder / "index.json").read_text())[form]
    if announced is None or len(results) != int(announced[1]):
        sys.exit(f"{len(results)} cases ran, expected {announced and announced[1]}: see {folder}")
    return results


def wstest(python: Path, mode: str, folder: Path, spec: dict[str, Any]) -> list[str]:
    """The command of the testsuite."""
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    command = [str(python), "-W", "ignore", "-m", "autobahntestsuite.wstest", "--webport", "0"]
    return [*command, "-m", mode, "-s", str(path)]


def run_fuzzing_client(python: Path, form: str, folder: Path, spec: dict[str, Any]) -> None:
    with serving(form) as port, (folder / "log.txt").open("w") as log:
        spec["servers"] = [{"agent": form, "url": f"ws://127.0.0.1:{port}/"}]
        subprocess.run(
            wstest(python, "fuzzingclient", folder, spec),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            timeout=RUN_TIMEOUT,
            check=True,
        )


def run_fuzzing_server(python: Path, form: str, folder: Path, spec: dict[str, Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{free.getsockname()[1]}"
    spec["url"] = url
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(
            wstest(python, "fuzzingserver", folder, spec),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
        try:
            done = subprocess.run(
                [sys.executable, str(HERE / "client.py"), form, url],
                env={**os.environ, "GREENWS_PURE_PYTHON": FORMS[form], "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                timeout=RUN_TIMEOUT,
            )
        finally:
            server.terminate()
            server.wait()
    if done.returncode:
        sys.exit(f"the {form} client failed: see above")


def report(form: str, results: dict[str, dict[str, Any]], seconds: float) -> bool:
    """Prints the counts and what is not OK; returns whether no case failed."""
    counts = collections.Counter(result["behavior"] for result in results.values())
    clean = sum(result["behaviorClose"] in PASSED for result in results.values())
    listed = ", ".join(f"{count} {behavior}" for behavior, count in counts.most_common())
    print(f"{form}: {len(results)} cases in {seconds:.0f} s: {listed}; {clean} clean closes")
    passed = True
    for case, result in sorted(results.items(), key=lambda item: [*map(int, item[0].split("."))]):
        behavior, close = result["behavior"], result["behaviorClose"]
        if behavior != "OK" or close != "OK":
            print(f"{form}: {case} is {behavior}, its close {close}")
        passed = passed and behavior in PASSED and close in PASSED
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forms", nargs="*", metavar="form", help="compiled, pure")
    parser.add_argument("--role", choices=[*ROLES, "both"], default="both", help="of greenws")
    parser.add_argument("--cases", default="all", help="all, quick, or such as 1.*,2.3")
    parser.add_argument("--install", action="store_true", help="only install the testsuite")
    arguments = parser.parse_args()
    if unknown := set(arguments.forms) - FORMS.keys():
        parser.error(f"unknown form: {', '.join(unknown)}")
    try:
        python = install(find_python27())
    except Unavailable as reason:
        print(reason)
        return UNAVAILABLE
    if arguments.install:
        return 0
    cases = CASES.get(arguments.cases) or arguments.cases.split(",")

    def timed(form: str) -> bool:
        passed = []
        for role in roles:
            start = time.monotonic()
            results = run(python, role, form, cases)
            passed.append(report(f"{form} {role}", results, time.monotonic() - start))
        return all(passed)

    roles = ROLES if arguments.role == "both" else [arguments.role]
    forms = arguments.forms or list(FORMS)
    with concurrent.futures.ThreadPoolExecutor(len(forms)) as pool:
        return 0 if all(list(pool.map(timed, forms))) else 1


if __name__ == "__main__":
    sys.exit(main())
