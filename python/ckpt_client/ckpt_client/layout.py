"""Where each tensor goes."""

from __future__ import annotations

import functools
import re
from typing import List, NamedTuple, Sequence, Tuple

# as packages/core/src/checkpoint/arrange.ts
ALIGNMENT_BYTES = 256
# copies out of buffers of this size run at full speed, and the daemon pins one at a time
BUFFER_BYTES = 1 << 30

_DIGITS = re.compile("[0-9]+")


# the names of the next version are those of the last
@functools.lru_cache(maxsize=1 << 18)
def natural_key(name: str) -> Tuple[bytes, bytes]:
    """Sorts as `naturalCompare` of packages/core/src/checkpoint/natural-order.ts does: numbers as numbers, all else by UTF-16
    unit. Buckets then are one copy each."""

    def number(match: "re.Match[str]") -> str:
        digits = match.group().lstrip("0") or "0"
        return f"0{chr(min(len(digits), 0xFFFF))}{digits}"

    return _utf16(_DIGITS.sub(number, name)), _utf16(name)


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-be", "surrogatepass")


class Layout(NamedTuple):
    """Bytes of each buffer, and the buffer and offset of each tensor."""

    buffer_bytes: List[int]
    places: List[Tuple[int, int]]


def arrange(tensor_bytes: Sequence[int], buffer_bytes: int = BUFFER_BYTES) -> Layout:
    """Places tensors one after another, aligned, in as few buffers of about `buffer_bytes` as hold them; a larger tensor has
    one of its own."""
    sizes: List[int] = []
    places: List[Tuple[int, int]] = []
    for count in tensor_bytes:
        if not sizes or (sizes[-1] > 0 and sizes[-1] + count > buffer_bytes):
            sizes.append(0)
        places.append((len(sizes) - 1, sizes[-1]))
        sizes[-1] += -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    # the daemon has no empty buffers
    return Layout([max(size, ALIGNMENT_BYTES) for size in sizes], places)
