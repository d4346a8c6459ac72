"""Where a checkpoint's bytes belong in an engine's memory, as it leaves the engine: columns, not one object a copy."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .copies import DIMENSIONS_MAX, Constant, Copy
from .frames import pack
from .proof import last_writers
from .recorder import Form, ListRecording

FORMAT = 2


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
    """Copies out of the tensors of a checkpoint, which have to be of the same `forms`. `allocations` and `tensors` are numbered
    by their place; a row of `columns` is one copy: tensor, offset in it, allocation, offset in that, bytes of a run, then sizes
    and strides of three dimensions, all int64, bytes."""

    tensors: tuple[str, ...]
    forms: tuple[Form, ...]
    allocations: tuple[Allocation, ...]
    columns: torch.Tensor
    #: what the engine writes itself, before the copies are made; it does not leave the engine
    constants: tuple[Constant, ...] = ()
    #: some of them go over weights, which copies then bring again
    over_weights: bool = False

    @cached_property
    def encoded(self) -> bytes:
        """A frame: a JSON object, and the columns one after another, little-endian."""
        dimensions = range(DIMENSIONS_MAX)
        per_dimension = [f"{kind}_{i}" for kind in ("size", "source_stride", "destination_stride") for i in dimensions]
        head = {
            "format": FORMAT,
            "copies": len(self.columns),
            "columns": ["tensor", "source", "allocation", "destination", "run", *per_dimension],
            "tensors": self.tensors,
            "dtypes": [str(form.dtype).removeprefix("torch.") for form in self.forms],
            "shapes": [form.shape for form in self.forms],
            "allocation_bytes": [one.bytes for one in self.allocations],
        }
        return pack(head, bytes(self.columns.t().contiguous().numpy().tobytes()))

    @cached_property
    def digest(self) -> str:
        """Of `encoded`: the handles may change while the places stay."""
        return hashlib.sha256(self.encoded).hexdigest()


def make_map(
    recordings: Sequence[ListRecording],
    allocation_of: Callable[[int], Allocation],
    regions: Mapping[int, torch.Tensor],
) -> PlacementMap:
    """Of the lists of one update, together the whole checkpoint.

    @param allocation_of: the device memory that an address is in
    @param regions: all bytes of each storage that the copies name
    @raises NotPlaced: a list is ordinary, a tensor comes twice, a part of one is written over, or memory cannot be opened
    """
    tensors: dict[str, int] = {}
    forms: list[Form] = []
    # numbers of the copies' sources in one space, so that all of them can be looked at together
    owners: list[tuple[Copy, ListRecording]] = []
    for recording in recordings:
        if recording.reasons:
            raise NotPlaced(recording.reasons[0])
        forms += recording.forms
        for tensor in recording.tensors:
            if tensor.name in tensors:
                raise NotPlaced(f"{tensor.name} comes twice")
            tensors[tensor.name] = len(tensors)
        owners += [(copy, recording) for copy in recording.copies]
    kept, halved = last_writers([replace(copy, source=index) for index, (copy, _) in enumerate(owners)], regions)
    if halved:
        copy, recording = owners[halved[0].source]
        raise NotPlaced(f"a part of {recording.name_at(copy.source)} is written over")
    constants = _constants_of(recordings, kept, owners, regions)
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
    return PlacementMap(tuple(tensors), tuple(forms), tuple(allocations), columns, *constants)


def _constants_of(
    recordings: Sequence[ListRecording],
    kept: Sequence[Copy],
    owners: Sequence[tuple[Copy, ListRecording]],
    regions: Mapping[int, torch.Tensor],
) -> tuple[tuple[Constant, ...], bool]:
    """Those that have to be written before all copies, and whether any of them goes over weights. Within a list a replay has
    them first too; what has to be ruled out is a constant over what an earlier list has brought.

    @param kept: of `owners`, those that the engine has; `source` is their place there
    @raises NotPlaced: there is one
    """
    constants = [constant for recording in recordings for constant in recording.constants]
    if not constants:
        return (), False
    # as replays write them, with negative sources for the constants
    written: list[Copy] = []
    copies, count = 0, 0
    for recording in recordings:
        for constant in recording.constants:
            count += 1
            written += [replace(one, source=-count) for one in constant.places()]
        for copy in recording.copies:
            written.append(replace(copy, source=copies))
            copies += 1
    whole, halved = last_writers(written, regions)
    last = {copy.source for copy in whole}
    for copy in kept:
        if copy.source not in last:
            brought, recording = owners[copy.source]
            raise NotPlaced(f"a later list has a constant written over {recording.name_at(brought.source)}")
    pieces = Counter(copy.source for copy in written)
    wholly = Counter(copy.source for copy in whole)
    partly = {copy.source for copy in halved}
    needed = [number for number in range(1, len(constants) + 1) if wholly[-number] or -number in partly]
    return tuple(constants[number - 1] for number in needed), any(wholly[-number] < pieces[-number] for number in needed)


def _padded(copy: Copy) -> tuple[int, ...]:
    """Sizes and strides of as many dimensions as there can be, outer ones of one item first."""
    fill = DIMENSIONS_MAX - len(copy.shape)
    zeros = (0,) * fill
    return (*(1,) * fill, *copy.shape, *zeros, *copy.source_strides, *zeros, *copy.destination_strides)
