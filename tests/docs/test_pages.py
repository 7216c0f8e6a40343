"""Every code block of the documentation does what its reader would have it do."""

from __future__ import annotations

import json
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from gunicorn.config import Config
from gunicorn.workers import SUPPORTED_WORKERS

from greenws.__main__ import make_parser

from ..support.limits import limit
from ..support.pages import PAGES, Block, blocks_in, hidden_of, name_of
from ..support.paths import ROOT
from ..support.require import require_program

pytestmark = pytest.mark.no_io

BLOCKS = [block for page in PAGES for block in blocks_in(page)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def run(text: str, folder: Path) -> None:
    program = folder / "page_of_the_docs.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=limit(20),
        env={"PATH": "", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def has_python(page: Path) -> bool:
    return any(block.language == "python" and block.is_run for block in blocks_in(page))


@pytest.mark.parametrize("page", [page for page in PAGES if has_python(page)], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """Blocks with a name of a file are imported from it; the others run in their order."""
    fragments = []
    for block in blocks_in(page):
        if block.language != "python" or not block.is_run:
            continue
        if block.caption:
            (tmp_path / block.caption).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.caption).write_text(block.text)
            name = block.caption.removesuffix(".py").replace("/", ".")
            if "." in Path(block.caption).stem:  # gunicorn.conf.py
                fragments.append(f"import runpy; runpy.run_path({block.caption!r})\n")
            else:
                fragments.append(f"import importlib; importlib.import_module({name!r})\n")
        else:
            fragments.append("\n" * 2 + f"# {block}\n" + block.text)
    before, after = hidden_of(page, "setup"), hidden_of(page, "check")
    run(f"__name__ = 'page'\n{before}\n" + "".join(fragments) + after, tmp_path)


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_is_valid(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", of("console", "sh"), ids=str)
def test_a_command_is_run_by_a_test_or_says_why_not(block: Block) -> None:
    assert block.note, "say '<!-- run by TEST -->' or '<!-- not run: REASON -->' before it"


def commands_in(text: str, program: str) -> list[list[str]]:
    """The arguments with which ``program`` is called, up to a comment or a redirection."""
    lines = re.findall(rf"(?:^|[ /]){program} (.+)", text, re.M)
    found = [shlex.split(re.split(r" [|<>] ", line)[0], comments=True) for line in lines]
    return found + [
        json.loads(line)[1:] for line in re.findall(rf'^CMD (\["{program}".+)', text, re.M)
    ]


@pytest.mark.parametrize("block", of("console", "sh", "systemd", "docker", "text"), ids=str)
def test_the_options_of_a_command_exist(block: Block) -> None:
    if block.text.startswith("usage: "):
        return
    for arguments in commands_in(block.text, "gunicorn"):
        options = Config().parser().parse_args(arguments)
        if options.worker_class not in (None, *SUPPORTED_WORKERS):
            assert pkgutil.resolve_name(options.worker_class)
    for arguments in commands_in(block.text, "python -m greenws"):
        make_parser().parse_args(arguments)


def test_nothing_tells_to_install_what_is_not_in_the_public_index() -> None:
    readmes = [ROOT / "README.md", *(ROOT / "examples").rglob("README.md")]
    for page in (*PAGES, *readmes):
        for block in blocks_in(page):
            assert not re.search(r"pip install [^#\n]*\bgreenws", block.text), block


def test_the_tests_of_blocks_exist() -> None:
    for block in BLOCKS:
        path, *parts = block.test.split("::")
        for part in parts:
            text = (ROOT / path).read_text()
            assert f"def {part}(" in text or f"class {part}" in text, block


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- copy of" in page.read_text()])
def test_what_a_page_shows_of_an_example_is_what_it_has(page: Path) -> None:
    copies = runpy.run_path(str(ROOT / "docs" / "copies.py"))
    text = page.read_text()
    assert len(copies["_BLOCK"].findall(text)) == text.count("<!-- copy of")
    assert copies["with_copies"](text) == text, "run python docs/copies.py"


def test_a_page_is_whole_as_plain_markdown() -> None:
    """As GitHub and readers of llms.txt see it."""
    found = [name_of(page) for page in PAGES if "{literalinclude}" in page.read_text()]
    assert not found, "copy it, with docs/copies.py"


def test_json_is_valid() -> None:
    for block in of("json"):
        json.loads(block.text)


def test_yaml_is_valid() -> None:
    for block in of("yaml"):
        assert list(yaml.safe_load_all(block.text)), block
    for path in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(path.read_text()), path


def test_javascript_is_valid(tmp_path: Path) -> None:
    require_program("node")
    for block in of("js", "javascript"):
        (tmp_path / "block.mjs").write_text(block.text)
        subprocess.run(["node", "--check", tmp_path / "block.mjs"], check=True, timeout=limit(20))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_language_is_known(page: Path) -> None:
    known = {"python", "pycon", "console", "sh", "json", "js", "html", "text", "http", "toml", ""}
    known |= {"ini", "yaml", "nginx", "docker", "haproxy", "caddy", "systemd", "lua", "jinja"}
    assert {block.language for block in blocks_in(page)} <= known
