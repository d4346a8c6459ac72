"""SGLang's plugin, which it finds by itself where this package is installed. Written for SGLang 0.5.16."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import zmq

from .reload import PostHook, Run
from .update import update_weights_from_ipc

_PACKAGE, _WORKER = "checkpoint_engine", "checkpoint_engine.worker"
_LOGGER = "sglang.srt.checkpoint_engine.checkpoint_engine_worker"


def plugin() -> None:
    """SGLang calls it in each of its processes, before it has imported what takes updates. `CKPT_RELOAD=ordinary` leaves the
    engine's own loading as it is; `SGLANG_PLUGINS` names the plugins that are called, all of them by default."""
    take_updates_with(take_update)


def take_update(
    zmq_ctx: zmq.Context[Any],
    zmq_handle: str,
    device_id: int,
    *,
    run: Run,
    post_hook: PostHook | None = None,
    **options: Any,
) -> None:
    """As `update_weights_from_ipc`, whose other arguments are `options`, with SGLang's hook: it logs what it raises, and SGLang
    would answer that the update went well.

    @raises RuntimeError: beside what that raises, with the words that the hook has logged
    """
    hook = None if post_hook is None else _telling(post_hook)
    update_weights_from_ipc(zmq_ctx, zmq_handle, device_id, run=run, post_hook=hook, **options)


def _telling(hook: PostHook) -> PostHook:
    def tell() -> None:
        with _Warnings() as warnings:
            hook()
        if warnings.words:
            raise RuntimeError("; ".join(warnings.words))

    return tell


class _Warnings(logging.Filter):
    """What SGLang's module of updates logs meanwhile, also where its level would leave it out."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._logger = logging.getLogger(_LOGGER)
        self._level = logging.NOTSET
        self._shown = logging.NOTSET

    def __enter__(self) -> _Warnings:
        self._level, self._shown = self._logger.level, self._logger.getEffectiveLevel()
        self._logger.setLevel(min(self._shown, logging.WARNING))
        self._logger.addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeFilter(self)
        self._logger.setLevel(self._level)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self.words.append(record.getMessage())
        return record.levelno >= self._shown


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
