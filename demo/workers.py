"""Serving with several processes, managed by gunicorn."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from greenws import Routes

from .command_line import in_url, listen_error, start_line

logger = logging.getLogger("greenws.demo")


def serve_with_workers(
    options: argparse.Namespace, make_routes: Callable[[str | None, bool], Routes]
) -> int:
    """Serve until gunicorn is stopped; the exit code.

    gunicorn reloads the workers on SIGHUP, adds one on SIGTTIN, removes one on SIGTTOU, and stops
    gracefully on SIGTERM.
    """
    try:
        from gunicorn.app.base import BaseApplication

        from greenws.gunicorn import Worker
    except ImportError as error:
        hint = "pip install 'gunicorn[gevent]' (or 'greenws-wsgi[gunicorn]')"
        print(f"--workers needs gunicorn: {error}; {hint}", file=sys.stderr)
        return 1
    try:  # gunicorn would retry for 5 s
        with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((options.host, options.port))
    except OSError as error:
        print(listen_error(options, error), file=sys.stderr)
        return 1
    if not options.redis and options.workers > 1:
        logger.warning("each worker has its own rooms; use --redis to share them")

    class Demo(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            self.cfg.set("bind", f"{in_url(options.host)}:{options.port}")
            self.cfg.set("workers", options.workers)
            self.cfg.set("worker_class", Worker)
            self.cfg.set("worker_connections", 10_000)
            self.cfg.set("certfile", options.certfile)
            self.cfg.set("keyfile", options.keyfile)
            self.cfg.set("loglevel", options.log_level)
            self.cfg.set("proc_name", "greenws")
            self.cfg.set("when_ready", self.announce)
            self.cfg.set("child_exit", self.remove_metrics)

        def announce(self, arbiter: Any) -> None:
            host, port = arbiter.LISTENERS[0].sock.getsockname()[:2]
            print(start_line(options, host, port), flush=True)

        def remove_metrics(self, arbiter: Any, worker: Any) -> None:
            with contextlib.suppress(ImportError):
                from prometheus_client import multiprocess

                multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]

        def load(self) -> Routes:
            return make_routes(options.redis, options.workers > 1)

    master = os.getpid()
    folder = tempfile.mkdtemp(prefix="greenws-metrics-")
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
    try:
        Demo().run()
    finally:
        if os.getpid() == master:  # the workers are forks, and get here too
            shutil.rmtree(folder)
    return 0
