"""Closes the connections of a room's members over Redis, in all processes: as after a logout, a ban
or a changed password.

  python -m greenws disconnect redis://localhost "user ann" --code 4001 --reason "signed out"
  python -m greenws disconnect redis://localhost lobby --member ann

Members first receive what was sent before. Members in a process that has lost its connection to
Redis stay connected.

Exit codes: 0 if Redis has passed the request on, 1 if not, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse

from ..rooms.broker import BrokerUnavailable
from ..rooms.sender import Sender
from .rooms import add_broker_options, add_room, fail

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_room(parser)
    parser.add_argument(
        "--member",
        metavar="ID",
        help="the presence id, or the presence_key, of the only member to disconnect (default: all "
        "members)",
    )
    parser.add_argument(
        "--code",
        type=int,
        default=1008,
        help="close code; a page gets it as event.code (default: 1008)",
    )
    parser.add_argument("--reason", default="", help="close reason, at most 123 bytes")
    add_broker_options(parser)


def run(options: argparse.Namespace) -> int:
    try:
        sender = Sender(options.url, timeout=options.timeout, prefix=options.prefix)
        room = sender[options.room]
    except ImportError as error:
        return fail("disconnect", str(error))
    except (TypeError, ValueError) as error:
        options.error(str(error))
    with sender:
        try:
            room.disconnect(options.code, options.reason, options.member)
        except (TypeError, ValueError) as error:
            options.error(str(error))
        except BrokerUnavailable as error:
            return fail("disconnect", str(error))
    return 0
