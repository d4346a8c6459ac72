"""Updates by a daemon that copies into the engine's memory itself; the daemon is played, its copies are made from the map."""

from __future__ import annotations

import json
import unittest
from typing import Any

import torch
from played_daemon import Daemon, DaemonTest, Messages

from ckpt_worker import DaemonError, DaemonGone, Limits, ProtocolError
from ckpt_worker.copies import bytes_of
from ckpt_worker.direct import DirectEngine, update_weights_directly
from ckpt_worker.frames import pack, unpack
from ckpt_worker.messages import Listed
from ckpt_worker.placement import Allocation
from ckpt_worker.recorder import Tensor
from ckpt_worker.reload import Reload, Tally

SOON = Limits(total=2.0, grace=0.2)
LEAVE = pack({"type": "leave", "reason": "another rank has failed"})
END = pack({"type": "end"})


class TestDirect(DaemonTest):
    def setUp(self) -> None:
        super().setUp()
        self.weight = torch.zeros(8, 8)
        self.reload = Reload(lambda: [("w", self.weight)])
        self.events: list[str] = []
        self.hook_fails = False
        self.record()

    def record(self) -> None:
        ring = torch.zeros(256, dtype=torch.uint8)
        self.reload.begin(ring, Tally())
        listed = [Listed(Tensor("w", 0, 256), torch.float32, torch.Size((8, 8)))]
        self.reload.load(b"list", listed, ring, lambda weights: self.weight.copy_(weights[0][1].t()))
        self.reload.release()
        self.reload.process(lambda: None)
        self.reload.end()

    def hook(self) -> None:
        self.events.append("hook")
        if self.hook_fails:
            raise ValueError("no scales")

    def update(self, messages: Messages, limits: Limits = SOON) -> bool:
        storage = self.weight.untyped_storage()
        engine = DirectEngine(
            self.reload,
            lambda _address: Allocation(b"h" * 64, storage.data_ptr(), storage.nbytes()),
            self.hook,
            lambda: None,
            lambda torn: self.events.append("torn" if torn else "whole"),
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
        self.assertEqual(self.replies()[2], {"ok": False, "reason": "ValueError: no scales"})
        self.assertEqual(self.events, ["torn", "hook"])

    def test_messages_that_do_not_belong_there(self) -> None:
        for messages, words in (
            ([END], "'end' before it has begun"),
            ([self.look(), self.begin, self.look()], "'look' after it has begun"),
            ([pack({"type": "dance"})], "'dance'"),
            ([b"\x01"], "cut off"),
            ([b"\x01\x00\x00\x00{"], "cannot be read"),
            ([b"\x02\x00\x00\x00[]"], "a message is a list"),
        ):
            with self.assertRaisesRegex(ProtocolError, words):
                self.update(messages)  # type: ignore[arg-type]

    def test_frames(self) -> None:
        head = {"type": "end", "words": "ü" * 7}
        message = pack(head, b"body")
        self.assertEqual(unpack(message), (head, b"body"))
        self.assertEqual((len(message) - len(b"body")) % 8, 0)
        self.assertEqual(json.loads(message[4:-4]), head)


if __name__ == "__main__":
    unittest.main()
