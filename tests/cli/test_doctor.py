"""``python -m greenws doctor``."""

from __future__ import annotations

import os
import resource
import shlex
import ssl
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from gevent import monkey

import greenws
from greenws import distribution, form
from greenws.__main__ import main
from greenws.cli import doctor

from ..support.paths import PROGRAMS, ROOT
from ..support.redis_server import RedisServer
from ..support.require import require_program


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """The doctor changes the folder and imports programs."""
    monkeypatch.chdir(os.getcwd())
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("patient"):
            del sys.modules[name]


@pytest.fixture
def program(tmp_path):
    """Writes a program, and returns the arguments to check it."""

    def write(source, name="app", *arguments):
        module = f"patient{abs(hash(source))}"
        (tmp_path / f"{module}.py").write_text(source)
        return ["doctor", "--chdir", str(tmp_path), f"{module}:{name}".rstrip(":"), *arguments]

    return write


def examine(arguments, capsys):
    """The exit code and the lines about an application, by what they are about."""
    code = main(arguments)
    return code, capsys.readouterr().out.splitlines()


def line(lines, about):
    (found,) = [each for each in lines if about in each]
    return found


ROUTES = """
from greenws import Routes, WebSocketHandler
app = Routes()
@app.websocket("/chat")
def chat(request, socket): pass
@app.websocket("/open", allowed_origins="*")
def opened(request, socket): pass
@app.websocket("/other", allowed_origins=["self", "https://example.com"])
def other(request, socket): pass
"""


def test_it_says_which_form_and_versions_run(capsys):
    _, lines = examine(["doctor"], capsys)
    assert f" greenws-wsgi {greenws.__version__}: {form.DESCRIPTION}" in lines[0]
    for name in (
        "Python: 3.",
        "gevent: ",
        "werkzeug: ",
        "httptools: ",
        "open files: ",
        "backlog: ",
        "TLS: OpenSSL ",
        "kTLS: ",
    ):
        assert line(lines, f" {name}")


def test_it_says_whether_the_kernel_can_do_tls(monkeypatch):
    _, found = doctor.check_tls()
    assert found.level == "ok"
    monkeypatch.setattr(doctor, "_kernel_has_tls", lambda: True)
    monkeypatch.setattr(ssl, "OP_ENABLE_KTLS", 8, raising=False)
    _, found = doctor.check_tls()
    assert (found.found, found.advice) == ("possible", "ssl_context.options |= ssl.OP_ENABLE_KTLS")
    monkeypatch.setattr(doctor, "_kernel_has_tls", lambda: False)
    monkeypatch.delattr(ssl, "OP_ENABLE_KTLS")
    _, found = doctor.check_tls()
    assert found.found.startswith("not possible without the kernel") and "3.12" in found.found


def test_the_kernel_is_asked_for_tls_as_openssl_does():
    ulps = Path("/proc/sys/net/ipv4/tcp_available_ulp")
    if not ulps.exists():
        assert not doctor._kernel_has_tls()
    else:
        has_tls = doctor._kernel_has_tls()  # which may load the module
        assert has_tls == ("tls" in ulps.read_text().split())


def test_it_runs_as_a_command_and_in_the_pure_form():
    env = {**os.environ, "GREENWS_PURE_PYTHON": "1"}
    command = [sys.executable, "-m", "greenws", "doctor"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pure Python (GREENWS_PURE_PYTHON is set)  -> unset GREENWS_PURE_PYTHON" in done.stdout


def test_a_form_that_was_not_built_says_how(monkeypatch, tmp_path):
    monkeypatch.setattr(form, "FORCED", False)
    monkeypatch.setattr(form, "PURE", True)
    (finding,) = doctor.check_form()
    assert finding.level == "note" and "install a C compiler" in finding.advice
    folder = shlex.quote(distribution.FOLDER)
    assert finding.advice.endswith(f"with pip install -v -e {folder}")
    # A checkout that is installed editable has metadata in it.
    monkeypatch.setattr(distribution, "shadowed", lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(distribution, "FOLDER", "/my code")
        patch.setattr(distribution, "is_checkout", lambda: True)
        (finding,) = doctor.check_form()
        assert finding.advice.endswith("with pip install -v -e '/my code'")
    monkeypatch.setattr(distribution, "FOLDER", str(tmp_path))
    (finding,) = doctor.check_form()
    assert "--force-reinstall" in finding.advice


def test_sources_that_hide_what_is_installed_are_named(monkeypatch, tmp_path):
    """As in a checkout after ``pip install .``: Python looks in the current folder first."""
    monkeypatch.setattr(form, "FORCED", False)
    monkeypatch.setattr(form, "PURE", True)
    info = tmp_path / "greenws_wsgi-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: greenws-wsgi\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)  # as if it were installed editable
    (finding,) = doctor.check_form()
    assert "install a C compiler" in finding.advice
    (tmp_path / "greenws").mkdir()
    (finding,) = doctor.check_form()
    assert f"the installed greenws is in {tmp_path}: run this in another folder" in finding.advice


def test_the_unrelated_distribution_is_a_problem(monkeypatch, capsys):
    monkeypatch.setattr(distribution, "unrelated", lambda: "/somewhere")
    code, lines = examine(["doctor"], capsys)
    assert code == 1
    assert "/somewhere  -> pip uninstall greenws, then" in line(lines, "PROBLEM")


def test_a_dependency_that_is_too_old_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.2.3")
    found = {each.what: each for each in doctor.check_versions()}
    assert found["gevent"].level == "PROBLEM" and "--upgrade 'gevent>=" in found["gevent"].advice
    assert found["greenlet"].level == "ok"


def test_a_dependency_that_is_missing_is_a_problem(monkeypatch):
    def missing(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", missing)
    found = {each.what: each for each in doctor.check_versions()}
    assert found["gevent"].level == "PROBLEM" and "gunicorn" not in found


def test_a_low_limit_of_descriptors_says_how_to_raise_it():
    program = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))\n"
    program += "from greenws.cli import doctor; print(*doctor.check_descriptors())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith(
        "note    open files: a process may have 512, fewer than the 10000"
    )
    assert "ulimit -n 20000" in done.stdout and "LimitNOFILE=20000" in done.stdout


def test_a_high_limit_of_descriptors_is_fine(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, 5))
    assert [each.level for each in doctor.check_descriptors()] == ["ok"]


# -- an application


def test_the_origins_of_routes_are_listed(program, capsys):
    code, lines = examine(program(ROUTES), capsys)
    assert code == 0
    assert line(lines, "a page may connect to its own host")
    assert line(lines, "every page may connect").startswith("note")
    assert line(lines, "these may connect: self, https://example.com").startswith("ok")
    assert line(lines, ":app: Routes")


@pytest.mark.parametrize(
    ("source", "name", "shown"),
    [
        ("import flask; app = flask.Flask('x')", "app", ":app: Flask"),
        ("import flask\ndef make(a): return flask.Flask(a)", "make('x')", ": Flask"),
        ("def application(environ, start_response): pass", "", ": function"),
        ("import flask\nclass sites: one = flask.Flask('x')", "sites.one", ": Flask"),
    ],
)
def test_an_application_is_loaded_as_gunicorn_does(program, capsys, source, name, shown):
    code, lines = examine(program(source, name), capsys)
    assert code == 0
    assert line(lines, shown)


@pytest.mark.parametrize(
    ("source", "shown", "advice"),
    [
        ("1/0", "cannot be loaded: ZeroDivisionError: division by zero", ""),
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of", ""),
        ("other = 1", "ImportError: the module 'patient", ""),
        (
            "import flask\nfrom flask import request\nsite = flask.Flask('x')\n"
            "def create_app(config=None): return site",
            "has no 'app'",
            ":site' or doctor 'patient",
        ),
        ("from greenws import Routes\nclass app2(Routes): pass\nr = app2()", "no 'app'", ":r'"),
        ("app = 'x'", "TypeError", ""),
        ("class app:\n async def __call__(self, scope, receive, send): pass\napp = app()",
         "a2wsgi.ASGIMiddleware", ""),
        (
            "from greenws import Routes, WebSocketServer\napp = Routes()\n"
            "WebSocketServer(('127.0.0.1', 0), app).serve_forever()",
            "starts a server while it is imported",
            "if __name__ == '__main__':",
        ),
        ("import flask\napp = flask.Flask('x')\napp.run()", "starts a server while", "__main__"),
        (
            "import functools\nfrom greenws import Routes\napp = Routes()\n"
            "def login_required(f): return functools.wraps(f)(lambda *a, **k: f(*a, **k))\n"
            "@login_required\n@app.websocket('/')\ndef chat(request, socket): pass",
            "@login_required is above @routes.websocket",
            "on top",
        ),
    ],
)  # fmt: skip
def test_an_application_that_cannot_be_loaded_is_a_problem(program, capsys, source, shown, advice):
    code, lines = examine(program(source), capsys)
    assert code == 1
    problem = line(lines, "PROBLEM")
    assert shown in problem and advice in problem
    assert line(lines, "monkey-patched")  # the rest is told all the same


def test_a_module_that_is_not_there_says_where_it_was_looked_for(tmp_path, capsys):
    code, lines = examine(["doctor", "--chdir", str(tmp_path), "nowhere_at_all:app"], capsys)
    assert code == 1
    assert f"there is no module 'nowhere_at_all' in {tmp_path}" in line(lines, "PROBLEM")


def test_a_file_in_place_of_a_module_says_how_it_is_named(tmp_path, capsys):
    (tmp_path / "patient_file.py").write_text("app = 1")
    for name, advice in (
        ("patient_file.py", "doctor 'patient_file:NAME'"),
        ("./patient_file.py:app", "doctor 'patient_file:app'"),
        ("web/patient_file.py:app", "doctor 'web.patient_file:app'"),
        ("web/patient_file.py:make()", "doctor 'web.patient_file:make()'"),
        ("../x/web/patient_file.py", "doctor 'patient_file:NAME' --chdir ../x/web"),
        ("/my x/patient_file.py:app", "doctor 'patient_file:app' --chdir '/my x'"),
    ):
        code, lines = examine(["doctor", "--chdir", str(tmp_path), name], capsys)
        assert code == 1
        problem = line(lines, "PROBLEM")
        assert "is a file, not a module name" in problem
        assert problem.endswith(f"-> {advice}")


def test_an_unpatched_framework_says_what_to_do(program, capsys):
    assert not monkey.is_module_patched("socket")
    _, lines = examine(program("import flask; app = flask.Flask('x')"), capsys)
    found = line(lines, "monkey-patched")
    assert found.startswith("note") and "Flask" in found and "monkey.patch_all()" in found


def test_a_driver_that_blocks_is_noted(program, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", ModuleType("psycopg2"))
    code, lines = examine(program("import flask, psycopg2\napp = flask.Flask('x')"), capsys)
    assert code == 0
    assert "psycogreen" in line(lines, "psycopg2: blocks all sessions of a process")


def test_rooms_over_redis_need_patching_and_it_patches_on_demand(tmp_path):
    (tmp_path / "rooms_of_redis.py").write_text(
        "from greenws import Rooms, Routes\n"
        "rooms = Rooms('redis://user:secret@127.0.0.1:1')\napp = Routes()\n"
    )
    command = [sys.executable, "-m", "greenws", "doctor", "--chdir", str(tmp_path)]
    command.append("rooms_of_redis:app")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    plain = subprocess.run(command, env=env, capture_output=True, text=True)
    assert "monkey-patched: not socket" in plain.stdout
    assert "note    greenws.brokers.redis: redis-py would block every greenlet" in plain.stdout
    assert plain.stderr == ""
    assert all(each.startswith(("ok ", "note ", "PROBLEM ")) for each in plain.stdout.splitlines())
    patched = subprocess.run([*command, "--patch"], env=env, capture_output=True, text=True)
    assert patched.returncode == 1
    assert "monkey-patched: socket, ssl" in patched.stdout
    assert "PROBLEM redis://...@127.0.0.1:1: ConnectionError" in patched.stdout
    assert "secret" not in plain.stdout + patched.stdout


def test_django_s_asgi_application_names_the_wsgi_application(tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "asgi.py").write_text(
        "from django.conf import settings\nsettings.configure()\n"
        "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n"
    )
    command = [sys.executable, "-m", "greenws", "doctor", "--chdir", str(tmp_path), "project.asgi"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    problem = line(done.stdout.splitlines(), "PROBLEM")
    assert "Django's ASGI application" in problem and problem.endswith("-> doctor project.wsgi")


def test_rooms_in_memory_with_several_workers_are_noted(program, capsys, monkeypatch, tmp_path):
    for name in ("WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"):
        monkeypatch.delenv(name, raising=False)
    arguments = program("from greenws import Rooms, Routes\nrooms = Rooms()\napp = Routes()")
    assert line(examine(arguments, capsys)[1], "rooms: ").startswith("ok ")
    (tmp_path / "gunicorn.conf.py").write_text("workers = 4\n")
    found = line(examine(arguments, capsys)[1], "rooms: ")
    assert found.startswith("note ") and "gunicorn.conf.py has several" in found
    (tmp_path / "gunicorn.conf.py").write_text("workers = 1\n")
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    assert "WEB_CONCURRENCY has several" in line(examine(arguments, capsys)[1], "rooms: ")
    monkeypatch.setenv("WEB_CONCURRENCY", "1")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-k gevent --workers=3")
    assert "GUNICORN_CMD_ARGS has several" in line(examine(arguments, capsys)[1], "rooms: ")


# -- Redis


@pytest.fixture(scope="module")
def redis_server():
    require_program("redis-server")
    server = RedisServer("--maxmemory-policy", "allkeys-lru")
    yield server
    server.close()


def test_a_redis_is_checked(redis_server, capsys):
    redis_server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    code, lines = examine(["doctor", "--redis", redis_server.url], capsys)
    assert code == 0
    assert line(lines, f"Redis {redis_server.url}").endswith(", master")


def test_a_redis_that_throws_keys_away_is_a_problem(redis_server, capsys):
    redis_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    redis_server.call("CONFIG", "SET", "appendonly", "no")
    code, lines = examine(["doctor", "--redis", redis_server.url], capsys)
    assert code == 1
    assert "maxmemory-policy noeviction" in line(lines, "PROBLEM")
    assert "appendonly is off" in line(lines, "note    Redis")


def test_a_replica_is_a_problem(redis_server, capsys):
    redis_server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    redis_server.call("REPLICAOF", "127.0.0.1", "1")
    code, lines = examine(["doctor", "--redis", redis_server.url], capsys)
    redis_server.call("REPLICAOF", "NO", "ONE")
    assert code == 1
    assert "is a slave, which refuses writes" in line(lines, "PROBLEM")


@pytest.mark.parametrize(
    ("url", "kind"),
    [("redis+sentinel://127.0.0.1:1/main", "MasterNotFound"), ("redis+cluster://127.0.0.1:1", "")],
)
def test_other_urls_are_understood(url, kind, capsys):
    code, lines = examine(["doctor", "--redis", url], capsys)
    assert code == 1
    assert kind in line(lines, f"PROBLEM {url}")


def test_the_programs_of_the_tests_are_fine(capsys):
    code, lines = examine(["doctor", "--chdir", str(PROGRAMS), "rooms_app:app"], capsys)
    assert code == 0, lines
