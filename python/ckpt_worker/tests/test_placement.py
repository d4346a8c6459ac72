"""Placement maps of engines that fuse, slice, tie and ignore: their copies, made by hand, give what loading gives."""

from __future__ import annotations

import json
import random
import unittest
from collections.abc import Callable, Iterable
from unittest import mock

import torch

from ckpt_worker import reload as reload_module
from ckpt_worker.copies import bytes_of
from ckpt_worker.messages import Listed
from ckpt_worker.placement import Allocation, NotPlaced, PlacementMap
from ckpt_worker.recorder import Tensor
from ckpt_worker.reload import PostHook, Reload, Tally, Weights

RING = 1 << 16


class Engine:
    """One of two tensor-parallel ranks: column and row slices, fused and tied parameters, and a tensor that it ignores."""

    def __init__(self) -> None:
        self.qkv = torch.zeros(24, 16, dtype=torch.bfloat16)
        self.down = torch.zeros(16, 12, dtype=torch.bfloat16)
        self.experts = torch.zeros(3, 8, 6)
        self.embed = torch.zeros(10, 4)
        self.head = self.embed.t()
        self.padded = torch.zeros(10, 6)
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


class PlacementTest(unittest.TestCase):
    """An engine, and what a daemon would copy into it."""

    def setUp(self) -> None:
        self.engine = Engine()
        self.indices: tuple[int, ...] = ()
        self.reload = Reload(lambda: ((str(i), one) for i, one in enumerate(self.engine.tensors)), lambda: self.indices)
        self.ring = torch.zeros(RING, dtype=torch.uint8)
        self.contents: dict[str, torch.Tensor] = {}
        self.asked = 0

    def update(self, lists: int, order: Callable[[range], Iterable[int]] = iter, hook: PostHook = lambda: None) -> None:
        """@param order: in which they come"""
        generator = torch.Generator().manual_seed(lists)
        self.contents = {name: torch.randn(shape, generator=generator).to(dtype) for name, (shape, dtype) in SHAPES.items()}
        self.reload.begin(self.ring, Tally())
        names = list(SHAPES)
        for index in order(range(lists)):
            listed, offset = [], 0
            for name in names[index::lists]:
                value = self.contents[name]
                data = value.contiguous().view(-1).view(torch.uint8)
                self.ring[offset : offset + data.numel()].copy_(data)
                listed.append(Listed(Tensor(name, offset, data.numel()), value.dtype, value.shape))
                offset += -(-data.numel() // 256) * 256
            body = f"{index}/{lists}".encode()
            if self.reload.replays(body):
                self.reload.replay(body, self.ring, print)
            else:
                self.reload.load(body, listed, self.ring, self.engine.run)
        self.reload.release()
        self.reload.process(hook)
        self.reload.end()

    def allocation_of(self, address: int) -> Allocation:
        """Each tensor of the engine has one, which begins before it."""
        self.asked += 1
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

    def refused(self, words: str) -> None:
        with self.assertRaisesRegex(NotPlaced, words):
            self.reload.placement(self.allocation_of)
        self.assertIsNone(self.reload.generation())


class TestPlacement(PlacementTest):
    def test_its_copies_give_what_loading_gives(self) -> None:
        for lists in (1, 2, 5):
            self.update(lists)
            wanted = [tensor.clone() for tensor in self.engine.tensors]
            map_, _ = self.reload.placement(self.allocation_of)
            self.assertEqual(sorted(map_.tensors), sorted(SHAPES))
            for tensor in self.engine.tensors[:4]:
                tensor.fill_(random.random())
            self.apply(map_)
            for tensor, want in zip(self.engine.tensors, wanted):
                self.assertTrue(torch.equal(tensor, want))

    def test_the_same_places_have_the_same_digest(self) -> None:
        self.update(1)
        one, generation = self.reload.placement(self.allocation_of)
        self.update(1)
        again = Reload(lambda: ((str(i), tensor) for i, tensor in enumerate(self.engine.tensors)))
        self.reload, old = again, self.reload
        self.update(1)
        other, _ = self.reload.placement(self.allocation_of)
        self.assertIsNot(other, one)
        self.assertEqual(other.digest, one.digest)
        self.assertEqual(old.generation(), generation)
        body = one.encoded
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

    def test_a_tensor_that_has_appeared_may_be_what_a_weight_is_for(self) -> None:
        self.update(1)
        self.reload.placement(self.allocation_of)
        self.engine.tensors.append(torch.zeros(3))
        self.refused("did not have when its loading was recorded")
        self.update(1)
        self.reload.placement(self.allocation_of)

    def test_other_contents_of_an_expert_map(self) -> None:
        self.indices = (1,)
        self.update(1)
        self.reload.placement(self.allocation_of)
        self.indices = (2,)
        self.refused("at other places")

    def test_an_update_that_has_not_gone_through(self) -> None:
        self.update(2)
        self.reload.begin(self.ring, Tally())
        self.reload.replay(b"0/2", self.ring, print)
        self.reload.end()
        self.assertEqual(self.reload.not_placed, "no update has gone through")
        self.refused("no update has gone through")

    def test_an_update_that_has_lost_lists_half_way(self) -> None:
        """By processing between two lists that moves what was recorded."""

        def move() -> None:
            self.engine.down.data = self.engine.down.clone()

        self.update(5)
        self.reload.begin(self.ring, Tally())
        self.reload.replay(b"0/5", self.ring, print)
        self.reload.replay(b"1/5", self.ring, print)
        self.reload._blind = True
        self.reload.process_early(move, self.ring, b"1/5")
        self.reload.load(
            b"new", [Listed(Tensor("embed", 0, 160), torch.float32, torch.Size((10, 4)))], self.ring, self.engine.run
        )
        self.reload.release()
        self.reload.process(lambda: None)
        self.reload.end()
        self.refused("no update has gone through")

    def test_more_lists_than_are_kept(self) -> None:
        with mock.patch.object(reload_module, "_LISTS_MAX", 4):
            self.update(5)
        self.refused("too many lists")

    def test_is_kept_until_the_lists_are_others(self) -> None:
        self.update(1)
        one = self.reload.placement(self.allocation_of)
        asked = self.asked
        self.assertGreater(asked, 0)
        self.update(1)
        self.assertIs(self.reload.placement(self.allocation_of)[0], one[0])
        self.assertEqual((self.asked, self.reload.generation()), (asked, one[1]))
        self.update(2)
        self.assertIsNone(self.reload.generation())
        two = self.reload.placement(self.allocation_of)
        self.assertEqual(self.asked, 2 * asked)
        self.assertNotEqual(two[0].digest, one[0].digest)
        self.assertNotEqual(two[1], one[1])
        self.reload.forget()
        self.refused("no update")
        self.update(2)
        self.reload.placement(self.allocation_of)
        self.assertEqual(self.asked, 3 * asked)

    def test_memory_that_cannot_be_opened_is_remembered(self) -> None:
        def refuse(_: int) -> Allocation:
            self.asked += 1
            raise NotPlaced("no handle")

        self.update(1)
        self.assertIsNone(self.reload.not_placed)
        for _ in range(2):
            with self.assertRaisesRegex(NotPlaced, "no handle"):
                self.reload.placement(refuse)
            self.assertEqual((self.asked, self.reload.not_placed), (1, "no handle"))
            self.update(1)
        self.update(2)
        self.assertIsNone(self.reload.not_placed)
        self.reload.placement(self.allocation_of)

    def test_a_list_that_has_become_ordinary_since(self) -> None:
        """The engine reads in a later list what this one has brought."""
        self.update(2)
        self.reload.placement(self.allocation_of)
        listed = [Listed(Tensor("v", 0, 512), torch.bfloat16, torch.Size((16, 16)))]
        self.reload.begin(self.ring, Tally())
        self.reload.replay(b"0/2", self.ring, print)
        self.reload.replay(b"1/2", self.ring, print)
        self.reload.load(b"new", listed, self.ring, lambda _: self.engine.embed.clone())
        self.reload.release()
        self.reload.process(lambda: None)
        self.reload.end()
        self.refused("reads it again")
        # the lists that the map was made of are back, and one of them is not what it was
        self.update(2)
        self.refused("reads it again")

    def test_processing_that_moves_or_says_that_weights_go_elsewhere(self) -> None:
        def move() -> None:
            self.engine.embed.data = self.engine.embed.clone()

        self.update(1)
        self.reload.placement(self.allocation_of)
        self.reload.process_placed(move)
        self.refused("at other places")

        def change() -> None:
            self.indices = (3, 4)

        self.indices = (4, 3)
        self.update(1)
        self.reload.placement(self.allocation_of)
        with self.assertRaisesRegex(RuntimeError, "says where weights go"):
            self.reload.process_placed(change)
        self.refused("no update")


class TestConstants(PlacementTest):
    """What the engine writes beside the weights."""

    def test_are_written_before_the_copies(self) -> None:
        def pad(name: str, _: torch.Tensor) -> None:
            if name == "embed":
                self.engine.padded[:, 4:].fill_(7)
                self.engine.padded[3:, :4].zero_()

        self.engine.tensors.append(self.engine.padded)
        self.engine.extra = pad
        self.update(2)
        self.reload.placement(self.allocation_of)
        places = self.reload.places
        assert places is not None
        self.assertTrue(places.constants and not places.over_weights)
        wanted = self.engine.padded.clone()
        self.engine.padded.fill_(-1)
        self.reload.write_constants()
        self.assertTrue(torch.equal(self.engine.padded[:3, :4], torch.full((3, 4), -1.0)))
        self.engine.padded[:3, :4] = 0
        self.assertTrue(torch.equal(self.engine.padded, wanted))

    def test_under_the_copies_of_their_own_list_and_of_later_ones(self) -> None:
        """Columns between others, so that the spans of both cross."""
        self.engine.experts = self.engine.tensors[2] = torch.zeros(3, 8, 9)
        run = self.engine.run

        def load(weights: Weights) -> None:
            for name, tensor in weights:
                if name == "q":
                    self.engine.qkv.fill_(2)
                    self.engine.down.fill_(1)
                    self.engine.experts[:, :, 6:].fill_(3)
                if name.startswith("expert"):
                    self.engine.experts[int(name[-1]), :, :6].copy_(tensor.t())
                else:
                    run([(name, tensor)])

        self.engine.run = load  # type: ignore[method-assign]
        self.update(5)
        wanted = [tensor.clone() for tensor in self.engine.tensors]
        map_, _ = self.reload.placement(self.allocation_of)
        for tensor in self.engine.tensors[:4]:
            tensor.fill_(-5)
        self.reload.write_constants()
        self.apply(map_)
        for tensor, want in zip(self.engine.tensors, wanted):
            self.assertTrue(torch.equal(tensor, want))

    def test_over_what_an_earlier_list_has_brought(self) -> None:
        """Recorded the other way round, where it is right. `q` is in the first of five lists, `down` in the fourth."""

        def pad(name: str, _: torch.Tensor) -> None:
            if name == "down":
                self.engine.qkv[0].zero_()

        self.engine.extra = pad
        self.update(5, reversed)
        self.reload.placement(self.allocation_of)
        self.update(5)
        self.assertEqual(float(self.engine.qkv[0].abs().sum()), 0)
        self.refused("a constant written over q")


if __name__ == "__main__":
    unittest.main()
