"""Messages of checkpoint-engine's own ParameterServer 0.4.2, as it has sent them (`scripts/gpu-parameter-server --record`)."""

from __future__ import annotations

import json
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from played_daemon import Daemon, DaemonTest
from torch.multiprocessing import reductions

from ckpt_worker import DaemonError, Limits, ProtocolError, update_weights_from_ipc
from ckpt_worker.messages import Handle, Listed, read_message

RECORDED = Path(__file__).parents[3] / "packages/core/src/engine/testing/parameter-server-0.4.2.json"
SOON = Limits(total=5.0, grace=0.2)
RING_BYTES = 16_384
# some that are in the first list
DTYPES = {"layers.0.large": torch.bfloat16, "layers.0.norm": torch.float32, "layers.0.scale": torch.float8_e4m3fn}


class TestParameterServer(DaemonTest):
    def setUp(self) -> None:
        super().setUp()
        self.ring = torch.zeros(RING_BYTES, dtype=torch.uint8)
        self.loaded: dict[str, torch.Tensor] = {}
        self.written: dict[str, torch.Tensor] = {}
        self.refuses: str | None = None
        self.hooks = 0
        patch = mock.patch.object(reductions, "rebuild_cuda_tensor", self._rebuild)
        # the pickles name it, and so does what reads them
        patch.start()
        self.addCleanup(patch.stop)
        recorded = json.loads(RECORDED.read_text())
        self.updated, self.failed = ([bytes.fromhex(one) for one in recorded[kind]] for kind in ("updated", "failed"))

    def _rebuild(self, *arguments: Any) -> torch.Tensor:
        size, stride, offset, storage, dtype, device, handle, size_bytes, place, grad = arguments[1:11]
        self.assertEqual((size, stride, offset, dtype, device), (torch.Size([RING_BYTES]), (1,), 0, torch.uint8, 3))
        self.assertIs(storage, torch.storage.TypedStorage)
        self.assertEqual((handle[:2], len(handle), size_bytes, place, grad), (b"\x03c", 66, RING_BYTES, 4096, False))
        self.assertEqual(len(arguments), 15)
        return self.ring[:]

    def write(self, body: bytes) -> bytes:
        """The server has copied the bucket of this list into the ring."""
        message = read_message(body)
        if isinstance(message, list):
            for one in message:
                raw = torch.randint(0, 256, (one.tensor.bytes,), dtype=torch.uint8)
                self.ring[one.tensor.offset : one.tensor.offset + one.tensor.bytes].copy_(raw)
                self.written[one.tensor.name] = raw
        return body

    def load(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            if name == self.refuses:
                raise ValueError(f"no place for {name}")
            self.loaded[name] = tensor.clone()

    def hook(self) -> None:
        self.hooks += 1

    def update(self, bodies: list[bytes]) -> Daemon:
        daemon = Daemon(self.context, self.address, [lambda body=body: self.write(body) for body in bodies])  # type: ignore[misc]
        daemon.start()
        try:
            update_weights_from_ipc(self.context, self.address, 3, run=self.load, post_hook=self.hook, reload=None, limits=SOON)
        finally:
            daemon.worker_left.set()
            daemon.join()
            self.replies = daemon.replies
        return daemon

    def test_what_was_recorded(self) -> None:
        kinds = [type(read_message(body)) for body in self.updated]
        self.assertEqual(kinds, [Handle, list, list, list, list, type(None), type(None)])
        kinds = [type(read_message(body)) for body in self.failed]
        self.assertEqual(kinds, [Handle, list, list, DaemonError])
        first = read_message(self.updated[1])
        assert isinstance(first, list)
        listed: dict[str, Listed] = {one.tensor.name: one for one in first}
        self.assertEqual({name: listed[name].dtype for name in DTYPES}, DTYPES)

    def test_an_update(self) -> None:
        self.update(self.updated)
        self.assertEqual(self.replies, [b""] * 7)
        self.assertEqual(self.hooks, 1)
        self.assertEqual(len(self.loaded), 15)
        for name, raw in self.written.items():
            self.assertTrue(torch.equal(self.loaded[name].reshape(-1).view(torch.uint8), raw), name)

    def test_a_list_that_fails_and_the_word_of_the_server(self) -> None:
        self.refuses = "layers.1.norm"
        with self.assertRaisesRegex(DaemonError, "Some workers failed to update weights"):
            self.update(self.failed)
        self.assertIn(b"no place for layers.1.norm", self.replies[2])
        self.assertEqual(self.hooks, 0)

    def test_a_last_list_that_fails_unseen(self) -> None:
        # the server does not look at that reply; it waits for the two that follow, and the engine's request fails
        self.refuses = "scalar"
        with self.assertRaisesRegex(ProtocolError, "goes on after a list that has failed: ValueError: no place for scalar"):
            self.update(self.updated)
        self.assertEqual(self.replies[:4], [b""] * 4)
        self.assertEqual(len(self.replies), 7)
        for reply in self.replies[4:]:
            self.assertIn(b"no place for scalar", reply)
        self.assertEqual(self.hooks, 0)


if __name__ == "__main__":
    unittest.main()
