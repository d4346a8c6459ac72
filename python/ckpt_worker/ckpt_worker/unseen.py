"""Finds writes to an engine's memory that no operator of torch has made: by a library, or in another thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from .fingerprint import BLOCK_BYTES, block_fingerprints

# of a region: begin and end in bytes
Extents = Mapping[int, Iterable[tuple[int, int]]]


class MemoryBefore:
    """How the regions are now, in blocks of 32 KiB."""

    def __init__(self, regions: Mapping[int, torch.Tensor]):
        self._sums = {number: block_fingerprints(region) for number, region in regions.items()}

    def changed_beside(self, regions: Mapping[int, torch.Tensor], written: Extents) -> bool:
        """Whether a block has changed that nobody is known to have written in.

        @param regions: those of then, and others
        @param written: where somebody has
        """
        for number, before in self._sums.items():
            region = regions.get(number)
            if region is None:
                continue
            changed = block_fingerprints(region) != before
            for begin, end in written.get(number, ()):
                changed[begin // BLOCK_BYTES : -(-end // BLOCK_BYTES)] = False
            if bool(changed.any()):
                return True
        return False
