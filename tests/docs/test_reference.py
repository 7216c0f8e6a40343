"""What the reference lists is what there is."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from greenws import CloseCode
from greenws.__main__ import COMMANDS
from greenws.config import ACCESS_FIELDS
from greenws.integrations import prometheus
from greenws.opcodes import is_sendable
from greenws.server.admission import TOO_MANY
from greenws.stats import ServerStats

from ..support.paths import ROOT

pytestmark = pytest.mark.no_io

DOCS = ROOT / "docs"
METRICS = {
    *(f"greenws_{name}" for name in prometheus._GAUGES),
    *(f"greenws_{name}_total" for name in (*prometheus._COUNTERS, *prometheus._LABELLED)),
}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_every_metric_is_listed():
    text = (DOCS / "reference" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(greenws_\w+)", text, re.M)) == METRICS


def test_every_reason_of_a_refusal_is_listed():
    reasons = {"application", "malformed", *TOO_MANY}
    for path in (ROOT / "greenws").rglob("*.py"):
        if path.parent.name in ("client", "testing"):
            continue
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "HandshakeError":
                named = [each.value for each in node.keywords if each.arg == "reason"]
                reasons |= {ast.literal_eval(each) for each in (*node.args[3:4], *named)}
    # One is a client's; the other is of servers that are not ours, which count nothing.
    reasons -= {"extension", "server"}
    page = read(DOCS / "reference" / "metrics.md").partition("| `reason` |")[2]
    listed = re.findall(r"^\| (`.*`) \|", page, re.M)
    assert {*re.findall(r"`(\w+)`", " ".join(listed))} == reasons


def test_the_figures_of_a_process_are_listed():
    block = read(DOCS / "reference" / "metrics.md").partition("```json\n")[2].partition("```")[0]
    assert list(json.loads(block)) == list(ServerStats().as_dict())


@pytest.mark.parametrize("name", ["howto/metrics.md", "_static/grafana.json", "_static/alerts.yml"])
def test_a_metric_that_is_shown_exists(name):
    text = (DOCS / name).read_text()
    used = set(re.findall(r"greenws_\w+", text))
    assert used and used <= METRICS


def test_the_board_is_valid():
    board = json.loads((DOCS / "_static" / "grafana.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 6


def test_the_alerts_are_valid(tmp_path):
    rules = DOCS / "_static" / "alerts.yml"
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "annotations"}
        assert rule["annotations"]["summary"]
    promtool = shutil.which("promtool")  # Prometheus is too large for CI alone
    if promtool is not None:
        subprocess.run([promtool, "check", "rules", rules], check=True, capture_output=True)


PUBLIC = [
    "greenws",
    "greenws.brokers",
    "greenws.brokers.memory",
    "greenws.brokers.redis",
    "greenws.client",
    "greenws.integrations.django",
    "greenws.integrations.gevent_websocket",
    "greenws.integrations.prometheus",
    "greenws.integrations.sqlalchemy",
    "greenws.rooms",
    "greenws.testing",
]


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module):
    pages = (DOCS / "reference" / name for name in ("api.md", "config.md"))
    listed = set(re.findall(r"^\.\. (?:auto|py:)\w+:: ([\w.]+)", "".join(map(read, pages)), re.M))
    names = import_module(module).__all__
    # What is in two modules is shown where it is to be imported from.
    shown = {name.rpartition(".")[2] for name in listed if name.startswith("greenws")}
    assert set(names) <= shown


def test_what_is_in_the_reference_exists():
    for name, options in re.findall(
        r"^\.\. auto(?:class|function|exception):: ([\w.]+).*\n((?:   .*\n|\n)*)",
        read(DOCS / "reference" / "api.md"),
        re.M,
    ):
        module, _, last = name.rpartition(".")
        found = getattr(import_module(module), last)
        assert found.__doc__, name
        for member in re.findall(r":: (\w+)$", options, re.M):
            assert hasattr(found, member) or f"self.{member}" in inspect.getsource(
                sys.modules[found.__module__]
            ), f"{name}.{member}"


@pytest.mark.parametrize("name", ["WebSocket", "Member", "testing.TestSocket"])
def test_every_member_of_a_class_is_in_the_reference(name):
    """Where members are listed by hand, since internal ones must not show."""
    page = read(DOCS / "reference" / "api.md")
    block = re.search(rf"autoclass:: greenws\.{name}\(\)\n((?:   .*\n|\n)+)", page)
    listed = set(re.findall(r":: (\w+)$", block[1], re.M))
    module, _, last = f"greenws.{name}".rpartition(".")
    own = vars(getattr(import_module(module), last))
    public = {member for member in own if not member.startswith("_")}
    assert public <= listed


def test_the_browsers_script_is_listed():
    """What it exports, its members, and the events and states that it dispatches."""
    page = read(DOCS / "reference" / "reconnecting.md")
    script = read(ROOT / "webroot" / "reconnecting.js")
    names = {*re.findall(r"^export \w+ (\w+)", script, re.M)}
    names |= {*re.findall(r"^  (?:get )?(\w+)\(.*\) \{$", script, re.M)} - {"constructor"}
    names |= {*re.findall(r'new \w*Event\("(\w+)"', script), *re.findall(r'#tell\("(\w+)"', script)}
    assert {"ReconnectingSocket", "open", "lastId", "message", "waiting"} <= names
    assert {name for name in names if not re.search(rf"`(?:new )?{name}\b", page)} == set()


def test_every_level_of_a_logger_is_listed():
    page = read(DOCS / "reference" / "logs.md")
    listed = dict(re.findall(r"^\| `(greenws\.[\w.]+)` .*\| (.+) \|$", page, re.M))
    for path in (ROOT / "greenws").rglob("*.py"):
        source = read(path)
        for variable, logger in re.findall(
            r'(\w+) = logging\.getLogger\("(greenws\.\S+)"\)', source
        ):
            for call in re.findall(
                rf"\b{variable}\.(debug|info|warning|error|exception)\(", source
            ):
                level = "error" if call == "exception" else call
                assert re.search(rf"\b{level}\b", listed[logger]), (
                    f"{logger}: {level} ({path.name})"
                )


def test_every_logger_and_field_of_the_access_log_is_listed():
    page = read(DOCS / "reference" / "logs.md")
    sources = "".join(map(read, (ROOT / "greenws").rglob("*.py")))
    loggers = set(re.findall(r'getLogger\("(greenws\.[\w.]+)"\)', sources))
    assert set(re.findall(r"^\| `(greenws\.[\w.]+)`", page, re.M)) == loggers
    assert set(re.findall(r"%\((\w+)\)", page)) == set(ACCESS_FIELDS)


def test_every_environment_variable_is_listed():
    page = read(DOCS / "reference" / "config.md")
    sources = "".join(map(read, (ROOT / "greenws").rglob("*.py"))) + read(ROOT / "setup.py")
    used = set(re.findall(r'os\.environ(?:\.get)?[\[(]"([A-Z_]+)"', sources))
    assert {"GREENWS_PURE_PYTHON", "SSL_CERT_FILE"} < used
    # These concern those who build greenws.
    used -= {"CFLAGS", "GREENWS_CFLAGS"}
    assert used <= set(re.findall(r"`([A-Z_]+)`", page))


def test_every_close_code_is_explained():
    text = (DOCS / "reference" / "close-codes.md").read_text()
    listed = dict(re.findall(r"^\| (\d{4}) \| (\w+) ", text, re.M))
    codes = {str(int(code)): code.name for code in CloseCode}
    assert listed == {code: name for code, name in codes.items() if code != "1015"}


def test_the_codes_that_close_takes_are_listed():
    text = (DOCS / "reference" / "close-codes.md").read_text()
    sentence = re.search(r"^`close\(code\)` takes (.*?), in a client also (\d+);", text, re.M)
    listed = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", sentence[1]):
        listed |= {*range(int(first), int(last or first) + 1)}
    codes = range(900, 5100)
    assert listed == {code for code in codes if is_sendable(code)}
    assert listed | {int(sentence[2])} == {code for code in codes if is_sendable(code, client=True)}


@pytest.mark.parametrize(
    "command",
    [["-m", "greenws", name] for name in COMMANDS] + [["run_server.py"]],
    ids=" ".join,
)
def test_every_option_of_the_command_line_is_listed(command):
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    page = (DOCS / "reference" / "command-line.md").read_text()
    text = page.partition(done.stdout.split(" [-h]")[0])[2].partition("```")[0]  # of this command
    options = set(re.findall(r"(?<![\w-])--[a-z-]+", done.stdout))
    assert options == set(re.findall(r"(?<![\w-])--[a-z-]+", text))
