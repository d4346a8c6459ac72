"""Copies tensors into mappings: one thread a core for what lies in CPU memory, one stream a device for what does not."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, List, Sequence, Tuple

from .regions import Region
from .sources import Source

PIECE_BYTES = 16 << 20

Placed = Tuple[Source, Region, int]
Piece = Tuple[Callable[..., Any], Tuple[Any, ...]]
# ctypes releases the interpreter's lock during this call
copy_bytes = ctypes.memmove


def write_tensors(placed: Sequence[Placed], threads: int) -> None:
    """Returns when every byte is there; on an error, when no thread writes any more."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ckpt-write")
    streams: List[Any] = []
    try:
        on_device = [item for item in placed if item[0].device is not None and item[0].bytes > 0]
        if on_device:
            streams = _enqueue(on_device, pool)
        for future in [pool.submit(_copy, pieces) for pieces in _pieces(placed)]:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for stream in streams:
            stream.synchronize()


def _copy(pieces: Iterable[Piece]) -> None:
    for function, arguments in pieces:
        function(*arguments)


def _pieces(placed: Sequence[Placed]) -> Iterable[List[Piece]]:
    """Work of about PIECE_BYTES each: small tensors together, large ones in parts."""
    batch: List[Piece] = []
    batched = 0
    for source, region, offset in placed:
        if source.device is not None:
            continue
        for begin in range(0, source.bytes, PIECE_BYTES):
            count = min(PIECE_BYTES, source.bytes - begin)
            if source.address is not None:
                batch.append((copy_bytes, (region.address + offset + begin, source.address + begin, count)))
            elif begin == 0:
                batch.append((source.write, (region.map, offset)))
            batched += count
            if batched >= PIECE_BYTES:
                yield batch
                batch, batched = [], 0
    if batch:
        yield batch


def _enqueue(placed: Sequence[Placed], pool: ThreadPoolExecutor) -> List[Any]:
    """Pins the mappings and starts the copies of CUDA tensors. Returns the streams on which they run."""
    import torch

    # pinning is slow, and several threads do it faster
    regions = {id(region): (region, source.device) for source, region, _ in placed}
    list(pool.map(lambda pinned: pinned[0].pin(torch, pinned[1]), regions.values()))
    streams: Dict[Any, Any] = {}
    try:
        for source, region, offset in placed:
            stream = streams.get(source.device)
            if stream is None:
                stream = streams[source.device] = torch.cuda.Stream(source.device)
                # whatever makes the tensors was enqueued there
                stream.wait_stream(torch.cuda.current_stream(source.device))
            with torch.cuda.stream(stream):
                source.write(region.map, offset)
    except BaseException:
        for stream in streams.values():
            stream.synchronize()
        raise
    return list(streams.values())
