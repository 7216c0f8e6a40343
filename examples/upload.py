"""A large upload, read fragment by fragment.

A client sends one binary message in any number of fragments, and gets its SHA-256. The handler
reads each fragment as it arrives, so the upload is not held in memory as a whole, unless the client
sends it in one frame. ``max_message_size`` bounds the memory for that.

    python examples/upload.py
    python -c "
    from websockets.sync.client import connect
    with connect('ws://127.0.0.1:8000/') as ws:
        ws.send(bytes(65536) for _ in range(1000)); print(ws.recv())"
"""

import argparse
import hashlib

from greenws import WebSocketHandler, WebSocketServer, WebSocketSessionHandler

MAX_UPLOAD = 100 << 20


class Upload(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        socket.read_timeout_seconds = 30
        digest, size = hashlib.sha256(), 0
        while True:
            data, opcode, final = socket.read_bytes_message()
            if data is None:  # timed out, disconnected, or too large
                return
            digest.update(data)  # or write it to a file
            size += len(data)
            if final:
                socket.send(f"{size} bytes, {digest.hexdigest()}")
                digest, size = hashlib.sha256(), 0


uploads = WebSocketHandler(
    lambda request, protocols: Upload(), max_message_size=MAX_UPLOAD, max_fragments=None
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    server = WebSocketServer(("127.0.0.1", parser.parse_args().port), uploads)
    server.start()
    print(f"ws://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
