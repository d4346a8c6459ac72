"""The daemon of this host that nobody has to name."""

from __future__ import annotations

import functools
import os
from typing import Any, Mapping, Optional

from .daemon import Daemon


@functools.lru_cache(maxsize=None)
def _daemon(address: Optional[str]) -> Daemon:
    return Daemon(address)


def register_tensors(
    name: str, tensors: Mapping[str, Any], version: Optional[str] = None, replace: bool = True
) -> dict:
    """`Daemon.register_tensors` of the default daemon."""
    return _daemon(os.environ.get("CKPT_DAEMON")).register_tensors(name, tensors, version, replace)


def update(name: str, **body: Any) -> dict:
    """`Daemon.update` of the default daemon."""
    return _daemon(os.environ.get("CKPT_DAEMON")).update(name, **body)
