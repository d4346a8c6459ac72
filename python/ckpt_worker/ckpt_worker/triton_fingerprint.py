"""The kernel of a fingerprint. Imported only where Triton is, and a file of its own because Triton reads its source."""

import triton
import triton.language as tl


@triton.jit
def mixed(words, ODD: tl.constexpr):
    product = words * ODD
    product = product ^ (product >> 32)
    return product * ODD


# a number of items of 1 or a multiple of 16 would be compiled anew
@triton.jit(do_not_specialize=["address", "items"])
def add_mixed(
    address,
    items,
    total,
    UNIT: tl.constexpr,
    ODD: tl.constexpr,
    BLOCK: tl.constexpr,
    EACH: tl.constexpr,
):
    """Adds to the int64 `total` what `fingerprint.py` makes of `items` items of `UNIT` bytes (8 or 1) at `address`. `EACH`:
    `total` has one place for each block."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < items
    if UNIT == 8:
        words = tl.load(address.to(tl.int64).to(tl.pointer_type(tl.int64)) + at, mask=inside, other=0)
    else:
        words = tl.load(address.to(tl.int64).to(tl.pointer_type(tl.uint8)) + at, mask=inside, other=0).to(tl.int64)
    values = mixed(words ^ mixed(at + items, ODD), ODD)
    of_block = tl.sum(tl.where(inside, values, 0))
    if EACH:
        tl.store(total + tl.program_id(0), of_block)
    else:
        tl.atomic_add(total, of_block)
