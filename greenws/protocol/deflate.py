"""permessage-deflate (RFC 7692): negotiation for both roles, compression, bounded inflation.

Without context takeover, which is the default, an idle connection owns neither a compressor (256
KiB) nor an inflater. A full flush makes a compressor forget what it has compressed, so connections
with the same configuration share compressors, which is also faster than making or copying one. An
inflater exists while a compressed message is incomplete.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Hashable
from typing import Any, NamedTuple

from ..config import Config
from ..exceptions import HandshakeError, InvalidPayload, PolicyViolation
from ..grammar import TOKEN

__all__ = [
    "Deflate",
    "Parameters",
    "accept_answer",
    "accept_offer",
    "make_offer",
    "parse_extensions",
]

Extensions = list[tuple[str, list[tuple[str, "str | None"]]]]
"""The extensions in a header, each with its parameters and their values."""

_NAME = "permessage-deflate"
_MAX_BITS = 15
_TAIL = b"\x00\x00\xff\xff"  # the end of every sync flush, an empty block (section 7.2.1)
_FINAL_BLOCK = b"\x03\x00"  # an empty block, marked as the last of its stream
_MAX_STREAMS = 256  # deflate streams in a message; each needs a new inflater
_MAX_IDLE = 4  # unused compressors to keep for each configuration

_MAX_OFFERS = 32  # to read; of the others only the syntax is checked, which is quick

_VALUE = rf'(?:{TOKEN}|"(?:[^"\\]|\\.)*")'
_PARAMETER = re.compile(rf"[ \t]*;[ \t]*({TOKEN})(?:[ \t]*=[ \t]*({_VALUE}))?")
# Groups inside a repetition would take several times as long.
_PARAMETERS = rf"(?:[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*{_VALUE})?)*"
# List elements may be empty (RFC 9110, section 5.6.1).
_EXTENSION = re.compile(rf"({TOKEN})({_PARAMETERS})[ \t]*(?:,[ \t,]*|$)")
_EXTENSIONS = re.compile(rf"(?:{TOKEN}{_PARAMETERS}[ \t]*(?:,[ \t,]*|$))*")
_BITS = re.compile(r"[89]|1[0-5]")


class Parameters(NamedTuple):
    """The parameters that both ends agreed on (section 7.1). A window of None is not limited."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None

    def __str__(self) -> str:
        """The value for Sec-WebSocket-Extensions."""
        parts = [_NAME]
        for name, value in zip(self._fields, self, strict=True):
            if value is True:
                parts.append(name)
            elif value:
                parts.append(f"{name}={value}")
        return "; ".join(parts)


# -- negotiation


def parse_extensions(header: str) -> Extensions:
    """Parses a Sec-WebSocket-Extensions header (RFC 6455, section 9.1): the first 32 of the
    extensions, since a header of thousands would take as long as a thousand messages.

    Raises:
        HandshakeError: the header is malformed.
    """
    extensions: Extensions = []
    header = header.strip(" \t,")
    position = 0
    while position < len(header):
        pattern = _EXTENSION if len(extensions) < _MAX_OFFERS else _EXTENSIONS
        match = pattern.match(header, position)
        if match is None or match.end() == position:
            wrong = header[position : position + 80]
            raise HandshakeError(f"Sec-WebSocket-Extensions is malformed at {wrong!r}.")
        position = match.end()
        if pattern is _EXTENSIONS:
            continue
        parameters = [(found[1], _unquote(found[2])) for found in _PARAMETER.finditer(match[2])]
        extensions.append((match[1], parameters))
    return extensions


def accept_offer(offers: Extensions, config: Config) -> Parameters | None:
    """The parameters for the first offer that a server can accept; None if there is none, which is
    not an error."""
    if config.deflate:
        for name, parameters in offers:
            if name == _NAME:
                accepted = _accept(parameters, config)
                if accepted is not None:
                    return accepted
    return None


def make_offer(config: Config) -> str | None:
    """A client's offer, for its Sec-WebSocket-Extensions header; None for no offer."""
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
    if config.deflate_window_bits == _MAX_BITS:
        offer += "; client_max_window_bits"  # the server may limit it
    return offer


def accept_answer(chosen: Extensions, config: Config) -> Parameters | None:
    """The parameters that a server chose from ``make_offer(config)``; None if it declined.

    Raises:
        HandshakeError: it chose something that was not offered.
    """
    if not chosen:
        return None
    if not config.deflate or [name for name, _ in chosen] != [_NAME]:
        raise HandshakeError("The server chose an extension that was not offered.")
    try:
        answer = _read(chosen[0][1], in_offer=False)
        if not (answer.server_no_context_takeover or config.deflate_peer_takeover):
            raise ValueError(
                "server_no_context_takeover is missing; Config(deflate_peer_takeover=True) does "
                "not ask for it"
            )
        for name, option in (
            ("server_max_window_bits", "deflate_peer_window_bits"),
            ("client_max_window_bits", "deflate_window_bits"),
        ):
            limit = getattr(config, option)
            bits = getattr(answer, name)
            if bits is None and name == "client_max_window_bits":
                bits = limit  # our offer was only a hint
            if (bits or _MAX_BITS) > limit:
                raise ValueError(f"{name} must be {limit} or less ({option})")
    except ValueError as error:
        raise HandshakeError(f"The server's {_NAME} parameters are invalid: {error}.") from None
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
    server_bits = min(offer.server_max_window_bits or _MAX_BITS, config.deflate_window_bits)
    client_bits = config.deflate_peer_window_bits
    if offer.client_max_window_bits is not None:
        client_bits = min(offer.client_max_window_bits, client_bits)
    elif client_bits < _MAX_BITS:
        return None  # this client does not support a smaller window
    return Parameters(
        offer.server_no_context_takeover or not config.deflate_takeover,
        offer.client_no_context_takeover or not config.deflate_peer_takeover,
        # An offered server_max_window_bits must be answered, even without a limit.
        server_bits if offer.server_max_window_bits is not None else _limited(server_bits),
        _limited(client_bits),
    )


def _read(parameters: list[tuple[str, str | None]], in_offer: bool) -> Parameters:
    """Raises ValueError for anything that section 7.1 does not allow."""
    values: dict[str, Any] = {}
    for name, value in parameters:
        if name not in Parameters._fields:
            raise ValueError(f"unknown parameter {name}")
        if name in values:
            raise ValueError(f"duplicate parameter {name}")
        if name.endswith("takeover"):
            if value is not None:
                raise ValueError(f"{name} takes no value, not {value!r}")
            values[name] = True
        elif value is None and name == "client_max_window_bits" and in_offer:
            values[name] = _MAX_BITS
        elif value is None or not _BITS.fullmatch(value):
            raise ValueError(f"{name} must be 8 to 15, not {value!r}")
        else:
            values[name] = int(value)
    return Parameters(**values)


def _limited(bits: int) -> int | None:
    return bits if bits < _MAX_BITS else None


def _unquote(value: str | None) -> str | None:
    if value is None or not value.startswith('"'):
        return value
    value = re.sub(r"\\(.)", r"\1", value[1:-1])
    if not re.fullmatch(TOKEN, value):  # required by RFC 6455, section 9.1
        raise HandshakeError(f"Sec-WebSocket-Extensions: quoted value {value!r} is not a token.")
    return value


# -- messages


class Deflate:
    """Compresses and inflates the messages of one connection."""

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
        self._kind = (config.deflate_level, bits or _MAX_BITS, config.deflate_memory_level)
        self._peer_takeover = not peer_forgets
        self._peer_bits = peer_bits or _MAX_BITS
        # the message being sent
        self._compressing = False
        self._compressor: Any = None
        # the message being received
        self._inflater: Any = None
        self._streams = 0

    @property
    def form(self) -> Hashable:
        """A key that is equal for connections that compress a message to the same bytes. None with
        context takeover, where the bytes depend on earlier messages."""
        return None if self._takeover else (self._kind, self._threshold)

    def compress(
        self, payload: bytes | memoryview, first: bool, final: bool, wanted: bool | None
    ) -> bytes | None:
        """The compressed payload of a frame; None if its message is sent uncompressed.

        The ``first`` fragment decides for the message: by ``wanted``, or by ``deflate_threshold``
        if that is None. Each fragment is flushed, so that the peer can inflate it as it arrives.
        """
        if first:
            self._compressing = len(payload) >= self._threshold if wanted is None else wanted
        if not self._compressing:
            return None
        compressor = self._compressor or _take_compressor(self._kind)
        reset = final and not self._takeover
        data: bytes = compressor.compress(payload)
        data += compressor.flush(zlib.Z_FULL_FLUSH if reset else zlib.Z_SYNC_FLUSH)
        if reset:
            self._compressor = None
            _return_compressor(self._kind, compressor)
        else:
            self._compressor = compressor
        return data[: -len(_TAIL)] if final else data

    def inflate(self, piece: bytes, end: bool, room: int) -> bytes:
        """Inflates a piece of a message. ``end``: it is the last piece.

        Returns at most ``room + 1`` bytes: more than ``room`` means that the message is too large.
        A ``room`` of -1 sets no limit.

        Raises:
            InvalidPayload: the data is not valid deflate (RFC 1951), or the message is truncated.
            PolicyViolation: the message consists of too many deflate streams.
        """
        try:
            output = self._inflate(piece + _TAIL if end else piece, room)
            if end and not 0 <= room < len(output):
                self._end_message()
        except zlib.error as error:
            raise InvalidPayload(f"{_NAME}: {error}") from None
        return output

    def drop(self) -> None:
        """Frees all memory. No other message may follow."""
        self._compressor = self._inflater = None

    def _inflate(self, data: bytes, room: int) -> bytes:
        if self._inflater is None:
            self._inflater = zlib.decompressobj(-self._peer_bits)
        output: bytes = self._inflater.decompress(data, room + 1)  # 0 means no limit
        while self._inflater.eof and not 0 <= room < len(output):
            # A block may be marked as final (section 7.2.3.4). Another stream follows, with an
            # empty window, as in browsers.
            self._streams += 1
            if self._streams > _MAX_STREAMS:
                raise PolicyViolation(f"more than {_MAX_STREAMS} deflate streams in a message")
            data = self._inflater.unused_data
            self._inflater = zlib.decompressobj(-self._peer_bits)
            left = -1 if room < 0 else room - len(output)
            output += self._inflater.decompress(data, left + 1)
        return output

    def _end_message(self) -> None:
        """Checks that the message is complete: after that, a final empty block ends its stream."""
        probe = self._inflater.copy() if self._peer_takeover else self._inflater
        if probe.decompress(_FINAL_BLOCK, 1) or not probe.eof or probe.unused_data:
            raise InvalidPayload(f"{_NAME}: truncated message")
        self._streams = 0
        if not self._peer_takeover:
            self._inflater = None


_idle: dict[tuple[int, int, int], list[Any]] = {}


def _take_compressor(kind: tuple[int, int, int]) -> Any:
    try:
        return _idle[kind].pop()
    except (KeyError, IndexError):
        level, bits, memory_level = kind
        # zlib does not support raw deflate with 8 bits. With 9 bits it refers back at most 250
        # bytes (the window minus 262), which fits into a window of 8 bits.
        return zlib.compressobj(level, zlib.DEFLATED, -max(bits, 9), memory_level)


def _return_compressor(kind: tuple[int, int, int], compressor: Any) -> None:
    idle = _idle.setdefault(kind, [])
    if len(idle) < _MAX_IDLE:
        idle.append(compressor)
