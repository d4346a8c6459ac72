"""Whether vLLM's weights have memory: its sleep mode takes that away, and who touches it then ends the engine's process."""

from __future__ import annotations

import sys

_ALLOCATOR = "vllm.device_allocator.cumem"
_TAG = "weights"


class Asleep(RuntimeError):
    """Of an engine that was put to sleep, and whose weights nobody has woken up."""


def require_awake() -> None:
    """As far as vLLM says so: older versions do not mark what sleeps.

    @raises Asleep
    """
    # whoever has not loaded the module has not been put to sleep by it
    module = sys.modules.get(_ALLOCATOR)
    allocator = getattr(getattr(module, "CuMemAllocator", None), "instance", None)
    if allocator is None:
        return
    allocations = list(allocator.pointer_to_data.values())
    if any(one.tag == _TAG and getattr(one, "is_asleep", False) for one in allocations):
        raise Asleep("the engine sleeps, and its weights have no memory: wake them up first (POST /wake_up?tags=weights)")
