"""The worker's function against a daemon that a test plays, with pickles as checkpoint-engine's daemon makes them."""

from __future__ import annotations

import os
import pickle
import time
import unittest
import weakref
from typing import Any
from unittest import mock

import torch
from played_daemon import Daemon, DaemonTest, Messages, handle
from torch.multiprocessing import reductions

from ckpt_worker import DaemonError, DaemonGone, Limits, ProtocolError, Reload, Tally, update_weights_from_ipc
from ckpt_worker.found import reload_of

NAMES = ("a", "b", "c")
SHAPES = {"a": (64, 32), "b": (64, 32), "c": (7,)}
SOON = Limits(total=2.0, grace=0.2)


class Model:
    """Two parameters: `a` and `b` fused, and `c`."""

    def __init__(self) -> None:
        self.fused = torch.zeros(128, 32, dtype=torch.bfloat16)
        self.single = torch.zeros(7)
        self.loaded: list[str] = []
        self.refuses: str | None = None
        self.hooks = 0

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [("fused", self.fused), ("single", self.single)]

    def load(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            self.loaded.append(name)
            if name == self.refuses:
                raise ValueError(f"no place for {name}")
            if name == "c":
                self.single.copy_(tensor)
            else:
                self.fused.narrow(0, 64 * NAMES.index(name), 64).copy_(tensor)

    def hook(self) -> None:
        self.hooks += 1


class Module(torch.nn.Module):
    """The same as an engine has it."""

    def __init__(self, model: Model):
        super().__init__()
        self.register_buffer("fused", model.fused)
        self.register_buffer("single", model.single)
        self._load = model.load

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self._load(weights)


class TestUpdate(DaemonTest):
    def setUp(self) -> None:
        super().setUp()
        self.model = Model()
        self.reload = Reload(self.model.tensors)
        self.rings: list[weakref.ref[torch.Tensor]] = []
        self.ring = torch.zeros(16_384, dtype=torch.uint8)
        patch = mock.patch.object(reductions, "rebuild_cuda_tensor", self._rebuild)
        self.handle = handle(self.ring.numel())
        patch.start()
        self.addCleanup(patch.stop)

    def _rebuild(self, *arguments: Any) -> torch.Tensor:
        self.assertEqual(arguments[6:8], (3, b"h" * 64))
        view = self.ring[:]
        self.rings.append(weakref.ref(view))
        return view

    def lists(self, version: int) -> tuple[Messages, dict[str, torch.Tensor]]:
        """One list for each name, all at the beginning of the ring: each is written when the one before was taken."""
        contents = {
            name: torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(100 * version + i))
            for i, name in enumerate(NAMES)
        }
        contents = {name: value if name == "c" else value.bfloat16() for name, value in contents.items()}

        def list_of(name: str) -> bytes:
            value = contents[name]
            self.ring.zero_()
            data = value.contiguous().view(-1).view(torch.uint8)
            self.ring[256 : 256 + data.numel()].copy_(data)
            return pickle.dumps([{"name": name, "dtype": value.dtype, "shape": value.shape, "offset": 256}])

        return [lambda name=name: list_of(name) for name in NAMES], contents  # type: ignore[misc]

    def update(self, messages: Messages, **options: Any) -> Daemon:
        self.daemon = daemon = Daemon(self.context, self.address, messages)
        daemon.start()
        options.setdefault("reload", self.reload)
        options.setdefault("run", self.model.load)
        try:
            update_weights_from_ipc(self.context, self.address, 3, post_hook=self.model.hook, **options)
        finally:
            daemon.worker_left.set()
            daemon.join()
        return daemon

    def expect_held(self, contents: dict[str, torch.Tensor]) -> None:
        self.assertTrue(torch.equal(self.model.fused, torch.cat([contents["a"], contents["b"]])))
        self.assertTrue(torch.equal(self.model.single, contents["c"]))

    def test_a_method_of_a_model_is_recorded_without_being_told(self) -> None:
        model = Module(self.model)
        for replayed in (0, 3, 3):
            lists, contents = self.lists(replayed)
            tally = Tally()
            whole = [self.handle, *lists, pickle.dumps(None), pickle.dumps(None)]
            self.update(whole, run=model.load_weights, reload="of run", tally=tally)
            self.expect_held(contents)
            self.assertEqual(tally.replayed, replayed)
        self.assertIs(reload_of(model.load_weights), reload_of(model.load_weights))
        with mock.patch.dict(os.environ, {"CKPT_RELOAD": "ordinary"}):
            self.assertIsNone(reload_of(model.load_weights))
        self.assertIsNone(reload_of(self.model.load))
        gone = weakref.ref(model)
        del model
        self.assertIsNone(gone())

    def test_the_first_update_is_loaded_and_the_others_are_replayed(self) -> None:
        for version in range(3):
            lists, contents = self.lists(version)
            daemon = self.update([self.handle, *lists, pickle.dumps(None), pickle.dumps(None)])
            self.assertEqual(daemon.replies, [b""] * 6)
            self.expect_held(contents)
            tally = self.reload.tally
            self.assertEqual((tally.replayed, tally.ordinary), (0, 3) if version == 0 else (3, 0))
        self.assertEqual(self.model.loaded, list(NAMES))
        self.assertEqual(self.model.hooks, 3)
        self.assertEqual([ring() for ring in self.rings], [None] * 3)

    def test_without_a_reload_the_engine_loads_every_time(self) -> None:
        for version in range(2):
            lists, contents = self.lists(version)
            self.update([self.handle, *lists, pickle.dumps(None), pickle.dumps(None)], reload=None)
            self.expect_held(contents)
        self.assertEqual(len(self.model.loaded), 6)

    def test_moved_parameters_and_forgetting_are_recorded_anew(self) -> None:
        def moved() -> None:
            self.model.fused = torch.zeros_like(self.model.fused)

        for version, change in enumerate([lambda: None, moved, self.reload.forget, lambda: None]):
            change()
            lists, contents = self.lists(version)
            self.update([self.handle, *lists, pickle.dumps(None), pickle.dumps(None)])
            self.expect_held(contents)
            self.assertEqual(self.reload.tally.replayed, 3 if version == 3 else 0)

    def test_an_error_of_the_engine_is_told_and_the_daemon_ends_it(self) -> None:
        self.model.refuses = "b"
        lists, _ = self.lists(0)
        stop = pickle.dumps(RuntimeError("stop, all of you"))
        with self.assertRaisesRegex(DaemonError, "stop, all of you"):
            self.update([self.handle, *lists[:2], stop], limits=SOON)
        self.assertIn(b"no place for b", self.daemon.replies[2])
        self.assertEqual([ring() for ring in self.rings], [None])
        # a list that failed was not recorded, and the next update heals
        self.model.refuses = None
        lists, contents = self.lists(1)
        self.update([self.handle, *lists, pickle.dumps(None), pickle.dumps(None)])
        self.expect_held(contents)
        self.assertEqual(self.reload.tally.replayed, 1)

    def test_the_daemon_goes_on_while_the_engine_processes_between_two_lists(self) -> None:
        replied: list[int] = []

        def hook() -> None:
            until = time.monotonic() + 2
            while len(self.daemon.replies) < 3 and time.monotonic() < until:
                time.sleep(0.005)
            replied.append(len(self.daemon.replies))

        for version in range(2):
            lists, contents = self.lists(version)
            self.update([self.handle, *lists, pickle.dumps(None), pickle.dumps(None)])
            self.expect_held(contents)
            self.model.hook = hook  # type: ignore[method-assign]
        # the handle and two lists
        self.assertEqual(replied, [3])

    def test_processing_between_two_lists_that_fails_is_told_with_the_next_message(self) -> None:
        lists, contents = self.lists(0)
        self.update([self.handle, *lists, pickle.dumps(None), pickle.dumps(None)])
        stop = pickle.dumps(RuntimeError("stop, all of you"))
        failing = mock.patch.object(self.model, "hook", side_effect=ValueError("no processing"))
        for is_last in (False, True):
            lists, _ = self.lists(1)
            after = pickle.dumps(None) if is_last else lists[2]
            with failing, self.assertRaisesRegex(DaemonError, "stop, all of you"):
                self.update([self.handle, *lists[:2], after, stop], limits=SOON)
            self.assertEqual(self.daemon.replies[:3], [b""] * 3)
            self.assertIn(b"no processing", self.daemon.replies[3])
            self.assertEqual([ring() for ring in self.rings[-1:]], [None])
        lists, contents = self.lists(2)
        self.update([self.handle, *lists, pickle.dumps(None), pickle.dumps(None)])
        self.expect_held(contents)

    def test_a_daemon_that_ends_the_update_meanwhile(self) -> None:
        lists, _ = self.lists(0)
        self.update([self.handle, *lists, pickle.dumps(None), pickle.dumps(None)])
        lists, _ = self.lists(1)
        failing = mock.patch.object(self.model, "hook", side_effect=ValueError("no processing"))
        try:
            with failing:
                self.update([self.handle, *lists[:2], pickle.dumps(RuntimeError("another rank"))], limits=SOON)
        except DaemonError as error:
            # the exception is held here, the ring is not
            self.assertIsNone(self.rings[-1]())
            self.assertRegex(str(error), "another rank.*; while the daemon went on, ValueError: no processing")
        else:
            self.fail("it has not ended")

    def test_a_handle_that_cannot_be_opened_is_refused(self) -> None:
        stop = pickle.dumps(RuntimeError("stop"))
        broken = mock.patch.object(reductions, "rebuild_cuda_tensor", side_effect=OSError("no such ring"))
        with broken, self.assertRaisesRegex(OSError, "no such ring"):
            self.update([self.handle, stop], limits=SOON)
        self.assertIn(b"no such ring", self.daemon.replies[0])

    def test_messages_that_do_not_belong_there(self) -> None:
        out = pickle.dumps([{"name": "a", "dtype": torch.uint8, "shape": (9,), "offset": 16_380}])
        for bad in (b"junk", b"cos\nsystem\n(S'true'\ntR.", pickle.dumps({"a": 1}), pickle.dumps([1]), self.handle):
            with self.subTest(bad=bad[:20]), self.assertRaises(ProtocolError):
                self.update([self.handle, bad], limits=SOON)
        with self.assertRaises(ProtocolError):
            self.update([pickle.dumps(None)], limits=SOON)
        # a tensor that is not in the ring is the engine's error: the other workers have to be told
        with self.assertRaises(DaemonError):
            self.update([self.handle, out, pickle.dumps(RuntimeError("stop"))], limits=SOON)
        self.assertIn(b"is not in the ring", self.daemon.replies[1])
        self.assertEqual(self.model.loaded, [])

    def test_a_daemon_that_says_nothing_and_one_that_goes(self) -> None:
        with self.assertRaisesRegex(TimeoutError, "handle of the ring within the 0.5 s"):
            update_weights_from_ipc(self.context, self.address, 3, run=self.model.load, limits=Limits(0.5, 10))
        with self.assertRaisesRegex(DaemonGone, "had not sent list 0"):
            self.update([self.handle], limits=Limits(20, 0.2))


if __name__ == "__main__":
    unittest.main()
