"""Tells whether bytes have changed, without keeping them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from .copies import Copy, destination_view

_CHUNK_ITEMS = 2**20
_ODD = 0x5851F42D4C957F2D


def fingerprint(copies: Iterable[Copy], regions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Numbers of what is where the copies have written; another value, or another order of the values, gives another number but
    for a chance of about 2^-63.

    @param regions: all bytes of each storage that the copies name
    """
    sums = [_sum(destination_view(copy, regions[copy.region])) for copy in _joined(copies)]
    return torch.stack([one.cpu() for one in sums]) if sums else torch.zeros(0, dtype=torch.int64)


def _joined(copies: Iterable[Copy]) -> list[Copy]:
    """The same places in fewer copies: most of them are neighbours, as the experts of one tensor are."""
    joined: list[Copy] = []
    for copy in sorted(copies, key=lambda one: (one.region, one.destination)):
        last = joined[-1] if joined else None
        both_runs = last is not None and not last.shape and not copy.shape and last.region == copy.region
        if last is not None and both_runs and last.destination + last.run == copy.destination:
            joined[-1] = replace(last, run=last.run + copy.run)
        else:
            joined.append(copy)
    return joined


def fingerprint_of(tensor: torch.Tensor) -> str:
    """Of all its bytes, in the order of its items."""
    return f"{int(_sum(tensor.detach().contiguous().view(-1).view(torch.uint8))) & (2**64 - 1):016x}"


def _sum(view: torch.Tensor) -> torch.Tensor:
    flat = view.reshape(-1)
    whole = flat.numel() // 8 * 8
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    aligned = flat.data_ptr() % 8 == 0
    words = flat[:whole].view(torch.int64) if aligned else flat[:whole].clone().view(torch.int64)
    rest = flat[whole:].to(torch.int64)
    for items in (words, rest):
        for start in range(0, items.numel(), _CHUNK_ITEMS):
            chunk = items[start : start + _CHUNK_ITEMS]
            at = torch.arange(start, start + chunk.numel(), dtype=torch.int64, device=flat.device)
            total += _mixed(chunk ^ _mixed(at + items.numel())).sum()
    return total


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """Every bit of a word has a say in the upper half of its product, which goes on into the lower half."""
    product = words * _ODD
    product ^= product >> 32
    return product * _ODD
