"""Recorded copies as one Triton kernel for all of a list: what is done for each tensor is done on the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from math import gcd
from typing import Any

import torch

from .copies import DIMENSIONS_MAX, Copy

# what all of a copy's offsets, strides and runs are multiples of, in bytes
_UNITS = (16, 8, 4, 2, 1)
# the widest number there is; of wider units the kernel copies several at once
_ITEM_BYTES_MAX = 8
# of one program of the kernel; it copies them in steps
_TILE_ITEMS = 4096
_STEP_ITEMS = 1024
# source, destination, items of a run, items in all, then sizes, source strides and destination strides
_COLUMNS = 4 + 3 * DIMENSIONS_MAX


def has_triton() -> bool:
    return find_spec("triton") is not None


class KernelReplay:
    """The copies of a list, ready to be made out of any ring that is at least as large as the one of the recording.

    @param copies: disjoint in what they write
    @param regions: all bytes of each storage that the copies name, at the same addresses whenever this is run
    """

    def __init__(self, copies: Iterable[Copy], regions: Mapping[int, torch.Tensor], ring: torch.Tensor):
        by_unit: dict[int, list[Sequence[int]]] = defaultdict(list)
        for copy in copies:
            unit, row = _row(copy, regions[copy.region].data_ptr())
            by_unit[unit].append(row)
        self._launches = [_Launch(unit, rows, ring.device) for unit, rows in sorted(by_unit.items())]

    def warm(self, ring: torch.Tensor) -> None:
        """Compiles, without copying anything."""
        for launch in self._launches:
            launch.run(ring, 0)

    def run(self, ring: torch.Tensor) -> None:
        """@param ring: all of its bytes, at a multiple of 16"""
        assert ring.data_ptr() % max(_UNITS) == 0, "the ring is not aligned"
        for launch in self._launches:
            launch.run(ring, launch.programs)


class _Launch:
    """Copies whose offsets, strides and runs are multiples of `unit` bytes."""

    def __init__(self, unit: int, rows: Sequence[Sequence[int]], device: torch.device):
        self._item = min(unit, _ITEM_BYTES_MAX)
        self._pairs = unit > _ITEM_BYTES_MAX
        self._table = torch.tensor(rows, dtype=torch.int64).reshape(-1, _COLUMNS).to(device)
        tiles = (self._table[:, 3] + _TILE_ITEMS - 1) // _TILE_ITEMS
        first = torch.cumsum(tiles, 0) - tiles
        copy = torch.repeat_interleave(torch.arange(len(rows), device=device), tiles)
        self.programs = len(copy)
        tile = torch.arange(self.programs, device=device) - first[copy]
        self._tiles = torch.stack([copy, tile], dim=1).to(torch.int32)

    def run(self, ring: torch.Tensor, programs: int) -> None:
        grid = (max(1, programs),)
        _kernel()[grid](
            ring.data_ptr(),
            self._table,
            self._tiles,
            programs,
            UNIT=self._item,
            PAIRS=self._pairs,
            COLUMNS=_COLUMNS,
            TILE=_TILE_ITEMS,
            STEP=_STEP_ITEMS,
        )


def _row(copy: Copy, region: int) -> tuple[int, Sequence[int]]:
    """The unit, and the copy's row of the table. Addresses are bytes (the ring's is added when it runs), all else items."""
    destination = region + copy.destination
    common = gcd(copy.source, destination, copy.run, *copy.source_strides, *copy.destination_strides)
    unit = next(unit for unit in _UNITS if common % unit == 0)
    item = min(unit, _ITEM_BYTES_MAX)
    fill = DIMENSIONS_MAX - len(copy.shape)
    sizes = (*(1,) * fill, *copy.shape)
    sources = (*(0,) * fill, *(stride // item for stride in copy.source_strides))
    destinations = (*(0,) * fill, *(stride // item for stride in copy.destination_strides))
    return unit, (copy.source, destination, copy.run // item, copy.bytes // item, *sizes, *sources, *destinations)


_compiled: Any = None


def _kernel() -> Any:
    global _compiled
    if _compiled is None:
        from .triton_copy import copy_tiles

        _compiled = copy_tiles
    return _compiled
