"""What says in SGLang where an expert's weights go: not the model, as in vLLM, but the process. Facts of SGLang 0.5.16. Nothing
is imported: what SGLang's scheduler has not imported itself is not there."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

_LOCATION = "sglang.srt.eplb.expert_location", "get_global_expert_location_metadata"
_ARGUMENTS = "sglang.srt.server_args", "get_global_server_args"
# of the tensors of `ExpertLocationMetadata`, those that are looked at while a list is loaded
_MAPS = ("physical_to_logical_map_cpu", "logical_to_all_physical_map_cpu")
_UNKNOWN = object()


def expert_places() -> tuple[int, ...]:
    """Another one where an expert's weights go to other places; empty: there are no experts, or no SGLang."""
    metadata = _of_process(*_LOCATION)
    if metadata is None or metadata is _UNKNOWN:
        return ()
    return tuple(number for name in _MAPS for number in _digest(getattr(metadata, name)))


def moves_experts() -> bool:
    """Expert load balancing is on, so that what is recorded would not outlast the next move; or this SGLang does not tell."""
    if "sglang" not in sys.modules:
        return False
    metadata, arguments = _of_process(*_LOCATION), _of_process(*_ARGUMENTS)
    told = metadata is None or all(hasattr(metadata, name) for name in _MAPS)
    return not told or bool(getattr(arguments, "enable_eplb", True))


def _of_process(module: str, getter: str) -> Any:
    """`_UNKNOWN`: it is not set, or there is no such thing."""
    try:
        return getattr(sys.modules[module], getter)()
    except (KeyError, AttributeError, ValueError):
        return _UNKNOWN


def _digest(numbers: Any) -> tuple[int, ...]:
    """Of a tensor in host memory, which may have millions of items (DeepSeek-V3: 4 million, 30 MB)."""
    digest = hashlib.sha256(memoryview(numbers.contiguous().numpy())).digest()
    return (*numbers.shape, int.from_bytes(digest, "little"))
