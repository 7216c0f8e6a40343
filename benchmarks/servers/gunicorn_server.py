"""An application under gunicorn with one worker: ``gunicorn_server.py APPLICATION WORKER ...``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common import HOST, announce
from gunicorn.app.base import BaseApplication
from gunicorn.util import import_app


class Application(BaseApplication):  # type: ignore[misc]
    def __init__(self, application: str, worker: str, options: argparse.Namespace) -> None:
        self.application, self.worker, self.options = application, worker, options
        super().__init__()

    def load_config(self) -> None:
        settings: dict[str, Any] = {
            "bind": f"{HOST}:{self.options.port}",
            "worker_class": self.worker,
            "threads": self.options.threads,
            "worker_connections": 1_000_000,
            "backlog": 4096,
            "keepalive": 75,
            "loglevel": "error",
            "post_worker_init": self.announce,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return import_app(self.application)

    def announce(self, worker: Any) -> None:
        packages = self.options.packages.split(",")
        more = {}
        if self.worker.startswith("greenws"):
            import greenws_app

            more = {"greenws": greenws_app.greenws.__version__, "form": greenws_app.FORM}
        announce(worker.sockets[0].getsockname()[1], "gunicorn", *packages, **more)


parser = argparse.ArgumentParser()
parser.add_argument("application")
parser.add_argument("worker")
parser.add_argument("packages", help="whose versions are told, with commas between them")
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--threads", type=int, default=1)
options = parser.parse_args()
sys.path.insert(0, str(Path(__file__).parent))
Application(options.application, options.worker, options).run()
