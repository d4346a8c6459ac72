"""The kernel itself. Imported only where Triton is, and a file of its own because Triton reads its source."""

import triton
import triton.language as tl


# a program number of 1 or a multiple of 16 would be compiled anew
@triton.jit(do_not_specialize=["ring", "programs"])
def copy_tiles(
    ring,
    table,
    tiles,
    programs,
    UNIT: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    """A program copies one tile, `TILE` items of `UNIT` bytes of one copy; see `KernelReplay` for the columns of the table.

    PAIRS: all of a row are even numbers of items, its addresses multiples of two: a thread loads and stores two items at once.

    ring: address. table: int64 (copies, COLUMNS). tiles: int32 (programs, 2), the copy and which of its tiles.
    """
    program = tl.program_id(0)
    if program < programs:
        row = table + tl.load(tiles + 2 * program).to(tl.int64) * COLUMNS
        begin = tl.load(tiles + 2 * program + 1).to(tl.int64) * TILE
        if UNIT == 8:
            item = tl.int64
        elif UNIT == 4:
            item = tl.int32
        elif UNIT == 2:
            item = tl.int16
        else:
            item = tl.int8
        even: tl.constexpr = 2 if PAIRS else 1
        source = tl.multiple_of((tl.load(row) + ring).to(tl.pointer_type(item)), even * UNIT)
        destination = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(item)), even * UNIT)
        run = tl.multiple_of(tl.load(row + 2), even)
        total = tl.multiple_of(tl.load(row + 3), even)
        if run == total:
            for step in range(0, TILE, STEP):
                at = begin + step + tl.arange(0, STEP)
                inside = at < total
                tl.store(destination + at, tl.load(source + at, mask=inside), mask=inside)
        else:
            size_1 = tl.load(row + 5)
            size_2 = tl.load(row + 6)
            for step in range(0, TILE, STEP):
                at = begin + step + tl.arange(0, STEP)
                inside = at < total
                within = at % run
                rest = at // run
                index_2 = rest % size_2
                rest = rest // size_2
                index_1 = rest % size_1
                index_0 = rest // size_1
                to = within
                of = within
                to += index_0 * tl.multiple_of(tl.load(row + 10), even)
                to += index_1 * tl.multiple_of(tl.load(row + 11), even)
                to += index_2 * tl.multiple_of(tl.load(row + 12), even)
                of += index_0 * tl.multiple_of(tl.load(row + 7), even)
                of += index_1 * tl.multiple_of(tl.load(row + 8), even)
                of += index_2 * tl.multiple_of(tl.load(row + 9), even)
                tl.store(destination + to, tl.load(source + of, mask=inside), mask=inside)
