"""Engines whose way of loading looks like copies and is not: after every update they have what ordinary loading gives."""

from __future__ import annotations

import threading
import unittest
from collections.abc import Callable

import torch
from test_reload import ROWS, Updates

from ckpt_worker.messages import Listed, ProtocolError
from ckpt_worker.recorder import Tensor
from ckpt_worker.reload import Reload, Tally

Load = Callable[[str, torch.Tensor], object]
FLOATS = torch.float32


def zeros(rows: int = ROWS) -> torch.Tensor:
    return torch.zeros(rows)


def counting(version: int, i: int) -> torch.Tensor:
    """Another order in each version."""
    return torch.roll(torch.arange(float(ROWS)), version) + (0 if i == 0 else 100 * version)


class TestNeverWrong(unittest.TestCase):
    def setUp(self) -> None:
        self.a, self.b, self.c, self.wide = zeros(), zeros(), zeros(), zeros(2 * ROWS)

    def engine(self, load: Load | None = None) -> Updates:
        """Of `a`, `b`, `c` and `wide`; `load` takes what it does not return False for."""

        def take(name: str, tensor: torch.Tensor) -> None:
            if load is None or load(name, tensor) is False:
                getattr(self, name).copy_(tensor)

        return Updates([self.a, self.b, self.c, self.wide], take)

    def expect(
        self,
        updates: Updates,
        has: Callable[[], torch.Tensor],
        want: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    ) -> None:
        for version in range(4):
            sent = updates.update(version)
            self.assertTrue(torch.equal(has(), want(sent)), f"version {version}: loads {updates.loads}")

    def test_an_index_that_an_earlier_list_has_brought(self) -> None:
        index = torch.zeros(ROWS, dtype=torch.int64)

        def load(name: str, tensor: torch.Tensor) -> object:
            if name == "a":
                return index.copy_(tensor.to(torch.int64))
            return self.b.copy_(tensor.index_select(0, index)) if name == "b" else False

        updates = self.engine(load)
        updates.tensors.append(index)
        updates.contents = counting
        self.expect(updates, lambda: self.b, lambda sent: sent["b"].index_select(0, sent["a"].long()))

    def test_a_constant_that_another_list_adds_to(self) -> None:
        def load(name: str, tensor: torch.Tensor) -> object:
            if name == "a":
                self.b.zero_()
            return self.b.add_(tensor) if name == "b" else False

        self.expect(self.engine(load), lambda: self.b, lambda sent: sent["b"])

    def test_a_constant_over_what_another_list_has_brought(self) -> None:
        def load(name: str, tensor: torch.Tensor) -> object:
            if name == "a":
                return self.wide[ROWS:].copy_(tensor.to(torch.float64))
            if name == "b":
                self.wide.zero_()
                return self.wide[:ROWS].copy_(tensor)
            return False

        self.expect(self.engine(load), lambda: self.wide, lambda sent: torch.cat([sent["b"], zeros()]))

    def test_padding_that_somebody_has_written_over(self) -> None:
        def load(name: str, tensor: torch.Tensor) -> object:
            if name == "b":
                self.wide[ROWS:].fill_(3)
                return self.wide[:ROWS].copy_(tensor)
            return False

        updates = self.engine(load)
        for version in range(3):
            self.wide[ROWS:].fill_(-1)
            sent = updates.update(version)
            self.assertTrue(torch.equal(self.wide, torch.cat([sent["b"], zeros() + 3])))
        self.assertEqual(updates.loads, [])

    def test_what_torch_does_not_see(self) -> None:
        def by_numpy(name: str, tensor: torch.Tensor) -> object:
            if name == "b":
                self.b.numpy()[:] = tensor.numpy()
            return name == "b" and None

        def by_thread(name: str, tensor: torch.Tensor) -> None:
            thread = threading.Thread(target=lambda: getattr(self, name).copy_(tensor))
            thread.start()
            thread.join()

        for load in (by_numpy, by_thread):
            self.setUp()
            self.expect(self.engine(load), lambda: self.b, lambda sent: sent["b"])

    def test_hooks_that_need_the_last_weights(self) -> None:
        rounded = torch.zeros(ROWS, dtype=torch.bfloat16)

        @torch.inference_mode()
        def derive() -> None:
            rounded.copy_(self.c.to(torch.bfloat16))

        hooks: list[tuple[Callable[[], object], Callable[[], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = [
            (lambda: self.c.clamp_(max=15.0), lambda: self.c, lambda c: c.clamp(max=15.0)),
            (lambda: self.c[-1:].zero_(), lambda: self.c, lambda c: torch.cat([c[:-1], torch.zeros(1)])),
            (derive, lambda: rounded, lambda c: c.bfloat16()),
        ]
        for hook, has, want in hooks:
            self.setUp()
            updates = self.engine()
            updates.hook = hook
            self.expect(updates, has, lambda sent, want=want: want(sent["c"]))  # type: ignore[misc]

    def test_a_hook_that_moves_a_weight_only_once(self) -> None:
        tensors, calls = [zeros(), zeros(), zeros()], []
        updates = Updates(tensors, lambda name, tensor: tensors["abc".index(name)].copy_(tensor))

        def hook() -> None:
            calls.append(1)
            if len(calls) == 3:
                tensors[2] = tensors[2].clone()

        updates.hook = hook
        for version in range(5):
            sent = updates.update(version)
            self.assertTrue(torch.equal(tensors[2], sent["c"]))

    def test_parameters_that_change_places(self) -> None:
        updates = self.engine()
        for version in range(4):
            if version == 2:
                self.a.data, self.b.data = self.b.data, self.a.data
            sent = updates.update(version)
            self.assertTrue(torch.equal(self.a, sent["a"]))

    def test_a_parameter_that_comes_later(self) -> None:
        late: list[torch.Tensor] = []

        def load(name: str, tensor: torch.Tensor) -> object:
            for one in late if name == "a" else ():
                one.copy_(tensor)
            return False

        updates = self.engine(load)
        for version in range(4):
            if version == 2:
                late.append(zeros())
                updates.tensors.append(late[0])
            sent = updates.update(version)
        self.assertTrue(torch.equal(late[0], sent["a"]))

    def steered(self, place: Callable[[], int], load: Load) -> Updates:
        def take(name: str, tensor: torch.Tensor) -> object:
            if name == "b":
                return self.wide[place() * ROWS : (place() + 1) * ROWS].copy_(tensor)
            return load(name, tensor)

        updates = self.engine(take)
        updates.contents = lambda version, i: torch.full((ROWS,), float(version % 2) if i == 0 else 10.0 * version + i)
        return updates

    def test_a_list_that_decides_where_another_one_goes(self) -> None:
        flag = [0]

        def load(name: str, tensor: torch.Tensor) -> object:
            if name == "a":
                flag[0] = int(tensor[0].item() > 0)
            return False

        updates = self.steered(lambda: flag[0], load)
        for version in (0, 2, 3, 4):
            sent = updates.update(version)
            at = version % 2 * ROWS
            self.assertTrue(torch.equal(self.wide[at : at + ROWS], sent["b"]))

    def test_an_expert_map_that_the_update_changes(self) -> None:
        """Told: the list after it went to the places of before. The next update is right."""
        updates = self.steered(lambda: int(updates.indices[0]), lambda *_: False)
        changing = updates.reload = Reload(lambda: [("a", self.a), ("wide", self.wide)], lambda: (int(self.a.tolist()[0]),))
        updates.indices = (0,)
        for version in (0, 2):
            updates.update(version)
        with self.assertRaisesRegex(RuntimeError, "places of before"):
            updates.update(3)
        changing.end()
        updates.indices = (1,)
        sent = updates.update(5)
        self.assertTrue(torch.equal(self.wide[ROWS:], sent["b"]))

    def one_list(self, reload: Reload, ring: torch.Tensor, offset: int, run: Callable[[torch.Tensor], object]) -> None:
        listed = [Listed(Tensor("a", offset, 4 * ROWS), FLOATS, torch.Size((ROWS,)))]
        reload.begin(ring, Tally())
        try:
            reload.load(f"list at {offset}".encode(), listed, ring, lambda weights: run(weights[0][1]))
            reload.release()
            reload.process(lambda: None)
        finally:
            reload.end()

    def test_a_load_that_fails_leaves_no_tensor_of_the_model_in_the_ring(self) -> None:
        ring = torch.zeros(256, dtype=torch.uint8)

        def run(tensor: torch.Tensor) -> None:
            self.a.data = tensor
            raise ValueError("later")

        with self.assertRaises(ValueError):
            self.one_list(Reload(lambda: [("a", self.a)]), ring, 0, run)
        self.assertNotEqual(self.a.untyped_storage().data_ptr(), ring.untyped_storage().data_ptr())

    def test_a_ring_that_is_too_small_for_a_list(self) -> None:
        memory = torch.zeros(4096, dtype=torch.uint8)
        reload = Reload(lambda: [("a", self.a)])
        self.one_list(reload, memory, 1024, self.a.copy_)
        reload.begin(memory[:512], Tally())
        with self.assertRaisesRegex(ProtocolError, "the ring has 512 bytes"):
            reload.replay(b"list at 1024", memory[:512], print)

    def test_lists_that_do_not_come_again_are_forgotten(self) -> None:
        ring = torch.zeros(65_536, dtype=torch.uint8)
        reload = Reload(lambda: [("a", self.a)])
        for update in range(20):
            self.one_list(reload, ring, 256 * update, self.a.copy_)
        self.assertLess(len(reload._recorded), 4)


if __name__ == "__main__":
    unittest.main()
