"""flood.py NAME PORT: one client that sends, or reads, as much as the server takes, until it is
killed. Prints a letter when the flood is on."""

import itertools
import select
import socket
import struct
import sys

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def frame(opcode, payload=b"", fin=True):
    return bytes([fin << 7 | opcode, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


def head(method, path, *headers):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def upgrade(path):
    key = f"Sec-WebSocket-Key: {KEY}"
    return head(
        "GET", path, "Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13"
    )


# what is sent first, and what is sent again and again
FLOODS = {
    "messages": (upgrade("/json"), frame(1, b"{}")),
    "pings": (upgrade("/echo"), frame(9)),
    "fragments": (
        upgrade("/json"),
        frame(1, b"1", False) + frame(0, b"", False) * 4000 + frame(0),
    ),
    "large": (upgrade("/json"), b"\x82\xfe" + struct.pack("!HI", 1 << 15, 0) + b"1" + b" " * 32767),
    "pipelined": (b"", head("GET", "/small")),
    "chunks": (head("POST", "/read", "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
    "lines": (head("POST", "/lines", f"Content-Length: {1 << 40}"), b"\n"),
    "rows": (upgrade("/rows"), b""),
    "generated": (head("GET", "/generated"), b""),
    "download": (head("GET", "/download"), b""),
}


def main(name, port):
    first, unit = FLOODS[name]
    block = unit * ((1 << 18) // len(unit)) if unit else b""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(first)
    sock.setblocking(False)
    position = 0
    for turn in itertools.count():
        if turn == 2:
            print("x", end="", flush=True)
        readable, writable, _ = select.select([sock], [sock] if block else [], [])
        if readable and not sock.recv(1 << 20):
            return
        if writable:
            try:
                position = (position + sock.send(memoryview(block)[position:])) % len(block)
            except BlockingIOError:
                pass


main(sys.argv[1], int(sys.argv[2]))
