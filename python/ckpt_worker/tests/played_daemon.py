"""A daemon that a test plays, with pickles as checkpoint-engine's daemon makes them."""

from __future__ import annotations

import pickle
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zmq
from torch.multiprocessing import reductions

LOOK_MS = 20
Messages = list[bytes | Callable[[], bytes]]


def handle(size: int) -> bytes:
    arguments = (
        torch.Tensor,
        (size,),
        (1,),
        0,
        torch.UntypedStorage,
        torch.uint8,
        0,
        b"h" * 64,
        size,
        0,
        False,
        b"/r",
        0,
        b"",
        False,
    )
    return pickle.dumps((reductions.rebuild_cuda_tensor, arguments))


class Daemon(threading.Thread):
    """Sends one message after another, each after the reply to the one before, and keeps the replies."""

    def __init__(self, context: zmq.Context[Any], address: str, messages: Messages):
        super().__init__(daemon=True)
        self.replies: list[bytes] = []
        self.worker_left = threading.Event()
        self._messages = messages
        self._socket = context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)

    def run(self) -> None:
        try:
            for message in self._messages:
                if not self._send(message() if callable(message) else message):
                    return
                while not self._socket.poll(LOOK_MS):
                    if self.worker_left.is_set() and not self._socket.poll(LOOK_MS):
                        return
                self.replies.append(self._socket.recv())
        finally:
            self._socket.close()

    def _send(self, body: bytes) -> bool:
        """False: the worker has left, and nobody takes it."""
        while True:
            try:
                self._socket.send(body, zmq.NOBLOCK)
            except zmq.Again:
                if self.worker_left.is_set():
                    return False
                self._socket.poll(LOOK_MS, zmq.POLLOUT)
            else:
                return True


class DaemonTest(unittest.TestCase):
    """With an address for a daemon, and the context of its worker."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.address = f"ipc://{Path(folder.name) / 'rank.sock'}"
        self.context: zmq.Context[Any] = zmq.Context()
        self.addCleanup(self.context.destroy, 0)
