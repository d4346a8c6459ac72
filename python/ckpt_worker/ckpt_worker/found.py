"""The recordings of a model that is known only by its `load_weights`: what an engine hands over that calls our function in the
place of checkpoint-engine's, as SGLang does."""

from __future__ import annotations

import os
import weakref

import torch

from .reload import Reload, Run
from .sglang_experts import expert_places, moves_experts
from .tensors import ModelTensors

_reloads: weakref.WeakKeyDictionary[torch.nn.Module, Reload] = weakref.WeakKeyDictionary()


def reload_of(run: Run) -> Reload | None:
    """The same for each update of a model. None: `run` is no method of one, `CKPT_RELOAD=ordinary` is in the environment, or
    the engine moves experts while it runs."""
    model = getattr(run, "__self__", None)
    if not isinstance(model, torch.nn.Module) or os.environ.get("CKPT_RELOAD") == "ordinary" or moves_experts():
        return None
    reload = _reloads.get(model)
    if reload is None:
        # it must not keep the model
        held = weakref.ref(model)
        tensors = ModelTensors(lambda: (held(),))

        def indices() -> tuple[int, ...]:
            return (*tensors.index_contents(), *expert_places())

        reload = _reloads[model] = Reload(tensors, indices, standing=tensors.standing)
    return reload
