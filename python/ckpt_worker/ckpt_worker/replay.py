"""Makes recorded copies again, out of a ring that holds the same list with other contents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from .copies import Copy, destination_view, source_view


def replay(copies: Iterable[Copy], ring: torch.Tensor, regions: Mapping[int, torch.Tensor]) -> None:
    """One copy of torch for each; on a device there is `KernelReplay`.

    @param ring: all bytes of the ring
    @param regions: all bytes of each storage that the copies name
    """
    for copy in copies:
        destination_view(copy, regions[copy.region]).copy_(source_view(copy, ring))
