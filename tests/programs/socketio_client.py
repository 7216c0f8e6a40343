"""python-socketio's client: events both ways, an acknowledgement, and 1 MB of text and of bytes."""

import queue
import sys

import socketio

LONG = 120  # seconds; the test has a limit of its own
port, transport = sys.argv[1:]
client = socketio.Client()
echoed = queue.Queue()
client.on("echoed", echoed.put)
# "polling" begins with HTTP and then upgrades
transports = ["websocket"] if transport == "websocket" else ["polling", "websocket"]
client.connect(f"http://127.0.0.1:{port}", transports=transports, wait_timeout=LONG)

for data in ("hello", {"a": [1, 2, "ü"]}, b"\x00\xff", "x" * 1_000_000, b"y" * 3_000_000):
    assert client.call("echo", data, timeout=LONG) == "acknowledged"
    assert echoed.get(timeout=LONG) == data
if transport == "polling":
    assert client.transport() == "websocket", client.transport()
client.disconnect()
print("done", flush=True)
