"""Updates by a daemon that copies into the engine's memory itself; the daemon is played, its copies are made from the map."""

from __future__ import annotations

import json
import pickle
import time
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from played_daemon import Daemon, DaemonTest, Messages

from ckpt_worker import DaemonError, DaemonGone, Limits, ProtocolError
from ckpt_worker.copies import Constant, bytes_of
from ckpt_worker.direct import DirectEngine, update_weights_directly
from ckpt_worker.frames import pack, unpack
from ckpt_worker.messages import Listed
from ckpt_worker.placement import Allocation
from ckpt_worker.recorder import Tensor
from ckpt_worker.reload import Reload, Tally, Weights

SOON = Limits(total=2.0, grace=0.2)
LEAVE = pack({"type": "leave", "reason": "another rank has failed"})
UNTOUCHED = pack({"type": "leave", "reason": "another rank has refused", "untouched": True})
END = pack({"type": "end"})


class TestDirect(DaemonTest):
    def setUp(self) -> None:
        super().setUp()
        self.weight = torch.zeros(8, 8)
        self.padding = torch.zeros(4)
        self.tensors = [("w", self.weight), ("p", self.padding)]
        self.indices: tuple[int, ...] = (7,)
        self.walks = 0
        self.asked = 0
        self.refusal: str | None = None
        self.reload = Reload(self.walk, lambda: self.indices)
        self.events: list[str] = []
        self.hook_fails = False
        self.on_hook: Callable[[], object] = lambda: None
        self.record()

    def walk(self) -> list[tuple[str, torch.Tensor]]:
        self.walks += 1
        return self.tensors

    def allocation_of(self, address: int) -> Allocation:
        self.asked += 1
        storage = self.weight.untyped_storage()
        assert storage.data_ptr() <= address < storage.data_ptr() + storage.nbytes()
        return Allocation(b"h" * 64, storage.data_ptr(), storage.nbytes())

    def record(self, body: bytes = b"list", pad: float | None = None, blind: bool = False) -> None:
        """@param blind: the processing looks at no weight"""

        def load(weights: Weights) -> None:
            self.weight.copy_(weights[0][1].t())
            if pad is not None:
                self.padding.fill_(pad)

        ring = torch.zeros(256, dtype=torch.uint8)
        self.reload.begin(ring, Tally())
        listed = [Listed(Tensor("w", 0, 256), torch.float32, torch.Size((8, 8)))]
        self.reload.load(body, listed, ring, load)
        self.reload.release()
        self.reload.process(lambda: None if blind else self.weight.sum())
        self.reload.end()

    def hook(self) -> None:
        self.events.append("hook")
        self.on_hook()
        if self.hook_fails:
            raise ValueError("no scales")

    def update(self, messages: Messages, limits: Limits = SOON) -> bool:
        engine = DirectEngine(
            self.reload,
            self.allocation_of,
            self.hook,
            lambda: None,
            lambda torn: self.events.append("torn" if torn else "whole"),
            lambda: self.refusal,
        )
        self.daemon = Daemon(self.context, self.address, messages)
        self.daemon.start()
        try:
            return update_weights_directly(self.context, self.address, engine, limits)
        finally:
            self.daemon.worker_left.set()
            self.daemon.join()

    def look(self, known: str | None = None) -> bytes:
        return pack({"type": "look", "map": known})

    def begin(self) -> bytes:
        """With the generation of the reply to `look`."""
        return pack({"type": "begin", "generation": unpack(self.daemon.replies[0])[0]["generation"]})

    def copy_and_end(self) -> bytes:
        """Makes the copies of the map out of a tensor that counts."""
        _, body = unpack(self.daemon.replies[0])
        head, raw = unpack(body)
        columns = torch.frombuffer(bytearray(raw), dtype=torch.int64).reshape(len(head["columns"]), head["copies"])
        source = torch.arange(64, dtype=torch.float32).view(torch.uint8)
        memory = bytes_of(self.weight.untyped_storage())
        for _, at, _, to, run, *rest in columns.t().tolist():
            view = source.as_strided((*rest[:3], run), (*rest[3:6], 1), at)
            memory.as_strided((*rest[:3], run), (*rest[6:9], 1), to).copy_(view)
        return END

    def replies(self) -> list[dict[str, Any]]:
        return [unpack(reply)[0] for reply in self.daemon.replies]

    def test_a_whole_update(self) -> None:
        self.assertTrue(self.update([self.look(), self.begin, self.copy_and_end]))
        self.assertTrue(torch.equal(self.weight, torch.arange(64.0).view(8, 8).t()))
        self.assertEqual(self.events, ["torn", "hook", "whole"])
        first, *others = self.replies()
        self.assertEqual(first["handles"], [(b"h" * 64).hex()])
        self.assertEqual(others, [{"ok": True}, {"ok": True}])

    def test_a_map_that_is_known_is_not_sent_again(self) -> None:
        self.update([self.look(), LEAVE])
        (first,) = self.daemon.replies
        digest = unpack(first)[0]["map"]
        self.assertFalse(self.update([self.look(digest), LEAVE]))
        self.assertEqual([body for _, body in map(unpack, self.daemon.replies)], [b""])
        self.assertEqual(self.events, [])

    def test_an_engine_that_has_recorded_nothing_has_no_places(self) -> None:
        self.reload.forget()
        self.assertFalse(self.update([self.look(), LEAVE]))
        self.assertEqual(self.replies(), [{"ok": False, "reason": "no update has gone through"}])

    def test_memory_that_changes_between_looking_and_beginning(self) -> None:
        def begin() -> bytes:
            message = self.begin()
            self.weight.data = self.weight.clone()
            return message

        self.assertFalse(self.update([self.look(), begin, LEAVE]))
        self.assertEqual(self.replies()[1], {"ok": False, "reason": "the engine's memory has changed"})
        self.assertEqual(self.events, [])

    def test_an_update_that_ends_in_the_middle_leaves_the_engine_torn(self) -> None:
        with self.assertRaisesRegex(DaemonError, "another rank has failed"):
            self.update([self.look(), self.begin, LEAVE])
        self.assertEqual(self.events, ["torn"])

    def test_a_daemon_that_dies_in_the_middle_leaves_the_engine_torn(self) -> None:
        with self.assertRaises(DaemonGone):
            self.update([self.look(), self.begin])
        self.assertEqual(self.events, ["torn"])

    def test_a_hook_that_fails_is_told(self) -> None:
        self.hook_fails = True
        with self.assertRaises(ValueError):
            self.update([self.look(), self.begin, END])
        self.assertEqual(self.replies()[2], {"ok": False, "reason": "ValueError: no scales", "torn": True})
        self.assertEqual(self.events, ["torn", "hook"])

    def test_messages_that_do_not_belong_there(self) -> None:
        for messages, words in (
            ([END], "'end' before it has begun"),
            ([self.look(), self.begin, self.look()], "'look' after it has begun"),
            ([pack({"type": "dance"})], "'dance'"),
            ([b"\x01"], "cut off"),
            ([b"\x01\x00\x00\x00{"], "cannot be read"),
            ([b"\x02\x00\x00\x00[]"], "a message is a list"),
            ([b""], "cannot be read|cut off"),
            ([b"\x02\x00\x00\x00\xff\xfe"], "cannot be read"),
            ([(200_000).to_bytes(4, "little") + b"[" * 200_000], "cannot be read"),
            *(([pickle.dumps(RuntimeError("stop"), protocol)], "cut off|cannot be read") for protocol in range(6)),
            ([pickle.dumps(None)], "cut off|cannot be read"),
        ):
            with self.subTest(words=words, messages=messages), self.assertRaisesRegex(ProtocolError, words):
                self.update(messages)  # type: ignore[arg-type]
        self.assertEqual(self.events, ["torn"])

    def test_a_daemon_that_was_started_anew_and_ends_the_update_in_another_dialect(self) -> None:
        self.update([self.look(), LEAVE])
        for protocol in range(6):
            self.events.clear()
            with self.assertRaises(ProtocolError):
                self.update([self.look(), self.begin, pickle.dumps(RuntimeError("stop"), protocol)])
            self.assertEqual((self.events, len(self.daemon.replies)), (["torn"], 2))

    def test_a_daemon_that_leaves_without_having_copied_anything(self) -> None:
        before = self.weight.clone()
        self.assertFalse(self.update([self.look(), self.begin, UNTOUCHED]))
        self.assertEqual(self.events, ["torn", "whole"])
        self.assertTrue(torch.equal(self.weight, before))
        for claim in (False, 1, "true", None):
            self.events.clear()
            with self.assertRaisesRegex(DaemonError, "so"):
                self.update([self.look(), self.begin, pack({"type": "leave", "reason": "so", "untouched": claim})])
            self.assertEqual(self.events, ["torn"])

    def test_an_engine_that_may_not_be_copied_into(self) -> None:
        self.update([self.look(), LEAVE])
        begin, self.refusal = self.begin(), "the last update has failed"
        self.assertFalse(self.update([self.look(), begin, LEAVE]))
        self.assertEqual(self.replies(), [{"ok": False, "reason": "the last update has failed"}] * 2)
        self.assertEqual(self.events, [])

    def test_a_beginning_without_a_generation(self) -> None:
        self.reload.forget()
        for message in ({"type": "begin"}, {"type": "begin", "generation": None}):
            self.assertFalse(self.update([pack(message), LEAVE]))
            self.assertEqual(self.replies(), [{"ok": False, "reason": "the engine's memory has changed"}])
        self.assertEqual(self.events, [])

    def test_an_expert_map_or_a_tensor_that_comes_after_looking_is_an_error(self) -> None:
        def other_map() -> bytes:
            self.indices = (8,)
            return self.begin()

        def new_tensor() -> bytes:
            self.tensors = [*self.tensors, ("new", torch.zeros(2))]
            return self.begin()

        for begin in (other_map, new_tensor):
            self.indices = (7,)
            self.events.clear()
            with self.assertRaisesRegex(RuntimeError, "while the daemon copied, the engine"):
                self.update([self.look(), begin, END])
            self.assertEqual([reply["ok"] for reply in self.replies()], [True, True, False])
            self.assertEqual(self.events, ["torn"])
        self.assertFalse(self.update([self.look(), LEAVE]))
        self.assertIn("did not have", self.replies()[0]["reason"])

    def test_what_has_gone_between_looking_and_beginning_is_refused(self) -> None:
        def moved() -> bytes:
            self.weight.data = self.weight.clone()
            return self.begin()

        self.update([self.look(), LEAVE])
        begin = self.begin()
        self.assertFalse(self.update([self.look(), moved, LEAVE]))
        self.assertEqual(self.replies()[1], {"ok": False, "reason": "the engine's memory has changed"})
        # after a look that was refused as well
        self.assertFalse(self.update([self.look(), begin, LEAVE]))
        self.assertEqual([reply["ok"] for reply in self.replies()], [False, False])
        self.assertEqual(self.events, [])

    def test_the_model_is_walked_once_to_look_and_once_to_begin(self) -> None:
        self.update([self.look(), LEAVE])
        self.assertEqual(self.asked, 1)
        self.walks = 0
        self.assertTrue(self.update([self.look(), self.begin, self.copy_and_end]))
        self.assertEqual((self.walks, self.asked), (2, 1))

    def test_a_map_is_made_anew_after_an_update_with_other_lists(self) -> None:
        self.update([self.look(), LEAVE])
        first = self.replies()[0]
        self.record(b"another list")
        self.update([self.look(first["map"]), LEAVE])
        self.assertEqual(self.asked, 2)
        self.assertEqual(self.replies()[0]["map"], first["map"])

    def test_padding_is_there_before_the_daemon_copies(self) -> None:
        self.record(b"padded", 3)
        self.padding.fill_(9)
        seen: list[float] = []

        def begin() -> bytes:
            seen.extend(self.padding.tolist())
            return self.begin()

        def end() -> bytes:
            seen.extend(self.padding.tolist())
            return self.copy_and_end()

        self.assertTrue(self.update([self.look(), begin, end]))
        self.assertEqual(seen, [9.0] * 4 + [3.0] * 4)
        self.assertEqual(self.events, ["torn", "hook", "whole"])

    def test_padding_that_was_written_is_processed_when_the_daemon_leaves(self) -> None:
        self.record(b"padded", 3)
        self.assertFalse(self.update([self.look(), self.begin, UNTOUCHED]))
        self.assertEqual(self.events, ["torn", "hook", "whole"])

    def test_padding_that_cannot_be_written(self) -> None:
        self.record(b"padded", 3)
        with mock.patch.object(Constant, "write", side_effect=RuntimeError("a broken device")), self.assertRaises(RuntimeError):
            self.update([self.look(), self.begin, END])
        self.assertEqual(self.replies()[1], {"ok": False, "reason": "RuntimeError: a broken device", "torn": True})
        self.assertEqual(self.events, ["torn"])

    def test_a_hook_that_moves_tensors_is_found_by_the_next_look(self) -> None:
        self.hook = lambda: setattr(self.weight, "data", self.weight.clone())  # type: ignore[method-assign]
        self.assertTrue(self.update([self.look(), self.begin, self.copy_and_end]))
        self.assertFalse(self.update([self.look(), LEAVE]))
        self.assertIn("at other places", self.replies()[0]["reason"])

    def test_a_hook_that_says_that_weights_go_elsewhere(self) -> None:
        self.hook = lambda: setattr(self, "indices", (8,))  # type: ignore[method-assign]
        with self.assertRaisesRegex(RuntimeError, "says where weights go"):
            self.update([self.look(), self.begin, self.copy_and_end])
        self.assertFalse(self.replies()[2]["ok"])
        self.assertEqual(self.events, ["torn"])

    def test_a_look_that_fails_is_told(self) -> None:
        self.update([self.look(), LEAVE])
        broken = mock.patch.object(self.reload, "placement", side_effect=RuntimeError("a broken device"))
        with broken, self.assertRaises(RuntimeError):
            self.update([self.look()])
        self.assertEqual(self.replies(), [{"ok": False, "reason": "RuntimeError: a broken device"}])

    def test_a_look_before_the_daemon_says_anything(self) -> None:
        seen: list[int] = []

        def first() -> bytes:
            for _ in range(100):
                if self.walks > 0:
                    break
                time.sleep(0.01)
            seen.append(self.walks)
            return self.look()

        self.walks = 0
        self.assertFalse(self.update([first, LEAVE]))
        self.assertEqual((seen, self.walks), ([1], 1))

    def test_a_look_that_has_failed_and_that_nobody_asks_for(self) -> None:
        broken = mock.patch.object(self.reload, "placement", side_effect=RuntimeError("a broken device"))
        with broken:
            self.assertFalse(self.update([LEAVE]))
        self.assertEqual(self.events, [])

    def test_each_look_is_a_new_one(self) -> None:
        def again() -> bytes:
            self.weight.data = self.weight.clone()
            return self.look()

        self.assertFalse(self.update([self.look(), again, LEAVE]))
        self.assertEqual([reply["ok"] for reply in self.replies()], [True, False])

    def test_processing_that_looks_at_no_weight_runs_while_the_daemon_copies(self) -> None:
        self.reload.forget()
        self.record(blind=True)

        def copy() -> bytes:
            # the worker does it after its reply
            for _ in range(200):
                if "hook" in self.events:
                    break
                time.sleep(0.01)
            self.events.append("copies")
            return self.copy_and_end()

        self.assertTrue(self.update([self.look(), self.begin, copy]))
        self.assertEqual(self.events, ["torn", "hook", "copies", "whole"])

    def test_early_processing_that_fails_is_told_at_the_end(self) -> None:
        self.reload.forget()
        self.record(blind=True)
        self.hook_fails = True
        with self.assertRaisesRegex(ValueError, "no scales"):
            self.update([self.look(), self.begin, END])
        self.assertEqual(self.replies()[1:], [{"ok": True}, {"ok": False, "reason": "ValueError: no scales", "torn": True}])
        self.assertEqual(self.events, ["torn", "hook"])

    def test_early_processing_that_has_failed_is_not_forgotten_when_the_daemon_leaves(self) -> None:
        self.reload.forget()
        self.record(blind=True)
        self.hook_fails = True
        with self.assertRaisesRegex(ValueError, "no scales"):
            self.update([self.look(), self.begin, UNTOUCHED])
        self.assertEqual(self.events, ["torn", "hook"])

    def fill_first(self, rows: int) -> None:
        """Records a loader that writes a whole parameter before it copies some rows of it."""

        def load(weights: Weights) -> None:
            self.weight.fill_(5)
            self.weight[:rows].copy_(weights[0][1][:rows])

        self.reload.forget()
        ring = torch.arange(64, dtype=torch.float32).view(torch.uint8)
        self.reload.begin(ring, Tally())
        self.reload.load(b"f", [Listed(Tensor("w", 0, 256), torch.float32, torch.Size((8, 8)))], ring, load)
        self.reload.release()
        self.reload.process(lambda: self.weight.sum())
        self.reload.end()

    def test_a_constant_that_weights_cover_is_not_written(self) -> None:
        self.fill_first(8)
        before = self.weight.clone()
        self.assertFalse(self.update([self.look(), self.begin, UNTOUCHED]))
        self.assertTrue(torch.equal(self.weight, before))
        self.assertEqual(self.events, ["torn", "whole"])
        self.assertEqual(self.replies()[1:], [{"ok": True}, {"ok": True}])

    def test_an_engine_is_torn_by_a_constant_over_weights_that_nobody_brings(self) -> None:
        self.fill_first(6)
        with self.assertRaises(DaemonError):
            self.update([self.look(), self.begin, UNTOUCHED])
        self.assertEqual(self.events, ["torn"])
        self.assertTrue(self.replies()[2]["torn"])
        self.assertTrue(torch.equal(self.weight, torch.full((8, 8), 5.0)))
        self.events.clear()
        self.assertTrue(self.update([self.look(), self.begin, self.copy_and_end]))
        self.assertTrue(torch.equal(self.weight[:6], torch.arange(48.0).view(6, 8)))
        self.assertTrue(torch.equal(self.weight[6:], torch.full((2, 8), 5.0)))

    def test_early_processing_that_moves_what_is_written_is_an_error(self) -> None:
        self.reload.forget()
        self.record(blind=True)
        self.on_hook = lambda: self.tensors.__setitem__(0, ("w", self.weight.clone()))
        with self.assertRaisesRegex(RuntimeError, "while the daemon copied"):
            self.update([self.look(), self.begin, END])
        self.assertEqual(self.events, ["torn", "hook"])

    def test_frames(self) -> None:
        head = {"type": "end", "words": "ü" * 7}
        message = pack(head, b"body")
        self.assertEqual(unpack(message), (head, b"body"))
        self.assertEqual((len(message) - len(b"body")) % 8, 0)
        self.assertEqual(json.loads(message[4:-4]), head)


if __name__ == "__main__":
    unittest.main()
