"""``python manage.py COMMAND`` of the Django project that the tests use. ``serve`` runs it on a
WebSocketServer, in a patched process; the database is that of GREENWS_TEST_DATABASE."""

import os
import sys

from gevent import monkey

if sys.argv[1:] == ["serve"]:
    monkey.patch_all()

os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"


def serve() -> None:
    from project.wsgi import application

    from greenws import WebSocketServer

    server = WebSocketServer(("127.0.0.1", 0), application, log=None)
    server.start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        from django.core.management import execute_from_command_line

        execute_from_command_line(sys.argv)
