"""Where the items of a tensor come from: an int64 tensor of byte offsets into the ring, -1 for what does not come from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

UNKNOWN = -1
PIECES_MAX = 4096


@dataclass(frozen=True)
class Piece:
    """A box of a tensor's items, those at `begin[d] <= index[d] < begin[d] + shape[d]`, whose origin is `base` plus the sum of
    (index - begin) times `strides`."""

    begin: tuple[int, ...]
    shape: tuple[int, ...]
    base: int
    strides: tuple[int, ...]


def origin_in_ring(tensor: torch.Tensor, ring_offset: int) -> torch.Tensor:
    """Of a view of the ring; `ring_offset`: bytes of its storage before the ring."""
    item = tensor.element_size()
    origin = torch.tensor(tensor.storage_offset() * item - ring_offset, dtype=torch.int64, device=tensor.device)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride())):
        steps = torch.arange(size, dtype=torch.int64, device=tensor.device) * (stride * item)
        origin = origin.unsqueeze(-1) + steps if dim else origin + steps
    return origin.expand(tensor.shape)


def affine_pieces(origin: torch.Tensor) -> list[Piece] | None:
    """Boxes that cover the tensor. None: something does not come from the ring, or it takes too many boxes."""
    if origin.numel() == 0:
        return []
    if bool((origin == UNKNOWN).any()):
        return None
    pieces: list[Piece] = []
    for piece in _cut(origin, (0,) * origin.dim(), 0):
        pieces.append(piece)
        if len(pieces) > PIECES_MAX:
            return None
    return pieces


def _cut(origin: torch.Tensor, begin: tuple[int, ...], dim: int) -> Iterator[Piece]:
    """Cuts the dimensions from `dim` on wherever the step to the next index is another one."""
    if dim == origin.dim():
        yield _piece(origin, begin)
        return
    size = origin.shape[dim]
    if size == 1:
        yield from _cut(origin, begin, dim + 1)
        return
    steps = origin.diff(dim=dim).transpose(0, dim).reshape(size - 1, -1)
    stride = int(steps.flatten().mode().values)
    # torch has no strides below zero: what runs backwards is cut item by item
    regular = (steps == stride).all(dim=1).tolist() if stride >= 0 else [False] * (size - 1)
    start = 0
    for index, same in enumerate([*regular, False]):
        if same:
            continue
        part = origin.narrow(dim, start, index + 1 - start)
        at = (*begin[:dim], begin[dim] + start, *begin[dim + 1 :])
        yield from _cut(part, at, dim + 1)
        start = index + 1


def _piece(origin: torch.Tensor, begin: tuple[int, ...]) -> Piece:
    first = (0,) * origin.dim()
    base = int(origin[first])
    strides = []
    for dim, size in enumerate(origin.shape):
        second = (*first[:dim], 1, *first[dim + 1 :])
        strides.append(int(origin[second]) - base if size > 1 else 0)
    return Piece(begin, tuple(origin.shape), base, tuple(strides))
