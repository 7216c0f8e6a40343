"""The WSGI application of the cases of plain HTTP: /small, /flask, /file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common import SMALL
from flask import Flask

Application = Callable[..., Iterable[bytes]]
SIZE = 100_000  # bytes of the file
BLOCK = 1 << 16
FOLDER = Path(tempfile.gettempdir()) / "greenws-benchmark"


def send_file(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A file as WSGI has it: by the server's ``wsgi.file_wrapper`` if there is one."""
    file = (FOLDER / "file").open("rb")
    headers = [("Content-Type", "application/octet-stream"), ("Content-Length", str(SIZE))]
    start_response("200 OK", headers)
    if "wsgi.file_wrapper" in environ:
        return environ["wsgi.file_wrapper"](file, BLOCK)  # type: ignore[no-any-return]
    with file:
        return [file.read()]


def make_http_app() -> Application:
    FOLDER.mkdir(exist_ok=True)
    if not (FOLDER / "file").exists():
        (FOLDER / "file").write_bytes(bytes(SIZE))
    flask = Flask(__name__)

    @flask.get("/flask")
    def hello() -> str:
        return "hello"

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/file":
            return send_file(environ, start_response)
        if path == "/flask":
            return flask.wsgi_app(environ, start_response)
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(SMALL)))]
        start_response("200 OK", headers)
        return [SMALL]

    return application
