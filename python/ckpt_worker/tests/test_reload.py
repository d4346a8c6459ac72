"""Several lists and several updates: what one list does to another."""

from __future__ import annotations

import unittest
from collections.abc import Callable

import torch

from ckpt_worker.messages import Listed
from ckpt_worker.recorder import Tensor
from ckpt_worker.reload import Reload, Tally, Weights

ROWS = 16


class Updates:
    """Updates of tensors `a`, `b` and `c`, a list each, all of them at the beginning of the ring."""

    def __init__(self, tensors: list[torch.Tensor], load: Callable[[str, torch.Tensor], object]):
        self.tensors = tensors
        self.reload = Reload(lambda: self.tensors)
        self.loads: list[str] = []
        self.hook: Callable[[], object] = lambda: None
        self._load = load
        self._ring = torch.zeros(ROWS * 4, dtype=torch.uint8)

    def run(self, weights: Weights) -> None:
        for name, tensor in weights:
            self.loads.append(name)
            self._load(name, tensor)

    def update(self, version: int) -> dict[str, torch.Tensor]:
        """Returns what was sent. `loads`: names that the engine has loaded itself in this update."""
        self.loads.clear()
        contents = {name: torch.full((ROWS,), 10.0 * version + i) for i, name in enumerate("abc")}
        self.reload.begin(self._ring, Tally())
        for name, value in contents.items():
            self._ring.copy_(value.view(torch.uint8))
            listed = Listed(Tensor(name, 0, ROWS * 4), torch.float32, torch.Size((ROWS,)))
            if self.reload.replays(name.encode()):
                self.reload.replay(name.encode(), self._ring)
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


if __name__ == "__main__":
    unittest.main()
