"""One update, with the signature of checkpoint-engine's worker: an engine that imports that function can import this one."""

from __future__ import annotations

import gc
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import torch
import zmq

from .conversation import Conversation, DaemonGone, Limits, trace_of
from .found import reload_of
from .messages import DaemonError, Listed, ProtocolError
from .reload import PostHook, Reload, Run, Tally


def update_weights_from_ipc(
    zmq_ctx: zmq.Context[Any],
    zmq_handle: str,
    device_id: int,
    *,
    run: Run,
    post_hook: PostHook | None = None,
    reload: Reload | None | Literal["of run"] = "of run",
    limits: Limits | None = None,
    tally: Tally | None = None,
) -> None:
    """Takes an update from a daemon at `zmq_handle`.

    @param device_id: of the device that the ring is mapped on
    @param run: loads weights, views of the ring that are gone when it returns
    @param post_hook: after the last of them, when the ring is not mapped any more
    @param reload: replays what it has recorded of `run`; None: `run` loads every list; "of run": one that is kept for the model
        whose method `run` is, None where it is not
    @param tally: is filled
    @raises DaemonError, DaemonGone, ProtocolError, TimeoutError: what the engine holds is then of two versions
    """
    if reload == "of run":
        reload = reload_of(run)
    engine = _Engine(run, post_hook or (lambda: None), reload, tally or Tally())
    try:
        with Conversation(zmq_ctx, zmq_handle, limits or Limits()) as talk:
            device, failed = _take_weights(talk, device_id, engine)
            body = talk.next("the end of the update")
            if talk.read(body) is not None:
                raise RuntimeError(f"the daemon sends a list of {len(body)} bytes after the last one")
            if failed is not None:
                failed.repeat(talk)
            try:
                engine.process()
                synchronize(device)
            except Exception as error:
                # checkpoint-engine's worker leaves without a reply; ours tells the daemon at once
                talk.fail(error)
                raise
            talk.ok()
    finally:
        if reload is not None:
            reload.end()
        if engine.tally.ordinary:
            _give_back()


class _Failed(NamedTuple):
    """What is told of an exception, which would hold the ring."""

    words: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Failed:
        failed = cls(f"{type(error).__name__}: {error}", trace_of(error))
        _let_go(error)
        return failed

    def repeat(self, talk: Conversation) -> NoReturn:
        """To the last word of a daemon that has taken no notice."""
        talk.reply(self.trace.encode())
        raise ProtocolError(f"the daemon goes on after a list that has failed: {self.words}")


@dataclass
class _Engine:
    """What an update does with the engine."""

    run: Run
    post_hook: PostHook
    reload: Reload | None
    tally: Tally

    def knows(self, body: bytes) -> bool:
        return self.reload is not None and self.reload.replays(body)

    def take(self, body: bytes, listed: list[Listed] | None, ring: torch.Tensor) -> None:
        """@param listed: None: it is known"""
        if self.reload is None:
            weights = [(one.tensor.name, one.view(ring)) for one in listed or ()]
            self.tally.ordinary += len(weights)
            self.run(weights)
        elif listed is None:
            self.reload.replay(body, ring, self.run)
        else:
            self.reload.load(body, listed, ring, self.run)

    def process_early(self, body: bytes, ring: torch.Tensor) -> _Failed | None:
        """After a list was taken, see `Reload`. What fails is returned: nobody waits for a reply."""
        if self.reload is None:
            return None
        try:
            if self.reload.process_early(self.post_hook, ring, body):
                synchronize(ring.device)
        except Exception as error:
            return _Failed.of(error)
        return None

    def process(self) -> None:
        self.tally.hook = True
        if self.reload is None:
            self.post_hook()
        else:
            self.reload.process(self.post_hook)


def _take_weights(talk: Conversation, device_id: int, engine: _Engine) -> tuple[torch.device, _Failed | None]:
    """From the handle of the ring to its release. Returns the ring's device, and what the daemon has taken no notice of."""
    try:
        handle = talk.handle()
        ring = handle.open(device_id)
    except Exception as error:
        talk.refuse_handle(error)
        raise
    talk.ok()
    try:
        if engine.reload is not None:
            engine.reload.begin(ring, engine.tally)
        failed = _take_lists(talk, ring, engine)
    finally:
        if engine.reload is not None:
            engine.reload.release()
        device, weak = ring.device, ring.untyped_storage()._weak_ref()
        # the mapping ends with its last tensor
        del ring, handle
        _release(weak, device)
    talk.reply(b"" if failed is None else failed.trace.encode())
    return device, failed


def _take_lists(talk: Conversation, ring: torch.Tensor, engine: _Engine) -> _Failed | None:
    """Returns a list's failure after which the daemon has ended the lists as if there was none: checkpoint-engine's (0.4.2)
    does not look at the reply to its last list, and waits without a deadline for those that follow."""
    count = 0
    failed: _Failed | None = None
    ended = False
    # what failed between two lists
    owed: _Failed | None = None
    try:
        while True:
            body = talk.next(f"list {count} or the end of the lists")
            begin = time.perf_counter()
            known = engine.knows(body)
            listed = None if known else talk.read(body)
            over = listed is None and not known
            if over and failed is not None:
                if ended:
                    failed.repeat(talk)
                return failed
            now = owed or _take_list(engine, None if over else body, listed, ring)
            owed = None
            if now is None:
                if over:
                    return None
                talk.ok()
                # the daemon goes on meanwhile
                owed = engine.process_early(body, ring) if count > 0 else None
            else:
                # not raised: the daemon tells every worker of the engine to stop, and this one with them
                talk.reply(now.trace.encode())
                failed, ended = now, over
            engine.tally.busy_seconds += time.perf_counter() - begin
            count += 1
    except (DaemonError, DaemonGone, ProtocolError, TimeoutError) as error:
        if owed is None:
            raise
        raise type(error)(f"{error}; while the daemon went on, {owed.words}") from error
    finally:
        # an exception that leaves here keeps this frame
        del ring


def _take_list(engine: _Engine, body: bytes | None, listed: list[Listed] | None, ring: torch.Tensor) -> _Failed | None:
    """@param body: None: there is no list, only what the device is still doing"""
    try:
        if body is not None:
            engine.take(body, listed, ring)
        synchronize(ring.device)
    except Exception as error:
        return _Failed.of(error)
    return None


def _let_go(error: BaseException) -> None:
    """The frames of a traceback hold views of the ring."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__


def _release(weak: int, device: torch.device) -> None:
    if not torch.UntypedStorage._expired(weak):
        # tensors in a cycle hold it
        gc.collect()
    torch.UntypedStorage._free_weak_ref(weak)
    if device.type == "cuda":
        torch.cuda.ipc_collect()
    synchronize(device)


def _give_back() -> None:
    """What the engine's loading has left to torch would be missing to others; a broken device is told otherwise."""
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Waits for what the device is still doing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
