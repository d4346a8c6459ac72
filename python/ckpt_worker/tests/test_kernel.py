"""What the kernel is told: played here item by item, as its programs would, and against copies of torch. The kernel itself
where there is a GPU."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import unittest
from pathlib import Path

import torch

from ckpt_worker import fingerprint
from ckpt_worker.copies import Copy, bytes_of
from ckpt_worker.kernel import _TILE_ITEMS, KernelReplay, has_triton
from ckpt_worker.replay import replay

ROUNDS = 40
_BLOCK = 1 << 16
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))


def random_copies(numbers: random.Random) -> list[Copy]:
    """Each in a block of its own, so that none is written over."""
    copies = []
    for block in range(numbers.randint(1, 6)):
        item = numbers.choice((1, 2, 4, 8, 16))
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
        unit = launch._item
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


class TestKernels(unittest.TestCase):
    def check(self, device: str) -> None:
        numbers = random.Random(7)
        units: set[tuple[int, bool]] = set()
        for _ in range(ROUNDS):
            copies = random_copies(numbers)
            ring = torch.randint(0, 256, (8 * _BLOCK,), dtype=torch.uint8, device=device)
            wanted, got = (torch.zeros(8 * _BLOCK, dtype=torch.uint8, device=device) for _ in range(2))
            replay(copies, ring, {1: bytes_of(wanted.untyped_storage())})
            kernel = KernelReplay(copies, {1: bytes_of(got.untyped_storage())}, ring)
            units |= {(launch._item, launch._pairs) for launch in kernel._launches}
            if device == "cpu" and not INTERPRETED:
                play(kernel, ring)
            else:
                kernel.warm(ring)
                self.assertEqual(int(got.sum()), 0)
                kernel.run(ring)
            self.assertTrue(torch.equal(got, wanted), copies)
        self.assertEqual(units, {(8, True), (8, False), (4, False), (2, False), (1, False)})

    def check_fingerprints(self, device: str) -> None:
        for size in (8, 9, 8 * 4096, 8 * 4096 + 3, 100_001):
            bytes_ = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
            for items in (bytes_[: size // 8 * 8].view(torch.int64), bytes_[:7]):
                by_torch, by_kernel = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
                fingerprint._add_by_torch(items, by_torch)
                fingerprint._add_by_kernel(items, by_kernel)
                self.assertEqual(int(by_torch), int(by_kernel))
        words = torch.randint(-(2**62), 2**62, (3 * fingerprint._BLOCK_ITEMS,), device=device)
        by_torch, by_kernel = (torch.zeros(3, dtype=torch.int64, device=device) for _ in range(2))
        fingerprint._add_by_torch(words, by_torch)
        fingerprint._add_by_kernel(words, by_kernel)
        self.assertEqual(by_torch.tolist(), by_kernel.tolist())

    def test_the_tables_say_what_the_copies_say(self) -> None:
        self.check("cpu")

    @unittest.skipUnless(has_triton() and not INTERPRETED, "needs triton")
    def test_the_kernels_interpreted_on_the_cpu(self) -> None:
        """Triton decides when it is imported."""
        command = [sys.executable, "-W", "ignore", "-m", "unittest", "test_kernel.TestInterpreted"]
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        self.assertRegex(done.stderr, r"Ran 2 tests[^O]*OK\n$")

    @unittest.skipUnless(torch.cuda.is_available() and has_triton(), "needs a GPU and triton")
    def test_on_a_gpu(self) -> None:
        self.check("cuda")
        self.check_fingerprints("cuda")


@unittest.skipUnless(INTERPRETED, "is run by the test before")
class TestInterpreted(TestKernels):
    def test_the_tables_say_what_the_copies_say(self) -> None:
        self.check("cpu")

    def test_the_kernels_interpreted_on_the_cpu(self) -> None:
        self.check_fingerprints("cpu")

    test_on_a_gpu = None  # type: ignore[assignment]


class TestFingerprint(unittest.TestCase):
    def test_other_values_and_other_orders_give_other_numbers(self) -> None:
        one = torch.arange(1000, dtype=torch.float32)
        others = [one.flip(0), one.roll(1), one + 1, one[:-1], one.view(10, 100).t().contiguous()]
        swapped = one.clone()
        swapped[[0, 2]] = one[[2, 0]]
        numbers = [fingerprint.fingerprint_of(value) for value in (one, swapped, *others)]
        self.assertEqual(len(set(numbers)), len(numbers))
        self.assertEqual(fingerprint.fingerprint_of(one.clone()), numbers[0])

    def test_of_memory_that_is_not_aligned(self) -> None:
        value = torch.arange(64, dtype=torch.uint8)
        self.assertEqual(fingerprint.fingerprint_of(value[3:40]), fingerprint.fingerprint_of(value[3:40].clone()))

    def test_every_byte_that_the_copies_have_written_counts(self) -> None:
        storage = torch.zeros(4096, dtype=torch.uint8)
        regions = {1: bytes_of(storage.untyped_storage())}
        copies = [Copy(0, 1, 0, 64), Copy(64, 1, 64, 64), Copy(0, 1, 1024, 8, (4,), (8,), (32,))]
        before = fingerprint.fingerprint(copies, regions)
        for at, counts in ((0, True), (127, True), (128, False), (1024 + 32, True), (1024 + 40, False)):
            storage[at] = 1
            self.assertEqual(not torch.equal(before, fingerprint.fingerprint(copies, regions)), counts, at)
            storage[at] = 0


if __name__ == "__main__":
    unittest.main()
