"""Finds where a greenlet is: the line of the application that it executes or waits in."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from types import FrameType, TracebackType
from typing import Any

__all__ = ["caller", "place_of", "location_of", "without_machinery"]

_MACHINERY = {"greenws", "gevent", "geventwebsocket"}
_LIBRARIES = tuple(
    {os.path.join(sysconfig.get_paths()[name], "") for name in ("stdlib", "purelib", "platlib")}
)


def location_of(greenlet: Any) -> str:
    """One line about where ``greenlet`` is, with file, line number and function."""
    if greenlet is None:
        return "nobody waits for it"
    if greenlet.dead:
        return "has ended"
    frame = greenlet.gr_frame
    if frame is None:
        return "waits in compiled code" if greenlet else "has not run yet"
    frame = _line_of_application(frame)
    return f"waits at {_place(frame, frame.f_lineno)}"


def place_of(traceback: TracebackType | None) -> str:
    """The innermost line of the application in ``traceback``; empty if there is none."""
    place = ""
    entry = traceback
    while entry is not None:
        if not _is_machinery(entry.tb_frame) and not (
            place and entry.tb_frame.f_code.co_filename.startswith(_LIBRARIES)
        ):
            place = _place(entry.tb_frame, entry.tb_lineno)
        entry = entry.tb_next
    return place


def _place(frame: FrameType, line: int) -> str:
    code = frame.f_code
    source = linecache.getline(code.co_filename, line).strip()
    place = f"{code.co_filename}:{line} in {code.co_name}"
    return f"{place}: {source}" if source else place


def without_machinery(traceback: TracebackType | None) -> TracebackType | None:
    """``traceback`` from the first frame that is not greenws's or gevent's."""
    entry = traceback
    while entry is not None:
        if not _is_machinery(entry.tb_frame):
            return entry
        entry = entry.tb_next
    return traceback


def caller() -> str:
    """``file:line`` of the line of the test that called into this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_machinery(frame):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _line_of_application(innermost: FrameType) -> FrameType:
    """The innermost frame that is not a library's; if there is none, the innermost not of ours."""
    fallback = None
    frame: FrameType | None = innermost
    while frame is not None:
        if not _is_machinery(frame):
            if not frame.f_code.co_filename.startswith(_LIBRARIES):
                return frame
            fallback = fallback or frame
        frame = frame.f_back
    return fallback or innermost


def _is_machinery(frame: FrameType) -> bool:
    """Whether a frame is greenws's or gevent's; by its module, since compiled ones have no path."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _MACHINERY
