"""Placement maps of engines that fuse, slice, tie and ignore: their copies, made by hand, give what loading gives."""

from __future__ import annotations

import json
import random
import unittest
from collections.abc import Callable

import torch

from ckpt_worker.copies import bytes_of
from ckpt_worker.messages import Listed
from ckpt_worker.placement import Allocation, NotPlaced, PlacementMap
from ckpt_worker.recorder import Tensor
from ckpt_worker.reload import Reload, Tally, Weights

RING = 1 << 16


class Engine:
    """One of two tensor-parallel ranks: column and row slices, fused and tied parameters, and a tensor that it ignores."""

    def __init__(self) -> None:
        self.qkv = torch.zeros(24, 16, dtype=torch.bfloat16)
        self.down = torch.zeros(16, 12, dtype=torch.bfloat16)
        self.experts = torch.zeros(3, 8, 6)
        self.embed = torch.zeros(10, 4)
        self.head = self.embed.t()
        self.tensors = [self.qkv, self.down, self.experts, self.embed, self.head]
        self.extra: Callable[[str, torch.Tensor], object] | None = None

    def run(self, weights: Weights) -> None:
        for name, tensor in weights:
            if name in "qkv":
                self.qkv.narrow(0, 8 * "qkv".index(name), 8).copy_(tensor.narrow(0, 8, 8))
            elif name == "down":
                self.down.copy_(tensor.narrow(1, 12, 12))
            elif name.startswith("expert"):
                self.experts[int(name[-1])].copy_(tensor.t())
            elif name == "embed":
                self.embed.copy_(tensor)
            if self.extra is not None:
                self.extra(name, tensor)


SHAPES = {
    **{name: ((16, 16), torch.bfloat16) for name in "qkv"},
    "down": ((16, 24), torch.bfloat16),
    **{f"expert{i}": ((6, 8), torch.float32) for i in range(3)},
    "embed": ((10, 4), torch.float32),
    "ignored": ((5,), torch.float32),
    "empty": ((0, 3), torch.float32),
}


class TestPlacement(unittest.TestCase):
    def setUp(self) -> None:
        self.engine = Engine()
        self.reload = Reload(lambda: ((str(i), one) for i, one in enumerate(self.engine.tensors)))
        self.ring = torch.zeros(RING, dtype=torch.uint8)
        self.contents: dict[str, torch.Tensor] = {}

    def update(self, lists: int) -> None:
        generator = torch.Generator().manual_seed(lists)
        self.contents = {name: torch.randn(shape, generator=generator).to(dtype) for name, (shape, dtype) in SHAPES.items()}
        self.reload.begin(self.ring, Tally())
        names = list(SHAPES)
        for index in range(lists):
            listed, offset = [], 0
            for name in names[index::lists]:
                value = self.contents[name]
                data = value.contiguous().view(-1).view(torch.uint8)
                self.ring[offset : offset + data.numel()].copy_(data)
                listed.append(Listed(Tensor(name, offset, data.numel()), value.dtype, value.shape))
                offset += -(-data.numel() // 256) * 256
            self.reload.load(f"{index}/{lists}".encode(), listed, self.ring, self.engine.run)
        self.reload.release()
        self.reload.process(lambda: None)
        self.reload.end()

    def allocation_of(self, address: int) -> Allocation:
        """Each tensor of the engine has one, which begins before it."""
        for index, tensor in enumerate(self.engine.tensors):
            storage = tensor.untyped_storage()
            begin = storage.data_ptr()
            if begin <= address < begin + storage.nbytes():
                return Allocation(bytes([index]), begin - 32, storage.nbytes() + 64)
        raise AssertionError(hex(address))

    def apply(self, map_: PlacementMap) -> None:
        """Copies out of the tensors as they were sent."""
        sources = [self.contents[name].contiguous().view(-1).view(torch.uint8) for name in map_.tensors]
        held = [self.engine.tensors[one.handle[0]].untyped_storage() for one in map_.allocations]
        storages = [bytes_of(storage) for storage in held]
        for tensor, source, allocation, destination, run, *rest in map_.columns.tolist():
            sizes, of, to = rest[:3], rest[3:6], rest[6:9]
            view = sources[tensor].as_strided((*sizes, run), (*of, 1), source)
            storages[allocation].as_strided((*sizes, run), (*to, 1), destination - 32).copy_(view)

    def test_its_copies_give_what_loading_gives(self) -> None:
        for lists in (1, 2, 5):
            self.update(lists)
            wanted = [tensor.clone() for tensor in self.engine.tensors]
            map_ = self.reload.placement(self.allocation_of)
            self.assertEqual(sorted(map_.tensors), sorted(SHAPES))
            for tensor in self.engine.tensors[:4]:
                tensor.fill_(random.random())
            self.apply(map_)
            for tensor, want in zip(self.engine.tensors, wanted):
                self.assertTrue(torch.equal(tensor, want))

    def test_the_same_places_have_the_same_digest(self) -> None:
        self.update(1)
        one = self.reload.placement(self.allocation_of)
        self.assertEqual(self.reload.placement(self.allocation_of).digest, one.digest)
        body = one.encode()
        length = int.from_bytes(body[:4], "little")
        head = json.loads(body[4 : 4 + length])
        self.assertEqual(len(body), 4 + length + 8 * len(head["columns"]) * head["copies"])
        self.assertEqual(head["allocation_bytes"], [allocation.bytes for allocation in one.allocations])

    def test_what_is_no_copy_has_no_place(self) -> None:
        self.engine.extra = lambda name, _: self.engine.embed.mul_(2) if name == "embed" else None
        self.update(1)
        with self.assertRaisesRegex(NotPlaced, "written over in place|writes a tensor"):
            self.reload.placement(self.allocation_of)

    def test_a_part_that_a_later_list_writes_over(self) -> None:
        self.engine.extra = lambda name, tensor: self.engine.qkv[0].copy_(tensor[0]) if name == "v" else None
        self.update(5)
        with self.assertRaisesRegex(NotPlaced, "a part of q is written over"):
            self.reload.placement(self.allocation_of)

    def test_not_before_an_update_and_not_after_the_engine_has_moved(self) -> None:
        with self.assertRaisesRegex(NotPlaced, "no update"):
            self.reload.placement(self.allocation_of)
        self.update(1)
        self.engine.down.data = self.engine.down.clone()
        with self.assertRaisesRegex(NotPlaced, "at other places"):
            self.reload.placement(self.allocation_of)


if __name__ == "__main__":
    unittest.main()
