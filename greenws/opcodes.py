"""Opcodes and close codes, and which close codes may be sent (RFC 6455, sections 5.2 and 7.4)."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["MAX_REASON", "NORMAL_ENDS", "CloseCode", "OpcodeType", "is_receivable", "is_sendable"]


class OpcodeType(IntEnum):
    """The opcodes of frames. ``INVALID`` is never sent: it marks a read that returned nothing."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10
    INVALID = -1


class CloseCode(IntEnum):
    """The registered close codes (RFC 6455, section 7.4.1, and the IANA registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RECEIVED = 1005  # never sent: the peer's Close had no code
    ABNORMAL = 1006  # never sent: there was no Close
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015  # never sent


_NEVER_SENT = {CloseCode.NO_STATUS_RECEIVED, CloseCode.ABNORMAL, CloseCode.TLS_HANDSHAKE}
_REGISTERED = frozenset(int(code) for code in CloseCode if code not in _NEVER_SENT)


NORMAL_ENDS = frozenset(
    int(code) for code in (CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RECEIVED)
)
"""Codes after which iteration ends without an error."""

MAX_REASON = 123
"""Bytes of a close reason: a control frame holds 125, and the code takes 2 (section 5.5)."""


def is_receivable(code: int) -> bool:
    """Whether a peer may send ``code``: registered, or 3000 to 4999 (RFC 6455, section 7.4.2)."""
    return code in _REGISTERED or 3000 <= code <= 4999


def is_sendable(code: int, client: bool = False) -> bool:
    """Whether this end may send ``code``; only a client may send 1010 (RFC 6455, section 7.4.1)."""
    if code == CloseCode.MANDATORY_EXTENSION:
        return client
    return is_receivable(code)
