"""Where a checkpoint's bytes belong in an engine's memory, as it leaves the engine: columns, not one object a copy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .copies import DIMENSIONS_MAX, Copy
from .frames import pack
from .proof import last_writers
from .recorder import ListRecording

FORMAT = 1


@dataclass(frozen=True)
class Allocation:
    """Device memory that another process can open: `address` in this one, and its size in bytes."""

    handle: bytes
    address: int
    bytes: int


class NotPlaced(RuntimeError):
    """There is no map: what the engine loads is not copied only, or not into memory that can be opened. The text says why."""


@dataclass(frozen=True)
class PlacementMap:
    """Copies out of the tensors of a checkpoint. `allocations` and `tensors` are numbered by their place; a row of `columns`
    is one copy: tensor, offset in it, allocation, offset in that, bytes of a run, then sizes and strides of three dimensions,
    all int64, bytes."""

    tensors: tuple[str, ...]
    allocations: tuple[Allocation, ...]
    columns: torch.Tensor

    def encode(self) -> bytes:
        """A frame: a JSON object, and the columns one after another, little-endian."""
        dimensions = range(DIMENSIONS_MAX)
        per_dimension = [f"{kind}_{i}" for kind in ("size", "source_stride", "destination_stride") for i in dimensions]
        head = {
            "format": FORMAT,
            "copies": len(self.columns),
            "columns": ["tensor", "source", "allocation", "destination", "run", *per_dimension],
            "tensors": self.tensors,
            "allocation_bytes": [one.bytes for one in self.allocations],
        }
        return pack(head, bytes(self.columns.t().contiguous().numpy().tobytes()))

    @property
    def digest(self) -> str:
        """Of what `encode` gives: the handles may change while the places stay."""
        return hashlib.sha256(self.encode()).hexdigest()


def make_map(
    recordings: Sequence[ListRecording],
    allocation_of: Callable[[int], Allocation],
    regions: Mapping[int, torch.Tensor],
) -> PlacementMap:
    """Of the lists of one update, together the whole checkpoint.

    @param allocation_of: the device memory that an address is in
    @param regions: all bytes of each storage that the copies name
    @raises NotPlaced: a list is ordinary, a tensor comes twice, or a part of one is written over by another
    """
    tensors: dict[str, int] = {}
    # numbers of the copies' sources in one space, so that all of them can be looked at together
    owners: list[tuple[Copy, ListRecording]] = []
    for recording in recordings:
        if recording.reasons:
            raise NotPlaced(recording.reasons[0])
        for tensor in recording.tensors:
            if tensor.name in tensors:
                raise NotPlaced(f"{tensor.name} comes twice")
            tensors[tensor.name] = len(tensors)
        owners += [(copy, recording) for copy in recording.copies]
    kept, halved = last_writers([replace(copy, source=index) for index, (copy, _) in enumerate(owners)], regions)
    if halved:
        copy, recording = owners[halved[0].source]
        raise NotPlaced(f"a part of {recording.name_at(copy.source)} is written over")
    allocations: dict[Allocation, int] = {}
    rows: list[Sequence[int]] = []
    for index in sorted(copy.source for copy in kept):
        copy, recording = owners[index]
        tensor = recording.tensor_at(copy.source)
        address = regions[copy.region].data_ptr() + copy.destination
        allocation = allocation_of(address)
        place = (tensors[tensor.name], copy.source - tensor.offset, allocations.setdefault(allocation, len(allocations)))
        rows.append((*place, address - allocation.address, copy.run, *_padded(copy)))
    columns = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), 5 + 3 * DIMENSIONS_MAX)
    return PlacementMap(tuple(tensors), tuple(allocations), columns)


def _padded(copy: Copy) -> tuple[int, ...]:
    """Sizes and strides of as many dimensions as there can be, outer ones of one item first."""
    fill = DIMENSIONS_MAX - len(copy.shape)
    zeros = (0,) * fill
    return (*(1,) * fill, *copy.shape, *zeros, *copy.source_strides, *zeros, *copy.destination_strides)
