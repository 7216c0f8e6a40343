"""The layers of the design: who may import whom, what the package exports, what is tested."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from sansio import hub_errors as hub_errors

import greenws

PACKAGE = Path(greenws.__file__).resolve().parent
TESTS = Path(__file__).resolve().parent

# Each module imports only from those above it. A new module takes its place here.
ORDER = [
    "form",
    "opcodes",
    "exceptions",
    "config",
    "masking",
    "frames",
    "deflate",
    "messages",
    "http",
    "handshake",
    "origin",
    "protocol",
    "shared",
    "switching",
    "syscalls",
    "polling",
    "transport",
    "rate_limit",
    "websocket",
    "keepalive",
    "stats",
    "selection",
    "policies",
    "brokers",
    "brokers.memory",
    "brokers.redis",
    "rooms",
    "http_stream",
    "session",
    "routes",
    "admission",
    "opening",
    "integrations",
    "integrations.gevent_websocket",
    "server",
    "integrations.flask",
    "integrations.gunicorn",
    "gunicorn",
    "integrations.prometheus",
]
PLANNED: set[str] = set()

# Down to protocol.py nothing knows a socket, a greenlet or a clock.
NO_IO = ORDER[: ORDER.index("protocol") + 1]
IO = {
    "_socket",
    "asyncio",
    "gevent",
    "geventwebsocket",
    "greenlet",
    "select",
    "selectors",
    "socket",
    "ssl",
    "threading",
    "time",
}

# Below protocol.py nothing knows a bit of a frame.
ABOVE_FRAMES = ORDER[ORDER.index("protocol") + 1 :]
FRAMES = {"frames", "masking", "messages"}

# (module, function, target): imports that may break the order, because they happen in a call.
# install() patches another library for a program that wants it, and needs the whole server.
LAZY = {("integrations.gevent_websocket", "install", "server")}


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def find_modules() -> list[str]:
    """All modules but the package itself, which imports whatever it exports."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts:
            found.append(".".join(parts))
    return found


MODULES = find_modules()


def imports(module: str) -> Iterator[tuple[str, str | None]]:
    """(absolute name, function around it) of all imports that happen when the program runs."""
    path = path_of(module)
    package = ["greenws", *module.split(".")]
    if path.name != "__init__.py":
        package = package[:-1]
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), package, None)


def _imports(node: ast.AST, package: list[str], function: str | None) -> Iterator[tuple]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = [] if not child.level else package[: len(package) - child.level + 1]
            base = base + (child.module.split(".") if child.module else [])
            for alias in child.names:
                name = ".".join([*base, alias.name])
                yield (
                    (name if name.removeprefix("greenws.") in MODULES else ".".join(base)),
                    (function),
                )
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            # Only for types: nothing is imported when it runs.
            yield from _imports(ast.Module(child.orelse, []), package, function)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(child, package, child.name)
        else:
            yield from _imports(child, package, function)


def siblings(module: str) -> list[tuple[str, str | None]]:
    """(module of greenws, function around it); "" stands for the package itself."""
    found = []
    for name, function in imports(module):
        if name == "greenws" or name.startswith("greenws."):
            found.append((name.removeprefix("greenws").removeprefix("."), function))
    return found


def test_every_module_has_its_place_in_the_order():
    assert set(MODULES) - set(ORDER) == set(), "modules without a place in ORDER"
    assert set(ORDER) - set(MODULES) <= PLANNED, "names in ORDER without a module"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_those_above_it(module):
    above = ORDER[: ORDER.index(module)]
    wrong = [
        target
        for target, function in siblings(module)
        if target not in above and (module, function, target) not in LAZY
    ]
    assert wrong == []


def test_the_exceptions_to_the_order_are_needed():
    found = {
        (module, function, target) for module in MODULES for target, function in siblings(module)
    }
    assert LAZY <= found


@pytest.mark.parametrize("module", [module for module in MODULES if module in NO_IO])
def test_nothing_down_to_the_protocol_knows_a_socket(module):
    assert {name.split(".")[0] for name, _ in imports(module)} & IO == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module in ABOVE_FRAMES])
def test_nothing_below_the_protocol_knows_a_frame(module):
    assert {target for target, _ in siblings(module)} & FRAMES == set()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_past_the_import_statement(module):
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names & {"__import__", "importlib"} == set()
    if module in ("form", "masking"):  # which choose the compiled modules, and the twin in C
        return
    assert "importlib" not in {name.split(".")[0] for name, _ in imports(module)}


def test_the_finder_sees_imports_wherever_they_stand():
    # The tests above pass with a finder that finds nothing: so it is tested too.
    source = """
import gevent.socket, os as system
from .. import frames
from ..masking import apply_mask as mask
from greenws.messages import Utf8Decoder
from .flask import install
from greenws import opcodes, WebSocket
if TYPE_CHECKING:
    from ..server import UpgradeHandler
else:
    import ssl
class A:
    def b(self):
        try:
            from ..session import x
        except ImportError:
            import select
"""
    package = ["greenws", "integrations"]
    assert list(_imports(ast.parse(source), package, None)) == [
        ("gevent.socket", None),
        ("os", None),
        ("greenws.frames", None),
        ("greenws.masking", None),
        ("greenws.messages", None),
        ("greenws.integrations.flask", None),
        ("greenws.opcodes", None),
        ("greenws", None),
        ("ssl", None),
        ("greenws.session", "b"),
        ("select", "b"),
    ]


# -- what is exported


def test_the_package_exports_exactly_what_it_says():
    public = {
        name
        for name, value in vars(greenws).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert public == set(greenws.__all__)
    assert len(set(greenws.__all__)) == len(greenws.__all__)
    namespace: dict[str, object] = {}
    exec("from greenws import *", namespace)
    assert set(greenws.__all__) <= set(namespace)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_defines_what_it_exports(module):
    imported = importlib.import_module(f"greenws.{module}")
    names = getattr(imported, "__all__", [])
    missing = [name for name in names if not hasattr(imported, name)]
    assert missing == []
    own = (imported.__name__, "greenws._masking")  # the twin of a function of masking.py
    foreign = [
        name for name in names if getattr(getattr(imported, name), "__module__", own[0]) not in own
    ]
    assert foreign == []


@pytest.mark.parametrize("module", MODULES)
def test_what_others_import_from_a_module_is_public(module):
    private = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert private == []


# -- what is tested


@pytest.mark.parametrize("module", [m for m in MODULES if path_of(m).name != "__init__.py"])
def test_every_module_has_its_tests(module):
    assert (TESTS / f"test_{module.rsplit('.', 1)[-1]}.py").is_file()
