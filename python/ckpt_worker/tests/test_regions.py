"""Where tensors are: a short look finds of some storages whatever a whole one would."""

from __future__ import annotations

import random
import unittest
from collections.abc import Callable
from unittest import mock

import torch
from test_tensors import CHANGES, grown, modules_of

from ckpt_worker import regions as regions_module
from ckpt_worker.regions import Regions
from ckpt_worker.tensors import ModelTensors

Models = list[torch.nn.Module | None]


class TestAreSame(unittest.TestCase):
    def test_whatever_is_done_to_a_model(self) -> None:
        told = set()
        for seed in range(80):
            with self.subTest(seed=seed):
                told |= self.check_changes(random.Random(seed))
        # both are seen
        self.assertEqual(told, {True, False})

    def check_changes(self, choose: random.Random) -> set[bool]:
        models: Models = [grown(), None]
        regions = Regions(ModelTensors(lambda: models))
        regions.look()
        told = set()
        for _ in range(25):
            numbers = choose.sample(sorted(regions.storages), choose.randrange(len(regions.storages) + 1))
            before = regions.views(numbers), regions.names
            for _ in range(choose.randrange(3)):
                choose.choice([*CHANGES, *MOVES])(choose, models)
            same = regions.are_same(numbers)
            moved = regions.look()
            self.assertEqual(same, (regions.views(numbers), regions.names) == before)
            self.assertFalse(moved and same and len(numbers) == len(regions.storages))
            self.assertTrue(regions.are_same(regions.storages))
            told.add(same)
        return told

    def test_other_contents_are_the_same_places(self) -> None:
        model = grown()
        regions = Regions(ModelTensors(lambda: [model]))
        regions.look()
        numbers = set(regions.storages)
        regions.let_go()
        model[0].weight.data.fill_(9)
        self.assertTrue(regions.are_same(numbers))
        self.assertTrue(regions.unmoved)
        self.assertEqual(regions.storages, {})

    def test_storages_that_nobody_asks_for_may_be_elsewhere(self) -> None:
        model = grown()
        regions = Regions(ModelTensors(lambda: [model]))
        regions.look()
        mine = next(number for number, storage in regions.storages.items() if storage.data_ptr() == model[0].weight.data_ptr())
        kept = model[2].weight.data
        model[2].weight.data = kept.clone()
        self.assertTrue(regions.are_same([mine]))
        self.assertFalse(regions.are_same(regions.storages))
        model[0].weight.data = model[0].weight.data.clone()
        self.assertFalse(regions.are_same([mine]))
        self.assertFalse(regions.are_same([*regions.storages, 99]))

    def test_memory_that_was_given_back_and_taken_again(self) -> None:
        model, number = grown(), 7
        regions = Regions(ModelTensors(lambda: [model]))
        place = regions_module._place
        numbered = mock.patch.object(regions_module, "_place", lambda storage: (*place(storage)[:2], number))
        asked = mock.patch.object(regions_module, "_buffer_id", lambda _: number)
        with numbered, asked:
            regions.look()
            self.assertTrue(regions.are_same(regions.storages))
            number = 8
            self.assertFalse(regions.are_same(regions.storages))
            self.assertTrue(regions.look())
            self.assertTrue(regions.are_same(regions.storages))

    def test_a_storage_that_is_larger_at_the_same_address(self) -> None:
        memory = bytearray(64)
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.frombuffer(memory, dtype=torch.uint8, count=16), requires_grad=False)
        regions = Regions(ModelTensors(lambda: [model]))
        regions.look()
        model.weight.data = torch.frombuffer(memory, dtype=torch.uint8)[:16]
        self.assertFalse(regions.are_same(regions.storages))
        self.assertTrue(regions.look())


def weight_of(choose: random.Random, models: Models) -> torch.Tensor:
    """Of one of the layers that have one."""
    weights = [module._parameters.get("weight") for module in modules_of(models)]
    return choose.choice([weight for weight in weights if weight is not None] or [torch.zeros(2)])


def move(choose: random.Random, models: Models) -> None:
    """The same object, elsewhere."""
    weight = weight_of(choose, models)
    weight.data = weight.data.clone()


def cut(choose: random.Random, models: Models) -> None:
    """The same object and address, another form."""
    weight = weight_of(choose, models)
    weight.data = weight.data[:1]


def share(choose: random.Random, models: Models) -> None:
    """Two in one storage."""
    weight_of(choose, models).data = weight_of(choose, models).data


Move = Callable[[random.Random, Models], None]
MOVES: list[Move] = [move, cut, share]


if __name__ == "__main__":
    unittest.main()
