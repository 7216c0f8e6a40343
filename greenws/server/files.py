"""``wsgi.file_wrapper`` (PEP 3333), by which an application hands a file to the server.

The server sends such a file by ``sendfile`` if nothing but plain TCP lies between. Everything else
iterates over it: a middleware that changes the body, TLS, and a file that is not simply a file.
"""

from __future__ import annotations

import io
from typing import Any

import werkzeug.wsgi

__all__ = ["FileWrapper", "find_file"]

_LEAST_BLOCK = 1 << 16  # bytes; werkzeug and Django ask for 8 and 4 KiB

# What werkzeug, and so Flask, puts around a file wrapper for a range of it. A private name: without
# it, a range is iterated over.
_Range: Any = getattr(werkzeug.wsgi, "_RangeWrapper", None)


class FileWrapper:
    """An iterable of the blocks of ``filelike``, from its position to its end, that closes it.

    ``block_size``: bytes of a block; of a seekable file they may be more.
    """

    def __init__(self, filelike: Any, block_size: int = _LEAST_BLOCK) -> None:
        self.filelike = filelike
        # What grows meanwhile, such as a pipe, is passed on as it comes.
        self.block_size = max(block_size, _LEAST_BLOCK) if self.seekable() else block_size

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.block_size)
        if not data:
            raise StopIteration
        return data

    def seekable(self) -> bool:
        """Whether :meth:`seek` and :meth:`tell` work."""
        if hasattr(self.filelike, "seekable"):
            return bool(self.filelike.seekable())
        return hasattr(self.filelike, "seek") and hasattr(self.filelike, "tell")

    def seek(self, *args: int) -> None:
        self.filelike.seek(*args)

    def tell(self) -> int:
        return int(self.filelike.tell())

    def close(self) -> None:
        if hasattr(self.filelike, "close"):
            self.filelike.close()


def find_file(result: Any) -> tuple[int, int] | None:
    """The descriptor of the file that ``result``, what an application returned, hands over, and
    where in it the body begins; None if it is to be iterated over."""
    start = None
    if _Range is not None and type(result) is _Range and result.read_length == 0:
        start = result.start_byte
        result = result.iterable
    if type(result) is not FileWrapper:
        return None
    file = result.filelike
    raw = file.raw if type(file) is io.BufferedReader else file
    # Exactly these: GzipFile and others have the descriptor of a file whose bytes they change.
    if type(raw) is not io.FileIO or not raw.readable() or not raw.seekable():
        return None
    return raw.fileno(), file.tell() if start is None else start
