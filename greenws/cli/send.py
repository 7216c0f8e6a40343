"""Sends messages to a room over Redis: to all its members, in all processes.

  python -m greenws send redis://localhost lobby "The build is done."
  tail -f access.log | python -m greenws send redis://localhost log
  python -m greenws send --json redis://localhost lobby < events.jsonl
  python -m greenws send --binary redis://localhost camera < picture.jpg

Exit codes: 0 if Redis has all messages, 1 if not, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from ..rooms.broker import BrokerUnavailable
from ..rooms.sender import Sender
from .rooms import add_broker_options, add_room, fail

__all__ = ["add_arguments", "run"]

_MAX_SHOWN = 60  # characters of input that an error shows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_room(parser)
    parser.add_argument(
        "message",
        metavar="MESSAGE",
        nargs="?",
        default="-",
        help="what to send; if omitted or '-', each line of the standard input as it arrives",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--binary",
        action="store_true",
        help="send one binary message: MESSAGE in UTF-8, or all of the input",
    )
    kind.add_argument("--json", action="store_true", help="refuse messages that are not JSON")
    parser.add_argument(
        "--type",
        metavar="TYPE",
        help='send JSON objects: {"type": TYPE, "text": MESSAGE}; with --json, add "type" to each '
        "object",
    )
    group = add_broker_options(parser)
    group.add_argument("--history", type=int, default=10_000, metavar="MESSAGES")
    group.add_argument("--history-bytes", type=int, default=64 * 2**20, metavar="BYTES")
    group.add_argument("--max-age", type=float, default=3600.0, metavar="SECONDS")


class _BadInput(Exception):
    """A message that cannot be sent."""


def run(options: argparse.Namespace) -> int:
    if options.binary and options.type is not None:
        options.error("--type sends JSON objects; it cannot be combined with --binary")
    try:
        sender = Sender(
            options.url,
            timeout=options.timeout,
            prefix=options.prefix,
            history=options.history,
            history_bytes=options.history_bytes,
            max_age=options.max_age,
        )
        room = sender[options.room]
    except ImportError as error:
        return fail("send", str(error))
    except (TypeError, ValueError) as error:
        options.error(str(error))
    with sender:
        count = 0
        try:
            for message in _messages(options):
                room.send(message)
                count += 1
        except (BrokerUnavailable, _BadInput) as error:
            sent = f"; {count} sent before it" if count else ""
            return fail("send", f"{error}{sent}")
    return 0


def _messages(options: argparse.Namespace) -> Iterator[str | bytes]:
    source = sys.stdin.buffer
    if options.message != "-":
        # Python decodes invalid UTF-8 in arguments to surrogates.
        yield _message(options, options.message.encode("utf-8", "surrogateescape"), "MESSAGE")
    elif options.binary:
        yield source.read()
    else:
        for number, line in enumerate(source, 1):
            yield _message(options, line.rstrip(b"\r\n"), f"line {number}")


def _message(options: argparse.Namespace, data: bytes, where: str) -> str | bytes:
    if options.binary:
        return data
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _BadInput(f"{where} is not UTF-8; --binary sends it as it is") from None
    found: Any = {"text": text}
    if options.json:
        try:
            found = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            shown = repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
            raise _BadInput(f"{where} is not JSON: {shown}: {error}") from None
        if options.type is None:
            return text
        if not isinstance(found, dict):
            raise _BadInput(f"{where} is not a JSON object, as --type requires")
    elif options.type is None:
        return text
    typed = {"type": options.type} | found | {"type": options.type}
    return json.dumps(typed, ensure_ascii=False, separators=(",", ":"))


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
