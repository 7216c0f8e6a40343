"""A client that echoes what the fuzzing server sends, case by case.

    client.py FORM URL

Prints its form, and that of each case which it has not survived.
"""

import sys
import time
import traceback
from urllib.parse import quote

import greenws
from greenws import Config, ConnectionClosed
from greenws.protocol import connection

form, url = sys.argv[1:]
own = "pure" if connection.__file__.endswith(".py") else "compiled"
if own != form:
    sys.exit(f"this is the {own} form: are the modules compiled?")
config = Config(max_message_size=16 << 20, max_fragments=None, write_high_water=32 << 20)
agent = f"agent={quote(form)}"


def connect(path: str) -> greenws.WebSocket:
    return greenws.connect(f"{url}/{path}", proxy=None, config=config, open_timeout=60)


def wait_for_server() -> int:
    """The number of cases, once the server is there."""
    end = time.monotonic() + 60
    while True:
        try:
            with connect("getCaseCount") as socket:
                return int(socket.receive())
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


failed = 0
for case in range(1, wait_for_server() + 1):
    try:
        with connect(f"runCase?case={case}&{agent}") as socket:
            for message in socket:
                socket.send(message)
    except ConnectionClosed:  # most cases end with an error, as they should
        pass
    except Exception:
        traceback.print_exc()
        failed += 1
with connect(f"updateReports?{agent}") as socket:
    list(socket)
sys.exit(failed > 0)
