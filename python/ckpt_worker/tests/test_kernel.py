"""What the kernel is told: played here item by item, as its programs would, and against copies of torch. The kernel itself
where there is a GPU."""

from __future__ import annotations

import ctypes
import random
import unittest

import torch

from ckpt_worker.copies import Copy, bytes_of
from ckpt_worker.kernel import _TILE_ITEMS, KernelReplay, has_triton
from ckpt_worker.replay import replay

ROUNDS = 40
_BLOCK = 1 << 16


def random_copies(numbers: random.Random) -> list[Copy]:
    """Each in a block of its own, so that none is written over."""
    copies = []
    for block in range(numbers.randint(1, 6)):
        item = numbers.choice((1, 2, 4, 8))
        shape = tuple(numbers.randint(1, 5) for _ in range(numbers.randint(0, 3)))
        run = item * numbers.choice((1, 3, 16, 700))
        sources, destinations = [], []
        outer_source = outer_destination = run
        for size in reversed(shape):
            sources.insert(0, outer_source + item * numbers.randint(0, 4))
            destinations.insert(0, outer_destination + item * numbers.randint(0, 4))
            outer_source, outer_destination = sources[0] * size, destinations[0] * size
        if max(outer_source, outer_destination) + 64 > _BLOCK:
            continue
        start = block * _BLOCK + item * numbers.randint(0, 7)
        copies.append(Copy(start, 1, start + item, run, shape, tuple(sources), tuple(destinations)))
    return copies


def play(kernel: KernelReplay, ring: torch.Tensor) -> None:
    for launch in kernel._launches:
        unit = launch._unit
        for copy, tile in launch._tiles.tolist():
            source, destination, run, total, *rest = launch._table[copy].tolist()
            sizes, of, to = rest[0:3], rest[3:6], rest[6:9]
            for at in range(tile * _TILE_ITEMS, min(total, (tile + 1) * _TILE_ITEMS)):
                outer, within = divmod(at, run)
                outer, index_2 = divmod(outer, sizes[2])
                index_0, index_1 = divmod(outer, sizes[1])
                indices = (index_0, index_1, index_2)
                from_item = within + sum(i * stride for i, stride in zip(indices, of))
                to_item = within + sum(i * stride for i, stride in zip(indices, to))
                ctypes.memmove(destination + to_item * unit, ring.data_ptr() + source + from_item * unit, unit)


class TestKernelReplay(unittest.TestCase):
    def check(self, device: str) -> None:
        numbers = random.Random(7)
        for _ in range(ROUNDS):
            copies = random_copies(numbers)
            ring = torch.randint(0, 256, (8 * _BLOCK,), dtype=torch.uint8, device=device)
            wanted, got = (torch.zeros(8 * _BLOCK, dtype=torch.uint8, device=device) for _ in range(2))
            replay(copies, ring, {1: bytes_of(wanted.untyped_storage())})
            kernel = KernelReplay(copies, {1: bytes_of(got.untyped_storage())}, ring)
            if device == "cpu":
                play(kernel, ring)
            else:
                kernel.warm(ring)
                self.assertEqual(int(got.sum()), 0)
                kernel.run(ring)
            self.assertTrue(torch.equal(got, wanted), copies)

    def test_its_tables_say_what_the_copies_say(self) -> None:
        self.check("cpu")

    @unittest.skipUnless(torch.cuda.is_available() and has_triton(), "needs a GPU and triton")
    def test_on_a_gpu(self) -> None:
        self.check("cuda")


if __name__ == "__main__":
    unittest.main()
