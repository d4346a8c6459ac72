"""One update by a daemon that copies straight into the engine's memory: what it has to know, and when it may.

    daemon: look {map: digest or null}      worker: {ok, generation, handles, map}, and the map unless it has that digest
    daemon: begin {generation}              worker: {ok}; from now on the engine is torn
    daemon: end                             worker: {ok}, after the engine's processing; not torn any more
    daemon: leave {reason}                  instead of any of these; the worker leaves without a reply

A refusal is `{ok: false, reason}`; it changes nothing, and the daemon leaves or tries another way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from .conversation import Conversation, Limits
from .frames import pack, unpack
from .messages import DaemonError, ProtocolError
from .placement import Allocation, NotPlaced
from .reload import PostHook, Reload


@dataclass(frozen=True)
class DirectEngine:
    """What an update does with the engine.

    @param allocation_of: the device memory that an address is in
    @param synchronize: waits for what the device is still doing
    @param torn: is told when the engine begins to hold two versions, and when it has one again
    """

    reload: Reload
    allocation_of: Callable[[int], Allocation]
    post_hook: PostHook
    synchronize: Callable[[], object]
    torn: Callable[[bool], object]


def update_weights_directly(
    context: zmq.Context[Any], address: str, engine: DirectEngine, limits: Limits | None = None
) -> bool:
    """Lets the daemon at `address` update the engine. False: it has left without having begun.

    @raises DaemonError, DaemonGone, ProtocolError, TimeoutError: and what the hook raises; `engine.torn` was told before
    """
    begun = False
    with Conversation(context, address, limits or Limits()) as talk:
        while True:
            head, _ = unpack(talk.next("what to do" if not begun else "the end of its copies"))
            kind = head.get("type")
            if kind == "leave":
                if begun:
                    raise DaemonError(str(head.get("reason")))
                return False
            if kind == "look" and not begun:
                talk.reply(_look(engine, head.get("map")))
            elif kind == "begin" and not begun:
                begun = engine.reload.generation() == head.get("generation")
                if begun:
                    engine.torn(True)
                talk.reply(pack({"ok": True} if begun else _refusal("the engine's memory has changed")))
            elif kind == "end" and begun:
                try:
                    engine.post_hook()
                    engine.synchronize()
                except Exception as error:
                    talk.reply(pack(_refusal(f"{type(error).__name__}: {error}")))
                    raise
                engine.torn(False)
                talk.reply(pack({"ok": True}))
                return True
            else:
                raise ProtocolError(f"the daemon says {kind!r} {'after' if begun else 'before'} it has begun")


def _look(engine: DirectEngine, known: object) -> bytes:
    # what was going on may still write
    engine.synchronize()
    try:
        places = engine.reload.placement(engine.allocation_of)
    except NotPlaced as error:
        return pack(_refusal(str(error)))
    head = {
        "ok": True,
        "generation": engine.reload.generation(),
        "handles": [allocation.handle.hex() for allocation in places.allocations],
        "map": places.digest,
    }
    return pack(head, b"" if known == places.digest else places.encode())


def _refusal(reason: str) -> dict[str, Any]:
    return {"ok": False, "reason": reason}
