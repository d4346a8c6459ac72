"""What a recording must show before it may be replayed: that its copies, and nothing else, made what the engine has now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import gcd

import torch

from .copies import Copy, destination_view, source_view
from .recorder import ListRecording

NOBODY = -1
_WORD = 8


def prove(recording: ListRecording, ring: torch.Tensor, regions: Mapping[int, torch.Tensor]) -> None:
    """After the engine has loaded a list, and before the ring changes: leaves only copies that may be made in any order, and
    makes every tensor ordinary that is not exactly where its copies say.

    @param ring: all bytes of the ring
    @param regions: all bytes of each storage that the copies name
    """
    kept, halved = last_writers(recording.copies, regions)
    for copy in halved:
        recording.refuse([recording.name_at(copy.source)], "another tensor is written over a part of it")
    # all of them are asked before the first answer is waited for
    differ = [_differ(source_view(copy, ring), destination_view(copy, regions[copy.region])).to(ring.device) for copy in kept]
    for copy, differs in zip(kept, torch.stack(differ).tolist() if differ else []):
        if differs:
            recording.refuse([recording.name_at(copy.source)], "the engine does not hold what it was given")
    recording.copies = [copy for copy in kept if recording.name_at(copy.source) not in recording.ordinary]


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Whether two tensors of bytes do, as a tensor."""
    if all(t.is_contiguous() and t.data_ptr() % _WORD == 0 and t.numel() % _WORD == 0 for t in (one, other)):
        one, other = one.reshape(-1).view(torch.int64), other.reshape(-1).view(torch.int64)
    return (one != other).any()


def last_writers(copies: Iterable[Copy], regions: Mapping[int, torch.Tensor]) -> tuple[list[Copy], list[Copy]]:
    """Those that nobody has written over, and those of which a part was written over. What was written over as a whole is in
    neither: the engine does not have it."""
    by_region: dict[int, list[Copy]] = defaultdict(list)
    for copy in copies:
        by_region[copy.region].append(copy)
    kept: list[Copy] = []
    halved: list[Copy] = []
    for region, written in by_region.items():
        if not _may_overlap(written):
            kept += written
            continue
        owned = _owned(written, regions[region].numel())
        for copy, (own, all_of_it) in zip(written, owned):
            if own == all_of_it:
                kept.append(copy)
            elif own:
                halved.append(copy)
    return kept, halved


def _may_overlap(copies: Sequence[Copy]) -> bool:
    spans = sorted((copy.destination, copy.destination_end) for copy in copies)
    return any(later[0] < earlier[1] for earlier, later in zip(spans, spans[1:]))


def _owned(copies: Sequence[Copy], region_bytes: int) -> list[tuple[int, int]]:
    """Of each copy how many units it has written last, and how many it has. The unit divides every offset, stride and run."""
    unit = region_bytes
    for copy in copies:
        unit = gcd(unit, copy.destination, copy.run, *copy.destination_strides)
    owners = torch.full((region_bytes // unit,), NOBODY, dtype=torch.int32)
    views = [
        owners.as_strided(
            (*copy.shape, copy.run // unit), (*(s // unit for s in copy.destination_strides), 1), copy.destination // unit
        )
        for copy in copies
    ]
    for index, view in enumerate(views):
        view.fill_(index)
    return [(int((view == index).sum()), view.numel()) for index, view in enumerate(views)]
