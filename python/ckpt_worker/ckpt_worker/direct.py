"""One update by a daemon that copies straight into the engine's memory: what it has to know, and when it may.

    daemon: look {map: digest or null}      worker: {ok, generation, handles, map}, and the map unless it has that digest; it
                                            has looked while the daemon connected
    daemon: begin {generation}              worker: {ok}, after it has written the constants of its loading (padding and the
                                            like), which are in no map; from now on the engine is torn
    daemon: end                             worker: {ok}, after the engine's processing, which may have run while the daemon
                                            copied if it looks at no weight; not torn any more
    daemon: leave {reason}                  instead of any of these; the worker leaves without a reply, and an engine that is
                                            torn stays so
    daemon: leave {reason, untouched: true} after `begin`: it has copied nothing. worker: {ok}, the engine is whole as it was

A refusal is `{ok: false, reason}`; it changes nothing, and the daemon leaves or tries another way. When the engine itself fails
the worker refuses too, and then leaves: `torn: true` in it says that the engine is torn, as it is after a `begin` or an `end`
that has failed. Any other message ends the conversation without a reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import zmq

from .conversation import Conversation, Limits
from .frames import pack, unpack
from .messages import DaemonError, ProtocolError
from .placement import Allocation, NotPlaced, PlacementMap
from .reload import PostHook, Reload

_OK = {"ok": True}

# a map and its generation, or why there is none
_Found = tuple[PlacementMap, str] | str


@dataclass(frozen=True)
class DirectEngine:
    """What an update does with the engine.

    @param allocation_of: the device memory that an address is in
    @param synchronize: waits for what the device is still doing
    @param torn: is told when the engine begins to hold two versions, and when it has one again
    @param refusal: why no daemon may copy into it; None: it may where all of it has places. Is asked after a look at the memory
    """

    reload: Reload
    allocation_of: Callable[[int], Allocation]
    post_hook: PostHook
    synchronize: Callable[[], object]
    torn: Callable[[bool], object]
    refusal: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class _Early:
    """What has become of the processing while the daemon copied."""

    done: bool = False
    failed: Exception | None = None

    def check(self) -> None:
        if self.failed is not None:
            raise self.failed


def update_weights_directly(
    context: zmq.Context[Any], address: str, engine: DirectEngine, limits: Limits | None = None
) -> bool:
    """Lets the daemon at `address` update the engine. False: it has left, and the engine is as it was.

    @raises DaemonError, DaemonGone, ProtocolError, TimeoutError: and what the hook raises; `engine.torn` was told before
    """
    try:
        return _converse(context, address, engine, limits or Limits())
    finally:
        engine.reload.let_go()


def _converse(context: zmq.Context[Any], address: str, engine: DirectEngine, limits: Limits) -> bool:
    begun = False
    early = _Early()
    with Conversation(context, address, limits) as talk:
        # the daemon has not connected yet
        places = _find_first(engine).result
        while True:
            head, _ = unpack(talk.next("what to do" if not begun else "the end of its copies"))
            kind = head.get("type")
            if kind == "leave":
                if begun:
                    if head.get("untouched") is not True:
                        raise DaemonError(str(head.get("reason")))
                    with _telling(talk, True):
                        _leave(engine, str(head.get("reason")), early)
                    talk.reply(pack(_OK))
                return False
            if kind == "look" and not begun:
                with _telling(talk, False):
                    reply = _looked(places(), head.get("map"))
                talk.reply(reply)
                places = partial(_find, engine)
            elif kind == "begin" and not begun:
                with _telling(talk, True):
                    reason = _begin(engine, head.get("generation"))
                begun = reason is None
                talk.reply(pack(_OK if reason is None else _refusal(reason)))
                if begun:
                    # the engine would only wait for the daemon
                    early = _process_early(engine)
            elif kind == "end" and begun:
                with _telling(talk, True):
                    early.check()
                    if early.done:
                        engine.synchronize()
                    else:
                        _process(engine)
                engine.torn(False)
                talk.reply(pack(_OK))
                return True
            else:
                raise ProtocolError(f"the daemon says {kind!r} {'after' if begun else 'before'} it has begun")


@contextmanager
def _telling(talk: Conversation, torn: bool) -> Iterator[None]:
    """The daemon learns why the worker leaves.

    @param torn: the engine may be, when it fails
    """
    try:
        yield
    except Exception as error:
        refusal = _refusal(f"{type(error).__name__}: {error}")
        talk.reply(pack({**refusal, "torn": True} if torn else refusal))
        raise


def _find_first(engine: DirectEngine) -> Future[_Found]:
    """As `_find`; what fails is raised where the daemon can be told."""
    found: Future[_Found] = Future()
    try:
        found.set_result(_find(engine))
    except Exception as error:
        found.set_exception(error)
    return found


def _find(engine: DirectEngine) -> _Found:
    """Where everything belongs, and the generation of that; else why the daemon may not copy."""
    # what was going on may still write
    engine.synchronize()
    try:
        found = engine.reload.placement(engine.allocation_of)
        return engine.refusal() or found
    except NotPlaced as error:
        return engine.refusal() or str(error)


def _looked(found: _Found, known: object) -> bytes:
    if isinstance(found, str):
        return pack(_refusal(found))
    places, generation = found
    head = {
        "ok": True,
        "generation": generation,
        "handles": [allocation.handle.hex() for allocation in places.allocations],
        "map": places.digest,
    }
    return pack(head, b"" if known == places.digest else places.encoded)


def _begin(engine: DirectEngine, generation: object) -> str | None:
    """Why not."""
    now = engine.reload.generation()
    refusal = engine.refusal()
    if refusal is not None:
        return refusal
    if now is None or now != generation:
        return "the engine's memory has changed"
    engine.torn(True)
    places = engine.reload.places
    if places is not None and places.constants:
        engine.reload.write_constants()
        # the daemon's copies go over some of them
        engine.synchronize()
    return None


def _leave(engine: DirectEngine, reason: str, early: _Early) -> None:
    """After `begin`, when the daemon has copied nothing.

    @raises DaemonError: constants were written over weights
    """
    places = engine.reload.places
    if places is None or places.over_weights:
        raise DaemonError(reason)
    early.check()
    if places.constants:
        # the processing may have made something else of them
        _process(engine)
    engine.torn(False)


def _process_early(engine: DirectEngine) -> _Early:
    """While the daemon copies."""
    try:
        done = engine.reload.process_placed_early(engine.post_hook)
        engine.reload.check_places()
        return _Early(done=done)
    except Exception as error:
        return _Early(failed=error)


def _process(engine: DirectEngine) -> None:
    engine.reload.process_placed(engine.post_hook)
    engine.synchronize()


def _refusal(reason: str) -> dict[str, Any]:
    return {"ok": False, "reason": reason}
