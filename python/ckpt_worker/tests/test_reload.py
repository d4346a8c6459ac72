"""Several lists and several updates: what one list does to another."""

from __future__ import annotations

import ctypes
import unittest
from collections.abc import Callable
from unittest import mock

import torch

from ckpt_worker import index_contents
from ckpt_worker.messages import Listed
from ckpt_worker.recorder import Tensor
from ckpt_worker.reload import HOOK_CHANGES, Reload, Tally, Weights

ROWS = 16


class Updates:
    """Updates of tensors `a`, `b` and `c`, a list each, all of them at the beginning of the ring."""

    def __init__(self, tensors: list[torch.Tensor], load: Callable[[str, torch.Tensor], object]):
        self.tensors = tensors
        self.contents: Callable[[int, int], torch.Tensor] = lambda version, i: torch.full((ROWS,), 10.0 * version + i)
        self.indices: tuple[int, ...] = ()
        self.reload = Reload(lambda: ((str(i), one) for i, one in enumerate(self.tensors)), lambda: self.indices)
        self.loads: list[str] = []
        self.hook: Callable[[], object] = lambda: None
        self._load = load
        self._ring = torch.zeros(3 * ROWS * 4, dtype=torch.uint8)

    def run(self, weights: Weights) -> None:
        for name, tensor in weights:
            self.loads.append(name)
            self._load(name, tensor)

    def update(self, version: int) -> dict[str, torch.Tensor]:
        """Returns what was sent. `loads`: names that the engine has loaded itself in this update."""
        self.loads.clear()
        contents = {name: self.contents(version, i) for i, name in enumerate("abc")}
        self.reload.begin(self._ring, Tally())
        for name, value in contents.items():
            self._ring[: ROWS * 4].copy_(value.view(torch.uint8))
            listed = Listed(Tensor(name, 0, ROWS * 4), torch.float32, torch.Size((ROWS,)))
            if self.reload.replays(name.encode()):
                self.reload.replay(name.encode(), self._ring, self.run)
                if name == "b":
                    self.reload.process_early(self.hook, self._ring, name.encode())
            else:
                self.reload.load(name.encode(), [listed], self._ring, self.run)
        self.reload.release()
        self.reload.process(self.hook)
        self.reload.end()
        return contents


class TestReload(unittest.TestCase):
    def check(self, updates: Updates, wanted: Callable[[dict[str, torch.Tensor]], list[torch.Tensor]], loads: str) -> None:
        """After every update the engine has what it should, and from the second one on it loads only these lists itself."""
        for version in range(4):
            contents = updates.update(version)
            for has, want in zip(updates.tensors, wanted(contents)):
                self.assertTrue(torch.equal(has, want), f"update {version}: {has} is not {want}")
        self.assertEqual("".join(updates.loads), loads)

    def test_lists_that_have_nothing_to_do_with_each_other(self) -> None:
        w = {name: torch.zeros(ROWS) for name in "abc"}
        updates = Updates(list(w.values()), lambda name, tensor: w[name].copy_(tensor))
        self.check(updates, lambda sent: list(sent.values()), "")

    def test_a_later_list_that_reads_what_an_earlier_one_has_loaded(self) -> None:
        """With the last part of it the engine fuses what it holds: both lists have to be the engine's."""
        a, b, c, fused = (torch.zeros(ROWS) for _ in range(4))

        def load(name: str, tensor: torch.Tensor) -> None:
            {"a": a, "b": b, "c": c}[name].copy_(tensor)
            if name == "b":
                fused.copy_(a + b)

        updates = Updates([a, b, c, fused], load)
        self.check(updates, lambda sent: [sent["a"], sent["b"], sent["c"], sent["a"] + sent["b"]], "ab")

    def test_a_list_that_the_engine_keeps_until_a_later_one(self) -> None:
        a, b, c = (torch.zeros(ROWS) for _ in range(3))
        kept: list[torch.Tensor] = []

        def load(name: str, tensor: torch.Tensor) -> None:
            if name == "a":
                kept[:] = [tensor.clone()]
            elif name == "b":
                b.copy_(tensor)
                a.copy_(kept[0])
            else:
                c.copy_(tensor)

        self.check(Updates([a, b, c], load), lambda sent: list(sent.values()), "ab")

    def test_views_of_the_ring_that_the_engine_keeps(self) -> None:
        b, c = torch.zeros(ROWS), torch.zeros(ROWS)
        kept: list[torch.Tensor] = []

        def load(name: str, tensor: torch.Tensor) -> None:
            if name == "a":
                kept[:] = [tensor[3:]]
            else:
                {"b": b, "c": c}[name].copy_(tensor)

        self.check(Updates([b, c], load), lambda sent: [sent["b"], sent["c"]], "a")

    def test_a_parameter_that_is_made_a_view_of_the_ring_is_taken_out_of_it(self) -> None:
        a, b, c = (torch.zeros(ROWS) for _ in range(3))

        def load(name: str, tensor: torch.Tensor) -> None:
            if name == "a":
                a.data = tensor
            else:
                {"b": b, "c": c}[name].copy_(tensor)

        self.check(Updates([a, b, c], load), lambda sent: list(sent.values()), "abc")

    def test_tensors_that_the_first_load_makes(self) -> None:
        made: dict[str, torch.Tensor] = {}

        def load(name: str, tensor: torch.Tensor) -> None:
            if name not in made:
                made[name] = torch.zeros(ROWS)
                updates.tensors.append(made[name])
            made[name].copy_(tensor)

        updates = Updates([], load)
        self.check(updates, lambda sent: list(sent.values()), "")


class TestProcessing(unittest.TestCase):
    """What the engine does after loading, and what it has to do with replays."""

    def setUp(self) -> None:
        self.a, self.b, self.c, self.derived = (torch.zeros(ROWS) for _ in range(4))
        self.tensors = [self.a, self.b, self.c, self.derived]
        self.updates = Updates(self.tensors, lambda name, tensor: getattr(self, name).copy_(tensor))
        self.seen: list[float] = []

    def test_a_hook_that_looks_at_no_weight_runs_once_in_each_update_between_two_lists(self) -> None:
        # not by an operator of torch, which would be seen
        held = ctypes.c_float.from_address(self.c.data_ptr())
        self.updates.hook = lambda: self.seen.append(held.value)
        for version in range(3):
            self.updates.update(version)
        self.assertEqual(self.seen, [2.0, 2.0, 12.0])

    def test_a_copy_of_a_weight_onto_itself_is_no_look_at_it(self) -> None:
        held = ctypes.c_float.from_address(self.c.data_ptr())

        def hook() -> None:
            self.c.copy_(self.c.detach())
            self.seen.append(held.value)

        self.updates.hook = hook
        for version in range(3):
            self.updates.update(version)
        self.assertEqual(self.seen, [2.0, 2.0, 12.0])

    def test_what_a_hook_derives_of_a_weight_is_of_the_new_version(self) -> None:
        self.updates.hook = lambda: self.derived.copy_(self.c * 2)
        for version in range(3):
            sent = self.updates.update(version)
            self.assertTrue(torch.equal(self.derived, sent["c"] * 2))
        self.assertEqual(self.updates.loads, [])

    def test_after_a_hook_that_changes_a_loaded_weight_nothing_is_replayed(self) -> None:
        self.updates.hook = lambda: self.b.add_(1)
        for version in range(3):
            sent = self.updates.update(version)
            self.assertTrue(torch.equal(self.b, sent["b"] + 1))
            self.assertEqual("".join(self.updates.loads), "abc")
        self.assertEqual(self.updates.reload.refused, HOOK_CHANGES)

    def test_after_a_hook_that_exchanges_items_of_a_weight_nothing_is_replayed(self) -> None:
        self.updates.hook = lambda: self.b.copy_(self.b.flip(0))
        self.updates.contents = lambda version, i: 10.0 * version + i + torch.arange(ROWS)
        self.updates.update(1)
        self.assertEqual(self.updates.reload.refused, HOOK_CHANGES)

    def test_after_a_hook_that_moves_a_loaded_weight_nothing_is_replayed(self) -> None:
        def move() -> None:
            self.b.data = self.b.clone()

        self.updates.hook = move
        for version in range(2):
            sent = self.updates.update(version)
            self.assertTrue(torch.equal(self.b, sent["b"]))
        self.assertEqual(self.updates.reload.refused, HOOK_CHANGES)

    def test_a_tensor_that_the_hook_makes_anew_each_time_is_no_reason_to_record_again(self) -> None:
        def make() -> None:
            self.tensors[3] = self.c * 2

        self.updates.hook = make
        for version in range(3):
            sent = self.updates.update(version)
            self.assertTrue(torch.equal(self.tensors[3], sent["c"] * 2))
        self.assertEqual(self.updates.loads, [])

    def test_between_two_lists_only_what_weights_go_to_is_looked_at(self) -> None:
        def make() -> None:
            self.tensors[3] = torch.zeros(ROWS)

        self.updates.hook = make
        self.updates.update(0)
        looks = self.updates.reload._regions.look
        with mock.patch.object(self.updates.reload._regions, "look", side_effect=looks) as counted:
            self.updates.update(1)
        # as the update begins
        self.assertEqual(counted.call_count, 1)
        self.assertEqual(self.updates.loads, [])

    def test_a_hook_that_moves_a_weight_in_a_later_update(self) -> None:
        def move() -> None:
            moved = torch.empty_like(self.c)
            # not by an operator of torch, which would be seen
            ctypes.memmove(moved.data_ptr(), self.c.data_ptr(), ROWS * 4)
            self.c.data = moved

        self.updates.update(0)
        self.updates.hook = move
        for version in (1, 2):
            sent = self.updates.update(version)
            # the one that comes after the hook
            self.assertEqual("".join(self.updates.loads), "c" if version == 1 else "abc")
            self.assertTrue(torch.equal(self.c, sent["c"]))

    def test_a_list_that_could_not_be_replayed_may_be_with_other_tensors(self) -> None:
        """An engine that makes its tensors in the first update."""
        held: dict[str, torch.Tensor] = {}

        def load(name: str, tensor: torch.Tensor) -> None:
            if name not in held:
                held[name] = torch.empty_like(tensor)
            held[name].copy_(tensor)

        updates = Updates([], load)
        updates.hook = lambda: setattr(updates, "tensors", list(held.values()))
        for version, loads in enumerate(["abc", "abc", "", ""]):
            sent = updates.update(version)
            self.assertEqual("".join(updates.loads), loads)
            for name, value in sent.items():
                self.assertTrue(torch.equal(held[name], value))

    def test_other_contents_of_an_expert_map_have_everything_recorded_again(self) -> None:
        for version, (indices, loads) in enumerate([((1,), "abc"), ((1,), ""), ((2,), "abc"), ((2,), "")]):
            self.updates.indices = indices
            self.updates.update(version)
            self.assertEqual("".join(self.updates.loads), loads)

    def test_another_tensor_at_the_same_numbers_of_a_loaded_one_has_everything_recorded_again(self) -> None:
        self.updates.update(0)
        self.b.data = self.b.clone()
        sent = self.updates.update(1)
        self.assertEqual("".join(self.updates.loads), "abc")
        self.assertTrue(torch.equal(self.b, sent["b"]))

    def test_a_hook_that_fails_does_not_make_a_recording_good(self) -> None:
        def fail() -> None:
            raise RuntimeError("no")

        self.updates.hook = fail
        with self.assertRaises(RuntimeError):
            self.updates.update(0)
        self.updates.reload.end()
        self.updates.hook = lambda: self.b.add_(1)
        self.updates.update(1)
        self.assertEqual(self.updates.reload.refused, HOOK_CHANGES)


class TestIndexContents(unittest.TestCase):
    def test_finds_maps_of_modules_and_of_what_they_hold(self) -> None:
        class Held:
            def __init__(self) -> None:
                self.physical = torch.tensor([7, 8])
                self.scale = torch.ones(3)

        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        model[0].register_buffer("_expert_map", torch.tensor([1, 0, -1], dtype=torch.int32))
        vars(model[0])["expert_map_holder"] = Held()
        self.assertEqual(index_contents(model, None), (1, 0, -1, 7, 8))
        self.assertEqual(index_contents(torch.nn.Linear(2, 2)), ())


if __name__ == "__main__":
    unittest.main()
