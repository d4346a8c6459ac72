"""SGLang's plugin, which it finds by itself where this package is installed. Written for SGLang 0.5.16."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

from .update import update_weights_from_ipc

_PACKAGE, _WORKER = "checkpoint_engine", "checkpoint_engine.worker"


def plugin() -> None:
    """SGLang calls it in each of its processes, before it has imported what takes updates. `CKPT_RELOAD=ordinary` leaves the
    engine's own loading as it is; `SGLANG_PLUGINS` names the plugins that are called, all of them by default."""
    take_updates_with(update_weights_from_ipc)


def take_updates_with(function: Callable[..., None]) -> None:
    """SGLang imports `checkpoint_engine.worker.update_weights_from_ipc` with the first update, and calls it in the scheduler
    of each rank with `run=model.load_weights`. From now on that is `function`; checkpoint-engine need not be there.

    @param function: with the signature of checkpoint-engine's
    """
    try:
        worker = importlib.import_module(_WORKER)
    except Exception:
        # it is not there, or cannot be imported, which would end the plugin
        package = sys.modules.get(_PACKAGE) or ModuleType(_PACKAGE)
        worker = ModuleType(_WORKER)
        sys.modules |= {_PACKAGE: package, _WORKER: worker}
        setattr(package, "worker", worker)  # noqa: B010
    setattr(worker, "update_weights_from_ipc", function)  # noqa: B010
