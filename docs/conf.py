"""The configuration of Sphinx: ``make docs`` writes ``_build/html``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["GREENWS_PURE_PYTHON"] = "1"  # signatures and attributes are those of both forms

import greenws  # noqa: E402

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
html_static_path = ["_static"]
llms_txt_summary = (
    "WebSockets for any WSGI application (Flask, Django, bare WSGI), in plain blocking Python, on "
    "gevent."
)
