"""``wsgi.file_wrapper`` (PEP 3333), by which an application hands a file to the server.

The server sends such a file by ``sendfile`` if the connection is plain TCP and no middleware has
changed the body. Otherwise, and for objects that are not real files, the file is iterated over.
"""

from __future__ import annotations

import io
from typing import Any

import werkzeug.wsgi

__all__ = ["FileWrapper", "find_file"]

_LEAST_BLOCK = 1 << 16  # bytes; werkzeug asks for 8 KiB, Django for 4 KiB

# werkzeug, and so Flask, wraps this around a file wrapper to send a range of it. The name is
# private: if it is missing, ranges are iterated over.
_Range: Any = getattr(werkzeug.wsgi, "_RangeWrapper", None)


class FileWrapper:
    """Iterates over the blocks of ``filelike``, from its position to its end, and closes it.

    ``block_size``: bytes of a block; blocks of a seekable file may be larger.
    """

    def __init__(self, filelike: Any, block_size: int = _LEAST_BLOCK) -> None:
        self.filelike = filelike
        # The data of a pipe, for example, is passed on as it arrives.
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
    """The descriptor of the file in ``result``, which an application returned, and the offset at
    which the body begins; None if ``result`` must be iterated over."""
    start = None
    if _Range is not None and type(result) is _Range and result.read_length == 0:
        start = result.start_byte
        result = result.iterable
    if type(result) is not FileWrapper:
        return None
    file = result.filelike
    raw = file.raw if type(file) is io.BufferedReader else file
    # No other types: GzipFile, for example, has the descriptor of a file but returns other bytes.
    if type(raw) is not io.FileIO or not raw.readable() or not raw.seekable():
        return None
    return raw.fileno(), file.tell() if start is None else start
