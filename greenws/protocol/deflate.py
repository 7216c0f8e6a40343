"""permessage-deflate (RFC 7692): negotiation for both roles, compressing, inflating within bounds.

Without context takeover, which is the default, a connection owns neither a compressor (a quarter of
a MiB) nor an inflater. A full flush leaves a compressor without memory of what it has compressed,
so those of one configuration serve all connections in turn; that is also cheaper than a new one or
a copy. An inflater lives while a compressed message is open.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Hashable
from typing import Any, NamedTuple

from ..config import Config
from ..exceptions import HandshakeError, InvalidPayload, PolicyViolation

__all__ = [
    "Deflate",
    "Parameters",
    "accept_answer",
    "accept_offer",
    "make_offer",
    "parse_extensions",
]

Extensions = list[tuple[str, list[tuple[str, "str | None"]]]]
"""Extensions as a header names them, each with its parameters and their values."""

_NAME = "permessage-deflate"
_MOST_BITS = 15
_TAIL = b"\x00\x00\xff\xff"  # of an empty block: what a sync flush ends with (section 7.2.1)
_LAST_BLOCK = b"\x03\x00"  # empty, too, and the last of its stream
_MAX_STREAMS = 256  # streams of deflate in a message; each starts an inflater
_MAX_IDLE = 4  # compressors of a configuration that wait for the next message

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rf'[ \t]*=[ \t]*({_TOKEN}|"(?:[^"\\]|\\.)*")'
_PARAMETER = re.compile(rf"[ \t]*;[ \t]*({_TOKEN})(?:{_VALUE})?")
# Elements of a list may be empty (RFC 9110, 5.6.1).
_EXTENSION = re.compile(rf"({_TOKEN})((?:{_PARAMETER.pattern})*)[ \t]*(?:,[ \t,]*|$)")
_BITS = re.compile(r"[89]|1[0-5]")


class Parameters(NamedTuple):
    """What both ends agreed on (section 7.1); None where a window is not limited."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None

    def __str__(self) -> str:
        """As an element of Sec-WebSocket-Extensions."""
        parts = [_NAME]
        for name, value in zip(self._fields, self, strict=True):
            if value is True:
                parts.append(name)
            elif value:
                parts.append(f"{name}={value}")
        return "; ".join(parts)


# -- negotiation


def parse_extensions(header: str) -> Extensions:
    """The elements of a Sec-WebSocket-Extensions header (RFC 6455, section 9.1).

    Raises:
        HandshakeError: it does not follow the grammar.
    """
    extensions: Extensions = []
    header = header.strip(" \t,")
    position = 0
    while position < len(header):
        match = _EXTENSION.match(header, position)
        if match is None:
            wrong = header[position : position + 80]
            raise HandshakeError(f"Sec-WebSocket-Extensions is malformed at {wrong!r}.")
        position = match.end()
        parameters = [(found[1], _unquote(found[2])) for found in _PARAMETER.finditer(match[2])]
        extensions.append((match[1], parameters))
    return extensions


def accept_offer(offers: Extensions, config: Config) -> Parameters | None:
    """A server's choice: the first offer that it can accept, or None, which is no error."""
    if config.deflate:
        for name, parameters in offers:
            if name == _NAME:
                accepted = _accept(parameters, config)
                if accepted is not None:
                    return accepted
    return None


def make_offer(config: Config) -> str | None:
    """A client's offer, for its Sec-WebSocket-Extensions header; None makes none."""
    if not config.deflate:
        return None
    offer = str(
        Parameters(
            not config.deflate_peer_takeover,
            not config.deflate_takeover,
            _limited(config.deflate_peer_window_bits),
            _limited(config.deflate_window_bits),
        )
    )
    if config.deflate_window_bits == _MOST_BITS:
        offer += "; client_max_window_bits"  # the server may limit it
    return offer


def accept_answer(chosen: Extensions, config: Config) -> Parameters | None:
    """What a server made of ``make_offer(config)``; None if it declined.

    Raises:
        HandshakeError: it chose what was not offered.
    """
    if not chosen:
        return None
    if not config.deflate or [name for name, _ in chosen] != [_NAME]:
        raise HandshakeError("The server chose an extension that was not offered.")
    try:
        answer = _read(chosen[0][1], in_offer=False)
        if not (answer.server_no_context_takeover or config.deflate_peer_takeover):
            raise ValueError("server_no_context_takeover was asked for")
        for name, limit in (
            ("server_max_window_bits", config.deflate_peer_window_bits),
            ("client_max_window_bits", config.deflate_window_bits),
        ):
            bits = getattr(answer, name)
            if bits is None and name == "client_max_window_bits":
                bits = limit  # only a hint of ours
            if (bits or _MOST_BITS) > limit:
                raise ValueError(f"{name} must be {limit} or less")
    except ValueError as error:
        raise HandshakeError(f"The server's answer about {_NAME}: {error}.") from None
    if not config.deflate_takeover:
        answer = answer._replace(client_no_context_takeover=True)
    return answer._replace(
        client_max_window_bits=answer.client_max_window_bits or _limited(config.deflate_window_bits)
    )


def _accept(parameters: list[tuple[str, str | None]], config: Config) -> Parameters | None:
    try:
        offer = _read(parameters, in_offer=True)
    except ValueError:
        return None
    server_bits = min(offer.server_max_window_bits or _MOST_BITS, config.deflate_window_bits)
    client_bits = config.deflate_peer_window_bits
    if offer.client_max_window_bits is not None:
        client_bits = min(offer.client_max_window_bits, client_bits)
    elif client_bits < _MOST_BITS:
        return None  # this client cannot be told to use a smaller window
    return Parameters(
        offer.server_no_context_takeover or not config.deflate_takeover,
        offer.client_no_context_takeover or not config.deflate_peer_takeover,
        # What was offered must be answered, even if it limits nothing.
        server_bits if offer.server_max_window_bits is not None else _limited(server_bits),
        _limited(client_bits),
    )


def _read(parameters: list[tuple[str, str | None]], in_offer: bool) -> Parameters:
    """Raises ValueError for whatever section 7.1 does not allow."""
    values: dict[str, Any] = {}
    for name, value in parameters:
        if name not in Parameters._fields:
            raise ValueError(f"{name} is no parameter of it")
        if name in values:
            raise ValueError(f"{name} comes twice")
        if name.endswith("takeover"):
            if value is not None:
                raise ValueError(f"{name} takes no value, not {value!r}")
            values[name] = True
        elif value is None and name == "client_max_window_bits" and in_offer:
            values[name] = _MOST_BITS
        elif value is None or not _BITS.fullmatch(value):
            raise ValueError(f"{name} must be 8 to 15, not {value!r}")
        else:
            values[name] = int(value)
    return Parameters(**values)


def _limited(bits: int) -> int | None:
    return bits if bits < _MOST_BITS else None


def _unquote(value: str | None) -> str | None:
    if value is None or not value.startswith('"'):
        return value
    value = re.sub(r"\\(.)", r"\1", value[1:-1])
    if not re.fullmatch(_TOKEN, value):  # section 9.1 demands it
        raise HandshakeError(f"Sec-WebSocket-Extensions: {value!r} in quotes is not a token.")
    return value


# -- messages


class Deflate:
    """The extension on one connection: its messages compressed and inflated as was agreed."""

    __slots__ = (
        "_compressing",
        "_compressor",
        "_inflater",
        "_kind",
        "_peer_bits",
        "_peer_takeover",
        "_streams",
        "_takeover",
        "_threshold",
    )

    def __init__(self, parameters: Parameters, config: Config, client: bool = False) -> None:
        forgets, peer_forgets, bits, peer_bits = parameters
        if client:
            forgets, peer_forgets, bits, peer_bits = peer_forgets, forgets, peer_bits, bits
        self._threshold = config.deflate_threshold
        self._takeover = not forgets
        self._kind = (config.deflate_level, bits or _MOST_BITS, config.deflate_memory_level)
        self._peer_takeover = not peer_forgets
        self._peer_bits = peer_bits or _MOST_BITS
        # the message that we send
        self._compressing = False
        self._compressor: Any = None
        # the message that we receive
        self._inflater: Any = None
        self._streams = 0

    @property
    def form(self) -> Hashable:
        """What connections have in common that compress a message alike; None with context
        takeover, where each has a history of its own."""
        return None if self._takeover else (self._kind, self._threshold)

    def compress(
        self, payload: bytes | memoryview, first: bool, final: bool, wanted: bool | None
    ) -> bytes | None:
        """The payload of a frame, compressed; None if its message goes as it is.

        The ``first`` fragment decides that: if ``wanted`` is None, by ``deflate_threshold``. Each
        fragment is flushed, so that the peer need not wait for the next.
        """
        if first:
            self._compressing = len(payload) >= self._threshold if wanted is None else wanted
        if not self._compressing:
            return None
        compressor = self._compressor or _take_compressor(self._kind)
        forget = final and not self._takeover
        data: bytes = compressor.compress(payload)
        data += compressor.flush(zlib.Z_FULL_FLUSH if forget else zlib.Z_SYNC_FLUSH)
        if forget:
            self._compressor = None
            _return_compressor(self._kind, compressor)
        else:
            self._compressor = compressor
        return data[: -len(_TAIL)] if final else data

    def inflate(self, piece: bytes, end: bool, room: int) -> bytes:
        """What a piece of a message inflates to; ``end``: it is the last.

        Never makes more than ``room + 1`` bytes, which is one too many; -1 sets no limit.

        Raises:
            InvalidPayload: it is not deflate (RFC 1951), or not a whole message of it.
            PolicyViolation: the message ends its stream and begins another too often.
        """
        try:
            output = self._inflate(piece + _TAIL if end else piece, room)
            if end and not 0 <= room < len(output):
                self._end_message()
        except zlib.error as error:
            raise InvalidPayload(f"{_NAME}: {error}") from None
        return output

    def drop(self) -> None:
        """Forgets the messages at hand; there will be no others."""
        self._compressor = self._inflater = None

    def _inflate(self, data: bytes, room: int) -> bytes:
        if self._inflater is None:
            self._inflater = zlib.decompressobj(-self._peer_bits)
        output: bytes = self._inflater.decompress(data, room + 1)  # 0 stands for no limit
        while self._inflater.eof and not 0 <= room < len(output):
            # A block may be marked as the last (section 7.2.3.4); another stream follows it, with
            # an empty window, as browsers see it.
            self._streams += 1
            if self._streams > _MAX_STREAMS:
                raise PolicyViolation(f"more than {_MAX_STREAMS} streams of deflate in a message")
            data = self._inflater.unused_data
            self._inflater = zlib.decompressobj(-self._peer_bits)
            left = -1 if room < 0 else room - len(output)
            output += self._inflater.decompress(data, left + 1)
        return output

    def _end_message(self) -> None:
        """A message that was cut short would swallow the next block, or take it for its own."""
        probe = self._inflater.copy() if self._peer_takeover else self._inflater
        if probe.decompress(_LAST_BLOCK, 1) or not probe.eof or probe.unused_data:
            raise InvalidPayload(f"{_NAME}: the message is cut short")
        self._streams = 0
        if not self._peer_takeover:
            self._inflater = None


_idle: dict[tuple[int, int, int], list[Any]] = {}


def _take_compressor(kind: tuple[int, int, int]) -> Any:
    try:
        return _idle[kind].pop()
    except (KeyError, IndexError):
        level, bits, memory_level = kind
        # zlib has no raw deflate with 8 bits. With 9 it looks back no further than 250 bytes
        # (its window less 262), which a window of 8 bits holds.
        return zlib.compressobj(level, zlib.DEFLATED, -max(bits, 9), memory_level)


def _return_compressor(kind: tuple[int, int, int], compressor: Any) -> None:
    idle = _idle.setdefault(kind, [])
    if len(idle) < _MAX_IDLE:
        idle.append(compressor)
