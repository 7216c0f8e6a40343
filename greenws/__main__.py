"""``python -m greenws COMMAND``: a module of :mod:`greenws.cli` for each command.

Such a module has ``add_arguments(parser)`` and ``run(options) -> int``, the exit code. It is
imported when its command is called, so that one which needs no gevent imports none.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .distribution import version

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "connect": "talk to a WebSocket, in a terminal or a pipe",
    "disconnect": "close the connections of a room's members, from a shell",
    "doctor": "check this installation, this machine and an application; say what to do",
    "send": "send messages to a room, from a shell",
}
"""The commands, each the name of a module, and what they do."""


class _CommandParser(argparse.ArgumentParser):
    """The parser of a command, whose module is imported when its arguments are to be parsed."""

    command: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.command is not None:
            module = import_module(f".cli.{self.command}", __package__)
            self.command = None
            self.description = self.description or _docstring(module)
            module.add_arguments(self)
            self.set_defaults(run=module.run)
            # So that an optional argument may come after an option.
            options, others = self.parse_known_intermixed_args(args, namespace)
            if others:  # the parser of all commands would print its own usage
                self.error(f"unrecognized arguments: {' '.join(others)}")
            return options, others
        return super().parse_known_args(args, namespace)


def _docstring(module: Any) -> str | None:
    if module.__doc__ is None:  # python -OO
        with contextlib.suppress(OSError):
            return ast.get_docstring(ast.parse(inspect.getsource(module)))
    text: str | None = module.__doc__
    return text


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m greenws", description="Tools for WebSockets with greenws."
    )
    parser.add_argument("--version", action="version", version=f"greenws {version()}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.command = name
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that ``arguments`` (or the process's) call; the exit code."""
    if sys.stderr is None:  # type: ignore[unreachable,unused-ignore]
        sys.stderr = open(os.devnull, "w")  # print() to None would write to the standard output
    options = make_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
