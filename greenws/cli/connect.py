"""Talks to a WebSocket: sends each line of the input, and prints each message that arrives.

  python -m greenws connect wss://example.com/chat --subprotocol chat
  python -m greenws connect ws://localhost:8181/echo --header "Cookie: session=abc"
  echo '{"type": "hello"}' | python -m greenws connect ws://localhost:8181/ --wait 2 | jq .
  python -m greenws connect --binary ws://localhost:8181/upload < picture.jpg

In a terminal, Ctrl-D closes the connection. In a pipe, messages are written as they are, text with
a line break after it; everything else goes to the standard error.

Exit codes: 0 if the connection was closed normally, 1 if it could not be opened, was lost or closed
with an error, 2 for wrong arguments, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import ssl
import sys
from collections.abc import Iterator

import gevent
import gevent.event
from gevent import socket as gevent_socket

from ..client.exchange import whole_text
from ..client.opening import connect
from ..config import Config
from ..exceptions import ConnectionClosed, HandshakeError
from ..opcodes import CloseCode
from ..websocket import WebSocket

__all__ = ["add_arguments", "run"]

_NORMAL = (CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RECEIVED)
_CHUNK = 1 << 16  # bytes
_SHOWN = 32  # bytes of a binary message, in a terminal
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="ws://, wss:// or ws+unix:///path/socket:/path")
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send this header with the handshake; may be repeated",
    )
    parser.add_argument(
        "-s",
        "--subprotocol",
        action="append",
        default=[],
        metavar="NAME",
        help="offer this subprotocol; may be repeated",
    )
    parser.add_argument(
        "--origin", metavar="ORIGIN", help="send this Origin header, as a page would"
    )
    parser.add_argument(
        "-b",
        "--binary",
        action="store_true",
        help="send binary messages: in a terminal one for each line, otherwise one for all input",
    )
    parser.add_argument(
        "--ping", action="store_true", help="send a ping every second, and print its round trip"
    )
    parser.add_argument(
        "-w",
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long to receive messages after the end of the input, or 'inf' (default: 0; what "
        "the server sends before it answers the Close is printed in any case)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="give up if the connection is not open after this time (default: 10)",
    )
    parser.add_argument(
        "--max-size",
        type=_size,
        default=1 << 26,
        metavar="BYTES",
        help="size of the largest message to receive (default: 64 MiB)",
    )
    parser.add_argument(
        "--proxy",
        metavar="URL",
        help="an http:// or socks5:// URL, or 'none' (default: the proxy in the environment)",
    )
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--ca", metavar="FILE", help="trust the certificates in FILE")
    trust.add_argument(
        "-k", "--insecure", action="store_true", help="trust any certificate for any host"
    )
    parser.set_defaults(error=parser.error)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more seconds, or inf, not {text!r}")
    return seconds


def _size(text: str) -> int:
    size = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
    if not 0 < size < 1 << 63:
        raise argparse.ArgumentTypeError(
            f"must be a number of bytes above 0 and below 2**63, not {text!r}"
        )
    return size


def run(options: argparse.Namespace) -> int:
    if sys.stdout is None:  # type: ignore[unreachable,unused-ignore]
        return _fail("cannot write the output: it is closed")
    hub = gevent.get_hub()
    if KeyboardInterrupt not in hub.NOT_ERROR:
        hub.NOT_ERROR += (KeyboardInterrupt,)  # gevent would print it
    try:
        socket = connect(
            options.url,
            subprotocols=options.subprotocol,
            headers=[_header(text) for text in options.header],
            origin=options.origin,
            ssl_context=_context(options),
            proxy=True if options.proxy is None else _proxy(options.proxy),
            open_timeout=None if options.timeout in (0.0, float("inf")) else options.timeout,
            # Not all servers agree to do without takeover, which saves memory for many connections.
            config=Config(max_message_size=options.max_size, deflate_peer_takeover=True),
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, ssl.SSLCertVerificationError):  # is a ValueError too
            return _fail(f"{error.verify_message} (--ca, --insecure)")
        options.error(str(error))
    except HandshakeError as error:
        return _fail(whole_text(error))
    except OSError as error:
        return _fail(error.strerror or str(error))
    try:
        with socket:
            return _Conversation(socket, options).run()
    except BrokenPipeError:  # the reader of our output has ended
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        return _fail(f"cannot write the output: {error.strerror or error}")


def _drop_output() -> None:
    """Discards the rest of the output, so that there is no further error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError(f"--header must be 'NAME: VALUE', not {text!r}")
    return name.strip(), value.strip()


def _proxy(url: str) -> str | None:
    return None if url.lower() == "none" else url


def _context(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.ca is not None:
        try:
            return ssl.create_default_context(cafile=options.ca)
        except OSError as error:  # ssl.SSLError is one
            is_no_pem = isinstance(error, ssl.SSLError)
            reason = "not a PEM file with certificates" if is_no_pem else error.strerror
            raise ValueError(f"--ca {options.ca}: {reason}") from None
    if options.insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    return None


def _fail(text: str) -> int:
    print(f"greenws connect: {_readable(' '.join(text.split()))}", file=sys.stderr)
    return 1


class _Conversation:
    """The input to the socket, the socket to the output."""

    def __init__(self, socket: WebSocket, options: argparse.Namespace) -> None:
        self._socket = socket
        self._options = options
        # Python's stdin is None if the descriptor is closed.
        self._in_terminal = bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())
        self._pinged = gevent.event.Event()
        if not options.ping:
            self._pinged.set()

    def run(self) -> int:
        """Runs until the connection is closed; returns the exit code."""
        socket = self._socket
        if self._in_terminal:
            chosen = f", subprotocol {socket.subprotocol}" if socket.subprotocol else ""
            self._note(f"connected{chosen}; Ctrl-D closes")
        helpers = [gevent.spawn(self._send_input)]
        if self._options.ping:
            helpers.append(gevent.spawn(self._ping))
        try:
            while True:
                self._show(socket.receive())
        except ConnectionClosed as error:
            if helpers[0].exception is not None and error.code in _NORMAL:
                return _fail(f"cannot read the input: {helpers[0].exception}")
            if error.code not in _NORMAL:
                return _fail(str(error))
            if self._in_terminal:
                self._note(_readable(str(error)), is_last=True)
            return 0
        finally:
            gevent.killall(helpers)

    def _send_input(self) -> None:
        socket = self._socket
        try:
            for message in self._read_input():
                socket.send(message)
                self._prompt()
            self._pinged.wait()
            wait = self._options.wait
            gevent.sleep(wait) if wait != float("inf") else gevent.event.Event().wait()
        except ConnectionClosed:  # the other greenlet reports it
            return
        finally:
            socket.start_closing()

    def _read_input(self) -> Iterator[str | bytes]:
        if self._options.binary and not self._in_terminal:
            yield b"".join(_chunks())
            return
        rest = b""
        for chunk in _chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(self._message, lines)
        if rest:
            yield self._message(rest)

    def _message(self, line: bytes) -> str | bytes:
        line = line.removesuffix(b"\r")
        return line if self._options.binary else line.decode("utf-8", "replace")

    def _ping(self) -> None:
        try:
            while True:
                milliseconds = self._socket.ping() * 1000
                self._note(f"ping: {milliseconds:.3f} ms")
                self._pinged.set()
                gevent.sleep(1.0)
        except ConnectionClosed:
            self._pinged.set()

    def _show(self, message: str | bytes) -> None:
        if self._in_terminal:
            self._note(f"< {_readable(message)}")
            return
        data = message.encode() if isinstance(message, str) else message
        out = sys.stdout.buffer
        out.write(data if isinstance(message, bytes) and self._options.binary else data + b"\n")
        out.flush()

    def _note(self, text: str, is_last: bool = False) -> None:
        if self._in_terminal:
            sys.stdout.write(f"\r\x1b[K{text}\n")
            if not is_last:
                self._prompt()
        else:
            print(text, file=sys.stderr)

    def _prompt(self) -> None:
        if self._in_terminal:
            sys.stdout.write("\r\x1b[K> ")  # replaces the previous prompt
            sys.stdout.flush()


def _readable(message: str | bytes) -> str:
    """A message for a terminal, without control characters."""
    if isinstance(message, str):
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", message)
    more = "..." if len(message) > _SHOWN else ""
    return f"[{len(message)} bytes: {message[:_SHOWN].hex(' ')}{more}]"


def _chunks() -> Iterator[bytes]:
    """The standard input as it arrives. Blocks only this greenlet, and does not change the
    descriptor, which the shell uses too."""
    if sys.stdin is None:
        return
    try:
        fileno = sys.stdin.fileno()
    except (io.UnsupportedOperation, ValueError):  # it is not a file
        yield sys.stdin.buffer.read()
        return
    while True:
        gevent_socket.wait_read(fileno)
        chunk = os.read(fileno, _CHUNK)
        if not chunk:
            return
        yield chunk
