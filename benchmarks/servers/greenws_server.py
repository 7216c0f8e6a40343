"""greenws on its own server, as its README shows it; --patched patches with gevent first."""

from __future__ import annotations

import sys

if "--redis" in sys.argv or "--patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

from common import HOST, MAX_MESSAGE_SIZE, announce_and_serve, lead_workers, parse_options
from greenws_app import FORM, make_app
from http_app import make_http_app

import greenws
from greenws import Config, WebSocketServer

options = parse_options(tls=True)
if options.workers > 1:
    lead_workers(options.workers)
config = Config(max_message_size=MAX_MESSAGE_SIZE, max_connections=None)
if options.ping_interval:
    config = config.replace(ping_interval=options.ping_interval)
tls = {"certfile": options.certfile, "keyfile": options.keyfile} if options.certfile else {}
announce_and_serve(
    WebSocketServer(
        (HOST, options.port),
        make_http_app() if options.http else make_app(options.redis),
        log=None,
        config=config,
        **tls,
    ),
    "gevent",
    "werkzeug",
    greenws=greenws.__version__,
    form=FORM,
)
