"""Tells whether bytes have changed, without keeping them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from .copies import Copy, destination_view
from .kernel import has_triton

_CHUNK_ITEMS = 2**20
_BLOCK_ITEMS = 4096
_WORD = 8
BLOCK_BYTES = _BLOCK_ITEMS * _WORD
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


def block_fingerprints(region: torch.Tensor) -> torch.Tensor:
    """One int64 for each `BLOCK_BYTES` of a tensor of bytes, the last block may be shorter."""
    blocks = -(-region.numel() // BLOCK_BYTES)
    sums = torch.zeros(blocks, dtype=torch.int64, device=region.device)
    whole = region.numel() // BLOCK_BYTES
    aligned = region.data_ptr() % _WORD == 0
    if whole:
        words = region[: whole * BLOCK_BYTES] if aligned else region[: whole * BLOCK_BYTES].clone()
        _add(words.view(torch.int64), sums[:whole])
    if whole < blocks:
        sums[whole] = _sum(region[whole * BLOCK_BYTES :])
    return sums


def _sum(view: torch.Tensor) -> torch.Tensor:
    flat = view.reshape(-1)
    whole = flat.numel() // _WORD * _WORD
    if flat.data_ptr() % _WORD:
        flat = flat.clone()
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for items in (flat[:whole].view(torch.int64), flat[whole:]):
        if items.numel():
            _add(items, total)
    return total


def _add(items: torch.Tensor, totals: torch.Tensor) -> None:
    """@param totals: one number for all, or one for each block of items"""
    if items.device.type == "cuda" and has_triton():
        _add_by_kernel(items, totals)
    else:
        _add_by_torch(items, totals)


def _add_by_torch(items: torch.Tensor, totals: torch.Tensor) -> None:
    for start in range(0, items.numel(), _CHUNK_ITEMS):
        chunk = items[start : start + _CHUNK_ITEMS].to(torch.int64)
        at = torch.arange(start, start + chunk.numel(), dtype=torch.int64, device=items.device)
        values = _mixed(chunk ^ _mixed(at + items.numel()))
        if totals.dim() == 0:
            totals += values.sum()
        else:
            first = start // _BLOCK_ITEMS
            sums = values.view(-1, _BLOCK_ITEMS).sum(1)
            totals[first : first + len(sums)] = sums


def _add_by_kernel(items: torch.Tensor, totals: torch.Tensor) -> None:
    from .triton_fingerprint import add_mixed

    programs = -(-items.numel() // _BLOCK_ITEMS)
    constants = {"UNIT": items.element_size(), "ODD": _ODD, "BLOCK": _BLOCK_ITEMS, "EACH": totals.dim() > 0}
    add_mixed[(programs,)](items.data_ptr(), items.numel(), totals, **constants, num_warps=8)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """Every bit of a word has a say in the upper half of its product, which goes on into the lower half."""
    product = words * _ODD
    product ^= product >> 32
    return product * _ODD
