"""The worker's side of the conversation, dialect D4 of checkpoint-engine 0.4: nothing waits without a deadline."""

from __future__ import annotations

import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import zmq
import zmq.utils.monitor

from .messages import DaemonError, Handle, Listed, ProtocolError, read_message

_POLL_MS = 200
_LINGER_MS = 2000
_LEFT = {zmq.EVENT_DISCONNECTED}
_CAME = {zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED}


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    # for everything
    total: float = 300.0
    # a daemon that has gone may come back and tell us to stop
    grace: float = 30.0


class DaemonGone(ConnectionError):
    """The daemon has disconnected, and did not come back."""


class Conversation:
    """A context around it: the socket is closed at its end."""

    def __init__(self, context: zmq.Context[Any], address: str, limits: Limits):
        self._limits = limits
        self._end = time.monotonic() + limits.total
        self._gone: float | None = None
        self._owes = False
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._monitor = self._socket.get_monitor_socket()
        self._socket.connect(address)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()

    def handle(self) -> Handle:
        """The first message."""
        message = read_message(self._receive("the handle of the ring"))
        if isinstance(message, DaemonError):
            raise message
        if not isinstance(message, Handle):
            raise ProtocolError("the first message is not the handle of the ring")
        return message

    def refuse_handle(self, error: BaseException) -> None:
        """The ring cannot be opened: says so. The caller raises, after one more message, as checkpoint-engine's worker does."""
        if not self._owes:
            return
        self.fail(error)
        # the caller has a better reason than what happens here
        with suppress(TimeoutError, DaemonGone):
            self._receive("the message after a refused handle")

    def next(self, what: str) -> bytes:
        """The bytes of the next message; `read` tells what it is."""
        return self._receive(what)

    def read(self, body: bytes) -> list[Listed] | None:
        """The list that came in these bytes, or None.

        @raises DaemonError: the daemon has ended the update
        """
        message = read_message(body)
        if isinstance(message, DaemonError):
            raise message
        if isinstance(message, Handle):
            raise ProtocolError("a second handle of a ring")
        return message

    def ok(self) -> None:
        self.reply(b"")

    def fail(self, error: BaseException) -> None:
        """The traceback, which the daemon passes on; it answers with the end of the update."""
        self.reply(trace_of(error).encode())

    def reply(self, body: bytes) -> None:
        self._socket.send(body)
        self._owes = False

    def _receive(self, what: str) -> bytes:
        while True:
            left = self._end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the daemon has not sent {what} within the {self._limits.total:g} s of the update")
            if self._socket.poll(min(_POLL_MS, max(1, int(left * 1000)))):
                self._owes = True
                body: bytes = self._socket.recv()
                return body
            self._look_at_connection(what)

    def _look_at_connection(self, what: str) -> None:
        while self._monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
            if event in _LEFT:
                self._gone = self._gone or time.monotonic()
            elif event in _CAME:
                self._gone = None
        if self._gone is not None and time.monotonic() - self._gone > self._limits.grace:
            raise DaemonGone(f"the daemon has gone; it had not sent {what}")


def trace_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))
