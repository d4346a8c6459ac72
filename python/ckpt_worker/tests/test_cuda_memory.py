"""Allocations and their handles, of a driver that is played and of a real one where there is one."""

from __future__ import annotations

import ctypes
import unittest
from typing import Any
from unittest import mock

import torch

from ckpt_worker import cuda_memory
from ckpt_worker.cuda_memory import CudaMemory
from ckpt_worker.placement import NotPlaced

INVALID_VALUE = 1


class Driver:
    """With allocations at these addresses, of these sizes."""

    def __init__(self, sizes: dict[int, int]):
        self.sizes = sizes
        self.exported = 0
        self.fails: str | None = None

    def cuMemGetAddressRange_v2(self, base: Any, size: Any, address: ctypes.c_ulonglong) -> int:
        for begin, length in self.sizes.items():
            if begin <= address.value < begin + length:
                base._obj.value, size._obj.value = begin, length
                return INVALID_VALUE if self.fails == "range" else 0
        return INVALID_VALUE

    def cuIpcGetMemHandle(self, handle: Any, base: ctypes.c_ulonglong) -> int:
        self.exported += 1
        handle.raw = base.value.to_bytes(64, "little")
        return INVALID_VALUE if self.fails == "handle" else 0

    def cuGetErrorName(self, status: int, name: Any) -> int:
        name._obj.value = b"CUDA_ERROR_INVALID_VALUE" if status == INVALID_VALUE else None
        return 0


class TestCudaMemory(unittest.TestCase):
    def setUp(self) -> None:
        # the second begins where the first ends, and one is beyond 2^63
        self.driver = Driver({0x7000: 0x100, 0x7100: 0x80, 0x1000: 16, 1 << 63: 1 << 40})

    def test_asks_once_for_each_allocation(self) -> None:
        memory = CudaMemory(self.driver)
        for address, begin in ((0x7000, 0x7000), (0x70FF, 0x7000), (0x7100, 0x7100), (0x717F, 0x7100), (0x100F, 0x1000)) * 2:
            found = memory.allocation_of(address)
            self.assertEqual((found.address, found.bytes), (begin, self.driver.sizes[begin]))
            self.assertEqual(found.handle, begin.to_bytes(64, "little"))
        self.assertEqual(self.driver.exported, 3)
        last = memory.allocation_of((1 << 63) + 5)
        self.assertEqual((last.address, last.bytes, len(last.handle)), (1 << 63, 1 << 40, 64))

    def test_memory_that_cannot_be_exported(self) -> None:
        for fails, function in (("range", "cuMemGetAddressRange_v2"), ("handle", "cuIpcGetMemHandle")):
            self.driver.fails = fails
            words = rf"^memory that cannot be exported: .*\({function}: CUDA_ERROR_INVALID_VALUE\)"
            with self.assertRaisesRegex(NotPlaced, words):
                CudaMemory(self.driver).allocation_of(0x7000)
        with self.assertRaisesRegex(NotPlaced, "cuMemGetAddressRange"):
            CudaMemory(self.driver).allocation_of(0x7180)

    def test_a_host_without_a_driver(self) -> None:
        missing = mock.patch.object(cuda_memory, "driver", side_effect=OSError("libcuda.so.1: no such file"))
        words = "^memory that cannot be exported: there is no CUDA driver .*libcuda.so.1"
        with missing, self.assertRaisesRegex(NotPlaced, words):
            CudaMemory().allocation_of(0x7000)

    @unittest.skipUnless(torch.cuda.is_available(), "no CUDA")
    def test_of_a_real_tensor(self) -> None:
        tensor = torch.zeros(3 << 20, dtype=torch.uint8, device="cuda")
        memory = CudaMemory()
        found = memory.allocation_of(tensor[5:].data_ptr())
        self.assertLessEqual(found.address, tensor.data_ptr())
        self.assertGreaterEqual(found.address + found.bytes, tensor.data_ptr() + tensor.numel())
        self.assertEqual(len(found.handle), 64)
        self.assertTrue(any(found.handle))
        self.assertIs(memory.allocation_of(tensor.data_ptr() + tensor.numel() - 1), found)
        with self.assertRaisesRegex(NotPlaced, "cannot be exported"):
            memory.allocation_of(torch.zeros(8).data_ptr())


if __name__ == "__main__":
    unittest.main()
