"""Messages of our own conversations: the length of a JSON object in four bytes, that object, and raw bytes; little-endian."""

from __future__ import annotations

import json
from typing import Any

from .messages import ProtocolError

_LENGTH_BYTES = 4
_ALIGNMENT = 8


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """`body` begins at a multiple of 8 bytes."""
    text = json.dumps(head).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + body


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    """@raises ProtocolError: it is none"""
    end = _LENGTH_BYTES + int.from_bytes(message[:_LENGTH_BYTES], "little")
    if len(message) < max(end, _LENGTH_BYTES):
        raise ProtocolError(f"a message of {len(message)} bytes is cut off")
    try:
        head = json.loads(message[_LENGTH_BYTES:end])
    # of brackets without end
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message of {len(message)} bytes cannot be read: {error}") from error
    if not isinstance(head, dict):
        raise ProtocolError(f"a message is a {type(head).__name__}")
    return head, message[end:]
