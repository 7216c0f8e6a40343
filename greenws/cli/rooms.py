"""What the commands that speak to rooms over Redis have in common."""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_broker_options", "add_room", "fail"]


def add_room(parser: argparse.ArgumentParser) -> None:
    """The first two arguments."""
    parser.add_argument("url", metavar="URL", help="of the Redis, as Rooms takes it")
    parser.add_argument("room", metavar="ROOM", help="its name")


def add_broker_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The last options; a command may add to the group that is returned."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="give up after so long without Redis (default: 5)",
    )
    group = parser.add_argument_group("what the servers' RedisBroker was given, if it was")
    group.add_argument("--prefix", default="greenws:", help="of all keys (default: greenws:)")
    parser.set_defaults(error=parser.error)
    return group


def fail(command: str, text: str) -> int:
    """Says why a command failed, in one line; its exit code."""
    print(f"greenws {command}: {' '.join(text.split())}", file=sys.stderr)
    return 1
