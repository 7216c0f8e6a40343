"""The layers of the design: which folder may import which, what is exported, what is tested."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import greenws

from .support.paths import ROOT, TESTS

pytestmark = pytest.mark.no_io

PACKAGE = Path(greenws.__file__).resolve().parent

# The layers. Each imports only from itself and from those above it. A layer is a folder, or a
# few modules beside each other; a new module in a folder has its place there.
LAYERS = [
    (
        "form",
        "lazy",
        "distribution",
        "grammar",
        "opcodes",
        "exceptions",
        "checks",
        "options",
        "config",
    ),
    ("protocol",),
    ("hub",),
    ("http",),
    ("rate_limit", "cross_thread", "waiting", "websocket", "keepalive", "selection", "stats"),
    ("client",),
    ("refusals", "surroundings", "upgrade", "session", "routes"),
    ("rooms",),
    ("server",),
    ("testing",),
    ("databases", "integrations", "policies", "brokers", "gunicorn"),
    ("cli", "__main__"),
]

# Modules that hand on names of others, under the addresses that programs import them from.
SHORT_IMPORTS = {
    *("policies", "brokers", "brokers.memory", "brokers.redis", "client", "gunicorn", "rooms"),
    "testing",
    "integrations.django",
}

# In protocol/ and in http/head.py nothing knows a socket, a greenlet or a clock.
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

# What only protocol/ itself uses: outside of it, nothing knows a bit of a frame.
INSIDE_PROTOCOL = {"protocol.frames", "protocol.masking", "protocol.messages"}


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


@functools.cache
def imports(module: str) -> list[tuple[str, str | None]]:
    """(absolute name, function around it) of all imports that happen when the program runs."""
    path = path_of(module)
    package = ["greenws", *module.split(".")]
    if path.name != "__init__.py":
        package = package[:-1]
    return list(_imports(ast.parse(path.read_text(encoding="utf-8")), package, None))


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


def layer_of(module: str) -> int:
    """The number of the layer of a module; LookupError if it has none."""
    for number, names in enumerate(LAYERS):
        if module in names or module.split(".")[0] in names:
            return number
    raise LookupError(f"{module} is in none of LAYERS")


@pytest.mark.one_form
def test_every_module_is_in_a_layer():
    assert [module for module in MODULES if layer_of(module) < 0] == []
    names = {module.split(".")[0] for module in MODULES}
    assert {name for layer in LAYERS for name in layer} == names


@pytest.mark.one_form
@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_layer_and_those_above(module):
    wrong = {target for target, _ in siblings(module) if layer_of(target) > layer_of(module)}
    assert wrong == set()


@pytest.mark.one_form
def test_no_modules_import_each_other_in_a_circle():
    graph = {module: {target for target, _ in siblings(module)} for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


@pytest.mark.one_form
@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.startswith("protocol.")] + ["protocol", "http.head"]
)
def test_the_protocol_knows_no_io(module):
    assert {name.split(".")[0] for name, _ in imports(module)} & IO == set()


@pytest.mark.one_form
@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("protocol")])
def test_nothing_outside_the_protocol_knows_a_frame(module):
    assert {target for target, _ in siblings(module)} & INSIDE_PROTOCOL == set()


@pytest.mark.one_form
@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("hub.")])
def test_the_hub_knows_nothing_of_websockets(module):
    assert {target.split(".")[0] for target, _ in siblings(module)} <= {"hub", "form"}


@pytest.mark.one_form
@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("http.")])
def test_http_knows_nothing_of_websockets(module):
    allowed = {"http", "hub", "config", "exceptions", "grammar"}
    assert {target.split(".")[0] for target, _ in siblings(module)} <= allowed


@pytest.mark.one_form
@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("rooms")])
def test_only_the_broker_for_redis_imports_redis(module):
    uses = {name.split(".")[0] for name, _ in imports(module)}
    assert ("redis" in uses) <= module.startswith("rooms.redis.")


@pytest.mark.one_form
@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("integrations.")])
def test_an_integration_imports_no_other_integration(module):
    own = ".".join(module.split(".")[:2])  # Django's is a package
    others = [target for target, _ in siblings(module) if target.startswith("integrations.")]
    mine = (f"{own}.", f"{own}_")  # gunicorn's settings
    assert [target for target in others if f"{target}.".startswith(mine)] == others


@pytest.mark.one_form
@pytest.mark.parametrize("module", [m for m in MODULES if path_of(m).name == "__init__.py"])
def test_a_package_imports_nothing_eagerly(module):
    assert {target for target, _ in siblings(module)} <= {"lazy"}


@pytest.mark.one_form
def test_the_architecture_page_lists_the_layers_in_their_order():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text[text.index("| layer |") :].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    found = [tuple(re.findall(r"`([\w.]+?)(?:\.py|/)`", row)) for row in rows]
    assert found == LAYERS


def test_a_part_that_needs_no_gevent_imports_none():
    source = """
import sys, greenws
greenws.Config, greenws.CloseCode, greenws.ConnectionClosed, greenws.policies
import greenws.protocol.connection, greenws.http.head, greenws.rooms.broker
found = [name for name in sys.modules if name.split(".")[0] in ("gevent", "greenlet")]
assert not found, found
"""
    # Where coverage is measured, it would bring gevent along.
    env = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.one_form
@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_past_the_import_statement(module):
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names & {"__import__", "importlib"} == set()
    # These choose the compiled modules, the twin in C, and what is imported late.
    if module in ("form", "lazy", "distribution", "protocol.masking", "__main__", "cli.doctor"):
        return
    assert "importlib" not in {name.split(".")[0] for name, _ in imports(module)}


@pytest.mark.one_form
def test_the_finder_sees_imports_anywhere_in_a_module():
    # The tests above pass with a finder that finds nothing: so it is tested too.
    source = """
import gevent.socket, os as system
from ..protocol import frames
from ..protocol.masking import apply_mask as mask
from greenws.protocol.messages import Utf8Decoder
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
        ("greenws.protocol.frames", None),
        ("greenws.protocol.masking", None),
        ("greenws.protocol.messages", None),
        ("greenws.integrations.flask", None),
        ("greenws.opcodes", None),
        ("greenws", None),
        ("ssl", None),
        ("greenws.session", "b"),
        ("select", "b"),
    ]


# -- what is exported


def test_the_package_exports_exactly_what_it_says():
    assert len(set(greenws.__all__)) == len(greenws.__all__)
    assert set(greenws.__all__) <= set(dir(greenws))
    namespace: dict[str, object] = {}
    exec("from greenws import *", namespace)
    assert set(greenws.__all__) <= set(namespace)
    # The type checker sees the same names, from the same modules.
    tree = ast.parse(path_of("").read_text(encoding="utf-8"))
    typed = {
        alias.name: f".{node.module}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (table,) = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    assert typed == ast.literal_eval(table)
    assert set(typed) == {*greenws.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'WebSockets'"):
        greenws.WebSockets  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_a_module_defines_what_it_exports(module):
    imported = importlib.import_module(f"greenws.{module}")
    names = getattr(imported, "__all__", [])
    missing = [name for name in names if not hasattr(imported, name)]
    assert missing == []
    if module in SHORT_IMPORTS:
        return
    own = (imported.__name__, "greenws.protocol._masking")  # the twin of a function of masking.py
    foreign = [
        name for name in names if getattr(getattr(imported, name), "__module__", own[0]) not in own
    ]
    assert foreign == []


@pytest.mark.one_form
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


@pytest.mark.one_form
@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if path_of(m).name != "__init__.py" and m not in SHORT_IMPORTS],
)
def test_every_module_has_its_tests_in_the_same_folder(module):
    *folders, name = module.split(".")
    assert TESTS.joinpath(*folders, f"test_{name.strip('_')}.py").is_file()


@pytest.mark.one_form
@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.stem)
def test_tests_share_code_through_support_alone(path):
    names = [
        name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for name in (node.module or "").split(".")
    ]
    assert [name for name in names if name == "conftest" or name.startswith("test_")] == []
