"""Prints what greenws and some of its extras need, for pip: ``dependencies.py test lint``."""

import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
needed = dict.fromkeys(project["dependencies"])
for name in sys.argv[1:]:
    needed.update(dict.fromkeys(extras[name]))
print(*needed, sep="\n")
