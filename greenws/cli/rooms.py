"""The arguments that all commands for rooms over Redis share."""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_broker_options", "add_room", "fail"]


def add_room(parser: argparse.ArgumentParser) -> None:
    """Adds the first two arguments."""
    parser.add_argument("url", metavar="URL", help="URL of the Redis, as given to Rooms")
    parser.add_argument("room", metavar="ROOM", help="name of the room")


def add_broker_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the last options; a command may add more to the group that is returned."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="give up when Redis has not answered for this time (default: 5)",
    )
    group = parser.add_argument_group("options of the servers' RedisBroker, if it has any")
    group.add_argument(
        "--prefix", default="greenws:", help="prefix of all keys (default: greenws:)"
    )
    parser.set_defaults(error=parser.error)
    return group


def fail(command: str, text: str) -> int:
    """Prints in one line why a command failed; returns its exit code."""
    print(f"greenws {command}: {' '.join(text.split())}", file=sys.stderr)
    return 1
