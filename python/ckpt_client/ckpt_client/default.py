"""The daemon of this host that nobody has to name."""

from __future__ import annotations

import functools
from typing import Any, Mapping, Optional

from .connection import default_address
from .daemon import Daemon

_daemon = functools.lru_cache(maxsize=None)(Daemon)


def register_tensors(
    name: str, tensors: Mapping[str, Any], version: Optional[str] = None, replace: bool = True
) -> dict:
    """`Daemon.register_tensors` of the default daemon."""
    return _daemon(default_address()).register_tensors(name, tensors, version, replace)


def update(name: str, **body: Any) -> dict:
    """`Daemon.update` of the default daemon."""
    return _daemon(default_address()).update(name, **body)
