"""The configuration of Sphinx: ``make docs`` writes ``_build/html``."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["GREENWS_PURE_PYTHON"] = "1"  # signatures and attributes are those of both forms

from sphinx.pycode import ModuleAnalyzer  # noqa: E402

import greenws  # noqa: E402

for path in (ROOT / "greenws").rglob("*.py"):
    # If autodoc cannot parse a module, it leaves out the texts of attributes without a warning.
    ModuleAnalyzer.for_file(path, path.stem).analyze()

project = "greenws"
author = "The greenws maintainers"
copyright = author
release = version = greenws.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_llms_txt",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # a build needs no network

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True

copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "greenws"
html_favicon = "../webroot/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["phone.css"]
llms_txt_summary = (
    "WebSockets for any WSGI application (Flask, Django, bare WSGI), in plain blocking Python, on "
    "gevent."
)
# Relative, so that they lead to the pages wherever the site is.
llms_txt_uri_template = "_sources/{docname}{suffix}{sourcelink_suffix}"


def render_sources(app: Any, error: Exception | None) -> None:
    """In the sources that are published, and that llms-full.txt consists of, what autodoc makes
    stands in place of its directives, as text."""
    from sphinx.builders.text import TextBuilder

    if error is not None or app.builder.name != "html":
        return
    with tempfile.TemporaryDirectory() as folder:
        builder = TextBuilder(app, app.env)
        builder.outdir = type(app.outdir)(folder)
        for path in Path(app.srcdir).rglob("*.md"):
            name = str(path.relative_to(app.srcdir).with_suffix(""))
            if name in app.env.all_docs and "{eval-rst}" in path.read_text(encoding="utf-8"):
                builder.prepare_writing({name})
                builder.write_doc(name, app.env.get_and_resolve_doctree(name, builder))
                target = Path(app.outdir, "_sources", f"{name}.md.txt")
                shutil.move(Path(folder, f"{name}.txt"), target)


def hide_colon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon would take the text before a colon in the first line for an attribute's type."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = lines[0].replace(": ", f"{HIDDEN} ")
        if lines[0].endswith(":"):
            lines[0] = lines[0][:-1] + HIDDEN


def show_colon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(HIDDEN, ":") for line in lines]


HIDDEN = "\ue000"


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", hide_colon, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", show_colon, priority=600)
    app.connect("build-finished", render_sources, priority=400)  # before sphinx_llms_txt
