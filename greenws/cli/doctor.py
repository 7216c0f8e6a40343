"""Checks this installation, this machine and an application, and says what to do.

Each line begins with "ok", "note" (worth knowing) or "PROBLEM"; "->" begins what to do about it.
The exit code is 1 if there is a problem.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import inspect
import logging
import os
import platform
import re
import resource
import shlex
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from .. import distribution, form
from ..config import Config

__all__ = ["Finding", "add_arguments", "check", "load", "run"]

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"

# Packages to report besides the dependencies of greenws.
_OTHERS = ("greenlet", "gunicorn", "flask", "django", "flask-socketio", "redis")

_TCP_ULP = 31  # of Linux

_PATCH = "begin the program with 'from gevent import monkey; monkey.patch_all()'"


@dataclass
class Finding:
    """One line: the subject, what was found, and what to do about it."""

    level: str
    what: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"  -> {self.advice}" if self.advice else ""
        return f"{self.level:<8}{self.what}: {self.found}{advice}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "application",
        nargs="?",
        metavar="MODULE:NAME",
        help="a WSGI application, loaded as gunicorn does: app:app, or app:make()",
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        action="append",
        default=[],
        help="a Redis to check, besides those of the application's rooms",
    )
    parser.add_argument(
        "--patch",
        action="store_true",
        help="monkey-patch before the application is loaded, as gunicorn's gevent workers do",
    )
    parser.add_argument(
        "--chdir", default=".", metavar="FOLDER", help="where the application is (default: here)"
    )


def run(options: argparse.Namespace) -> int:
    if options.patch:
        from gevent import monkey

        monkey.patch_all()
    code = 0
    for finding in check(options.application, options.redis, options.chdir):
        print(finding, flush=True)
        if finding.level == PROBLEM:
            code = 1
    return code


def check(name: str | None, redis_urls: list[str], folder: str = ".") -> Iterator[Finding]:
    """All findings; about an application only if ``name`` is given."""
    yield from check_form()
    yield from check_neighbours()
    yield from check_versions()
    yield from check_descriptors()
    yield from check_backlog()
    yield from check_tls()
    application = None
    if name is not None:
        with _log_of_greenws() as records:
            try:
                application = load(name, folder)
            except Exception as error:
                yield from explain(name, error)
        for record in records:
            yield Finding(NOTE, record.name, record.getMessage())
    yield from check_patching(application)
    yield from check_drivers()
    if application is not None:
        yield from check_application(name or "", application)
        yield from check_origins(application)
    yield from check_rooms()
    yield from check_redis([*urls_of_rooms(), *redis_urls])


# -- the installation


def check_form() -> Iterator[Finding]:
    what = f"{distribution.NAME} {distribution.version()}"
    advice = ""
    if form.FORCED:
        advice = "unset GREENWS_PURE_PYTHON for the compiled form, which is a few times faster"
    elif form.PURE and (installed := distribution.shadowed()) is not None:
        advice = (
            f"Python finds the sources in {distribution.FOLDER} first; the installed greenws is in "
            f"{installed}: run this in another folder"
        )
    elif form.PURE:
        advice = (
            "for the compiled form, a few times faster, install a C compiler and Python's headers "
            "(Debian: gcc python3-dev), then greenws again, with pip install "
        )
        if distribution.is_checkout():
            advice += f"-v -e {shlex.quote(distribution.FOLDER)}"
        else:
            advice += "--force-reinstall --no-deps --no-cache-dir -v"
    yield Finding(NOTE if advice else OK, what, form.DESCRIPTION, advice)


def check_neighbours() -> Iterator[Finding]:
    folder = distribution.unrelated()
    if folder is not None:
        yield Finding(
            PROBLEM,
            "distribution greenws",
            f"an unrelated project, in {folder}",
            f"pip uninstall greenws, then install {distribution.NAME} again",
        )


def check_versions() -> Iterator[Finding]:
    yield Finding(OK, "Python", f"{platform.python_version()} ({platform.machine()})")
    wanted = dict(_requirements())
    for name in [*wanted, *_OTHERS]:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in wanted:
                yield Finding(
                    PROBLEM, name, "not installed", f"pip install '{name}>={wanted[name]}'"
                )
            continue
        least = wanted.get(name) or _LEAST.get(name, "")
        if least and _numbers(found) < _numbers(least):
            advice = f"pip install --upgrade '{name}>={least}'"
            yield Finding(PROBLEM, name, f"{found} is too old", advice)
        else:
            yield Finding(OK, name, found)


_LEAST = {"gunicorn": "23", "redis": "5.0"}


def _requirements() -> Iterator[tuple[str, str]]:
    """What greenws depends on, and from which version."""
    try:
        lines = metadata.requires(distribution.NAME) or []
    except metadata.PackageNotFoundError:
        lines = ["gevent>=24.10", "gevent-websocket>=0.10.1", "httptools>=0.6.4", "werkzeug>=3.0"]
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)\s*>=\s*([\d.]+)", line)
        if match:
            yield match[1], match[2]


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]


# -- the machine


def check_descriptors() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = Config().max_connections or 0
    if soft != resource.RLIM_INFINITY and soft < connections + 100:
        ceiling = "" if hard == resource.RLIM_INFINITY else f" (at most {hard} without root)"
        yield Finding(
            NOTE,
            "open files",
            f"a process may have {soft}, fewer than the {connections} of max_connections",
            f"'ulimit -n {2 * connections}' in the shell{ceiling}, LimitNOFILE={2 * connections} "
            "in systemd, or a lower max_connections",
        )
    else:
        yield Finding(OK, "open files", f"a process may have {soft}")


def check_backlog() -> Iterator[Finding]:
    from ..server.server import WebSocketServer

    ours = WebSocketServer.backlog
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            most = int(file.read())
    except OSError:
        yield Finding(OK, "backlog", f"{ours} (WebSocketServer)")
        return
    found = f"{ours} (WebSocketServer), 2048 (gunicorn); the kernel allows {most}"
    if most < 2048:
        yield Finding(NOTE, "backlog", found, "sysctl -w net.core.somaxconn=4096")
    else:
        advice = "WebSocketServer(..., backlog=2048) if thousands of clients come back at once"
        yield Finding(OK, "backlog", found, advice)


def check_tls() -> Iterator[Finding]:
    import ssl

    from ..hub.transport import has_tls_in_memory

    if has_tls_in_memory():
        how = "records in memory"
    else:
        reason = "this is the pure form" if form.PURE else "its OpenSSL cannot be reached"
        how = f"records by Python's SSL objects, as {reason}"
    yield Finding(OK, "TLS", f"{ssl.OPENSSL_VERSION}, {how}")
    missing = []
    if not _kernel_has_tls():
        missing.append("the kernel (CONFIG_TLS; modprobe tls)")
    if ssl.OPENSSL_VERSION_INFO < (3,) or "OpenSSL" not in ssl.OPENSSL_VERSION:
        missing.append("OpenSSL 3")
    if not hasattr(ssl, "OP_ENABLE_KTLS"):
        missing.append("Python 3.12")
    if missing:
        yield Finding(OK, "kTLS", f"not possible without {', '.join(missing)}")
    else:
        yield Finding(OK, "kTLS", "possible", "ssl_context.options |= ssl.OP_ENABLE_KTLS")


def _kernel_has_tls() -> bool:
    """Whether the kernel supports TLS. Asking makes it load its module, if it is allowed to."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError as error:
            return error.errno == errno.ENOTCONN  # supported, but there is no connection
    return True


# -- the application


class _Notes(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _log_of_greenws() -> Iterator[list[logging.LogRecord]]:
    """Collects the warnings of greenws in a block, instead of printing them."""
    logger = logging.getLogger("greenws")
    handler = _Notes(logging.WARNING)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


class _Unfit(Exception):
    """The object is not a WSGI application. The arguments: the object, and why."""


class _NoApplication(ImportError):
    """A module has no such name. The arguments: the text, and the names of its applications."""


class _Serves(Exception):
    """The program starts a server while it is imported."""


def load(name: str, folder: str = ".") -> Any:
    """The application that gunicorn would load under this name.

    Raises what the program raises; ImportError if there is no such module or name; _Unfit if it is
    not a WSGI application.
    """
    import gevent.baseserver
    import werkzeug.serving

    from ..checks import check_application, check_registrations

    def refuse(*args: Any, **options: Any) -> Any:
        raise _Serves

    os.chdir(folder)
    sys.path.insert(0, os.getcwd())
    module_name, _, expression = name.partition(":")
    expression = expression or "application"
    server: Any = gevent.baseserver.BaseServer
    saved = server.serve_forever, werkzeug.serving.run_simple
    server.serve_forever = werkzeug.serving.run_simple = refuse
    try:
        module = import_module(module_name)
        factory, call, _ = expression.partition("(")
        application: Any = module
        for part in factory.strip().split("."):
            try:
                application = getattr(application, part)
            except AttributeError:
                text = f"the module {module_name!r} has no {factory!r}"
                raise _NoApplication(text, _applications_in(module)) from None
        if call:
            application = eval(expression, vars(module))
    finally:
        server.serve_forever, werkzeug.serving.run_simple = saved
    try:
        check_application(application, name)
        check_registrations(application)
    except TypeError as error:
        raise _Unfit(application, str(error)) from None
    return application


def _applications_in(module: Any) -> list[str]:
    """The names of applications, and calls of factories, at the top level of ``module``."""
    from ..checks import fits
    from ..routes import Routes
    from ..surroundings import framework_of

    found = []
    for name, value in vars(module).items():
        if name in ("create_app", "make_app") and callable(value) and fits(value) is None:
            found.append(f"{name}()")
        elif name.startswith("_") or not callable(value):
            continue
        elif isinstance(value, type) or inspect.ismethod(value):
            continue
        elif isinstance(value, Routes) or framework_of(value) is not None:
            found.append(name)
    return found


def explain(name: str, error: Exception) -> Iterator[Finding]:
    """Why an application cannot be loaded."""
    from gevent import monkey

    from ..surroundings import framework_of

    module, _, expression = name.partition(":")
    if isinstance(error, _Serves):
        yield Finding(
            PROBLEM,
            name,
            "starts a server while it is imported, so that gunicorn and 'flask run' would hang",
            "put the lines that start the server under: if __name__ == '__main__':",
        )
    elif isinstance(error, _Unfit):
        application, reason = error.args
        if framework_of(application) == "Django":
            yield Finding(
                PROBLEM,
                name,
                "is Django's ASGI application; greenws serves the WSGI application",
                f"doctor {module.removesuffix('.asgi')}.wsgi",
            )
        else:
            yield Finding(PROBLEM, name, f"cannot be loaded: TypeError: {reason}")
    elif isinstance(error, _NoApplication):
        text, found = error.args
        advice = " or ".join(f"doctor '{module}:{each}'" for each in found)
        yield Finding(PROBLEM, name, f"cannot be loaded: ImportError: {text}", advice)
    elif module.endswith(".py") and isinstance(error, (ModuleNotFoundError, TypeError)):
        path = os.path.normpath(module.removesuffix(".py"))
        folder, base = os.path.split(path) if path.startswith(("/", "..")) else ("", path)
        advice = f"doctor '{base.replace('/', '.')}:{expression or 'NAME'}'"
        if folder:
            advice += f" --chdir {shlex.quote(folder)}"
        yield Finding(PROBLEM, name, "is a file, not a module name", advice)
    elif isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        advice = "run this in the folder of the program, or use --chdir"
        yield Finding(PROBLEM, name, f"there is no module {module!r} in {os.getcwd()}", advice)
    elif "patch" in str(error) and not monkey.is_module_patched("socket"):
        yield Finding(
            NOTE,
            name,
            f"needs a process that is monkey-patched: {error}",
            "gunicorn's gevent workers patch by themselves (try it with --patch); otherwise "
            + _PATCH,
        )
    else:
        traceback.print_exception(error)
        yield Finding(PROBLEM, name, f"cannot be loaded: {type(error).__name__}: {error}")


def check_patching(application: Any) -> Iterator[Finding]:
    from ..surroundings import framework_of, unpatched_modules

    missing = unpatched_modules()
    if not missing:
        yield Finding(OK, "monkey-patched", "socket, ssl, select, time, threading")
        return
    found = f"not {', '.join(missing)}"
    if application is None:
        yield Finding(
            OK,
            "monkey-patched",
            f"{found}, in this process",
            f"gunicorn's gevent workers patch by themselves; a program that makes a "
            f"WebSocketServer: {_PATCH}",
        )
        return
    framework = framework_of(application)
    reason = "Redis, databases and HTTP clients"
    if framework is not None:
        reason = f"{framework}, {reason}"
    yield Finding(
        NOTE,
        "monkey-patched",
        f"{found}: the application does not do it",
        f"gunicorn's gevent workers patch by themselves; a program that makes a WebSocketServer "
        f"and uses {reason}: {_PATCH}",
    )


def check_drivers() -> Iterator[Finding]:
    from ..surroundings import blocking_drivers

    for package, advice in blocking_drivers().items():
        found = "blocks all sessions of a process while it waits for the database"
        yield Finding(NOTE, package, found, advice)


def check_application(name: str, application: Any) -> Iterator[Finding]:
    from ..surroundings import framework_of

    framework = framework_of(application)
    found = type(application).__qualname__
    if framework is not None and framework != found:
        found += f", {framework}"
    yield Finding(OK, name, found)


def check_origins(application: Any) -> Iterator[Finding]:
    from ..routes import Routes
    from ..session import WebSocketHandler

    found = application.handlers if isinstance(application, Routes) else [application]
    handlers = [each for each in found if isinstance(each, WebSocketHandler)]
    default = "a page may connect to its own host"
    if not handlers:
        advice = "allowed_origins=[...] of a WebSocketHandler or Config allows others"
        yield Finding(OK, "origins", default, advice)
    chosen = {repr(each.options.get("allowed_origins")): each for each in handlers}
    for handler in chosen.values():
        origins = handler.options.get("allowed_origins")
        if origins is None:
            yield Finding(OK, "origins", default, "allowed_origins=[...] allows others")
        elif "*" in origins:
            yield Finding(
                NOTE,
                "origins",
                "every page may connect, with the cookies of its visitor",
                "name the pages in allowed_origins, unless the sessions use no cookies",
            )
        else:
            listed = [origins] if isinstance(origins, str) else list(origins)
            yield Finding(OK, "origins", f"these may connect: {', '.join(listed)}")


# -- rooms


def check_rooms() -> Iterator[Finding]:
    rooms = sys.modules.get("greenws.rooms.room")
    if rooms is None or all(each.broker.is_shared for each in rooms.all_rooms()):
        return
    found = "in memory, which reach only the members of one process"
    advice = "Rooms('redis://...') with several workers"
    place = _several_workers()
    if place is None:
        yield Finding(OK, "rooms", found, advice)
    else:
        yield Finding(NOTE, "rooms", f"{found}; {place} has several", "Rooms('redis://...')")


def _several_workers() -> str | None:
    """The setting that makes gunicorn run several workers; None if there is none."""
    if os.environ.get("WEB_CONCURRENCY", "").isdigit() and int(os.environ["WEB_CONCURRENCY"]) > 1:
        return "WEB_CONCURRENCY"
    arguments = os.environ.get("GUNICORN_CMD_ARGS", "")
    if re.search(r"(-w|--workers)[ =]?(?!1\b)\d", arguments):
        return "GUNICORN_CMD_ARGS"
    try:
        with open("gunicorn.conf.py", encoding="utf-8") as file:
            lines = file.read()
    except (OSError, ValueError):
        return None
    return "gunicorn.conf.py" if re.search(r"(?m)^workers\s*=\s*(?!1\s*(#|$))", lines) else None


# -- Redis


def urls_of_rooms() -> list[str]:
    """The URLs of the rooms that the application has made."""
    rooms = sys.modules.get("greenws.rooms.room")
    found = [] if rooms is None else [each.broker for each in rooms.all_rooms()]
    return sorted({url for broker in found for url in getattr(broker, "urls", ())})


def check_redis(urls: list[str]) -> Iterator[Finding]:
    if find_spec("redis") is None:
        if urls:
            yield Finding(PROBLEM, "redis", "redis-py is not installed", "pip install 'redis>=5.0'")
        return
    if not urls:
        yield Finding(OK, "Redis", "no rooms over Redis here", "--redis URL checks one")
    for url in dict.fromkeys(urls):
        try:
            yield from _check_redis(url)
        except Exception as error:
            yield Finding(
                PROBLEM,
                _without_password(url),
                f"{type(error).__name__}: {error}",
                "start Redis, or correct the URL; 'redis-cli -u URL ping' must answer PONG",
            )


def _check_redis(url: str) -> Iterator[Finding]:
    for name, client in _servers(url):
        try:
            info = client.info()
        finally:
            client.close()
        shown = f"Redis {name}"
        yield Finding(OK, shown, f"{info.get('redis_version', '?')}, {info.get('role', '?')}")
        if info.get("role") != "master":
            advice = "use the URL of the master, or redis+sentinel://"
            yield Finding(PROBLEM, shown, f"is a {info.get('role')}, which refuses writes", advice)
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy.startswith("allkeys"):
            yield Finding(
                PROBLEM,
                shown,
                f"maxmemory-policy {policy} evicts messages and presence",
                "CONFIG SET maxmemory-policy noeviction (or volatile-ttl)",
            )
        if not info.get("aof_enabled"):
            yield Finding(
                NOTE,
                shown,
                "appendonly is off: a restart loses what was sent since the last snapshot",
                "CONFIG SET appendonly yes, if messages must survive that",
            )


_URL = re.compile(
    r"(rediss?)(?:\+(sentinel|cluster))?://(?:([^/@]*)@)?([^/?]*)/?([^/?]*)(?:/(\d+))?.*"
)


def _servers(url: str) -> Iterator[tuple[str, Any]]:
    """The address of each Redis that a URL leads to, with a client: one, or all nodes of a
    cluster."""
    import redis.sentinel
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client: Any = redis.Redis
    options: dict[str, Any] = {"socket_timeout": 5, "socket_connect_timeout": 5}
    options["retry"] = Retry(NoBackoff(), 0)
    match = _URL.fullmatch(url)
    if match is None or match[2] is None:
        yield _without_password(url), client.from_url(url, **options)
        return
    scheme, kind, user, hosts, master, _ = match.groups()
    name, _, password = (user or "").partition(":")
    login: dict[str, Any] = {
        "username": name or None,
        "password": password or None,
        "ssl": scheme == "rediss",
    }
    addresses = []
    for host in hosts.split(","):
        host, _, port = host.rpartition(":") if re.search(r":\d+$", host) else (host, "", "")
        addresses.append((host.strip("[]"), int(port or (26379 if kind == "sentinel" else 6379))))
    if kind == "sentinel":
        sentinel: Any = redis.sentinel.Sentinel
        address = sentinel(addresses, sentinel_kwargs=options).discover_master(master)
        yield f"{master} at {address[0]}:{address[1]}", client(*address, **options, **login)
        return
    cluster: Any = redis.RedisCluster
    for node in cluster(*addresses[0], **options, **login).get_primaries():
        yield node.name, client(node.host, node.port, **options, **login)


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//...@", url)
