"""Copies of bytes from the ring into the engine's memory, as the replay makes them: runs of bytes at regular distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

DIMENSIONS_MAX = 3


@dataclass(frozen=True)
class Copy:
    """`run` bytes, and again for each index of `shape`. Offsets and strides are bytes, `source` is within the ring and
    `destination` within the storage `region` (a number that whoever made the copy gives meaning)."""

    source: int
    region: int
    destination: int
    run: int
    shape: tuple[int, ...] = ()
    source_strides: tuple[int, ...] = ()
    destination_strides: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        total = self.run
        for size in self.shape:
            total *= size
        return total

    @property
    def source_end(self) -> int:
        """Behind the last byte that is read."""
        return self.source + self.run + sum((n - 1) * s for n, s in zip(self.shape, self.source_strides))

    @property
    def destination_end(self) -> int:
        """Behind the last byte that is written."""
        return self.destination + self.run + sum((n - 1) * s for n, s in zip(self.shape, self.destination_strides))


@dataclass(frozen=True)
class Constant:
    """A value that the engine writes to its own memory while it loads, whatever the weights are: padding, mostly. `offset` and
    `strides` are items of the storage `region`."""

    region: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    value: bool | int | float | complex

    def write(self, storage: torch.UntypedStorage) -> None:
        """@param storage: the region"""
        whole = torch.empty(0, dtype=self.dtype, device=storage.device)
        whole.set_(storage, self.offset, self.shape, self.strides).fill_(self.value)

    def places(self) -> list[Copy]:
        """The bytes that it is written to, as the destinations of copies."""
        item = self.dtype.itemsize
        strides = tuple(stride * item for stride in self.strides)
        # a source of the same form, or neighbours could not be joined
        return simplified(Copy(0, self.region, self.offset * item, item, self.shape, strides, strides))


def simplified(copy: Copy) -> list[Copy]:
    """The same bytes with as few dimensions as there can be: neighbours are joined into longer runs, and what still has more
    than three dimensions becomes several copies. Nothing of an empty one."""
    if copy.bytes == 0:
        return []
    dims = [(n, s, d) for n, s, d in zip(copy.shape, copy.source_strides, copy.destination_strides) if n > 1]
    # the order of copies within one does not matter, and sorted ones are joined more often
    dims.sort(key=lambda dim: (-abs(dim[2]), -abs(dim[1])))
    joined: list[tuple[int, int, int]] = []
    for n, s, d in dims:
        if joined:
            outer_n, outer_s, outer_d = joined[-1]
            if outer_s == n * s and outer_d == n * d:
                joined[-1] = (outer_n * n, s, d)
                continue
        joined.append((n, s, d))
    run = copy.run
    if joined and joined[-1][1] == run and joined[-1][2] == run:
        run *= joined.pop()[0]
    whole = _with_dims(replace(copy, run=run), joined)
    if len(joined) <= DIMENSIONS_MAX:
        return [whole]
    (n, s, d), inner = joined[0], joined[1:]
    parts = (
        _with_dims(replace(whole, source=copy.source + i * s, destination=copy.destination + i * d), inner) for i in range(n)
    )
    return [one for part in parts for one in simplified(part)]


def _with_dims(copy: Copy, dims: Sequence[tuple[int, int, int]]) -> Copy:
    return replace(
        copy,
        shape=tuple(n for n, _, _ in dims),
        source_strides=tuple(s for _, s, _ in dims),
        destination_strides=tuple(d for _, _, d in dims),
    )


def bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """The whole storage as a tensor of bytes."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def source_view(copy: Copy, ring: torch.Tensor) -> torch.Tensor:
    """The bytes that are copied. `ring`: all of its bytes, from its beginning on."""
    return ring.as_strided((*copy.shape, copy.run), (*copy.source_strides, 1), ring.storage_offset() + copy.source)


def destination_view(copy: Copy, region: torch.Tensor) -> torch.Tensor:
    """Where they go. `region`: all bytes of the storage."""
    return region.as_strided((*copy.shape, copy.run), (*copy.destination_strides, 1), copy.destination)
