"""vLLM's own layerwise reload, for models whose tensors are not those that weights are loaded into: it brings back the tensors
of the checkpoint layer by layer, loads, processes, and copies into the running ones. Facts of vLLM 0.26.0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .reload import Weights


def changed_by_processing(model: torch.nn.Module) -> str | None:
    """A parameter that has another form than when the model was made, so that weights cannot be loaded into it."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for path, module in model.named_modules():
        made, _ = get_layerwise_info(module).restore_metadata
        for name, before in made.items():
            now = module._parameters.get(name)
            where = f"{path}.{name}" if path else name
            if now is None:
                return f"{where} is gone since the engine has processed it"
            if _form(now) != _form(before):
                return f"{where} has another form since the engine has processed it"
    return None


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


class LayerwiseReload:
    """One update. A context: what was not finished at its end is undone as far as can be, so that the next one can begin."""

    def __init__(self, models: Iterable[torch.nn.Module], model_config: Any):
        self._models = list(models)
        self._config = model_config
        self._begun: list[torch.nn.Module] = []

    def __enter__(self) -> LayerwiseReload:
        return self

    def __exit__(self, *_: object) -> None:
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for model in self._begun:
            for layer in model.modules():
                info = get_layerwise_info(layer)
                info.load_numel = 0
                info.loaded_weights = []
        self.finish()

    def load(self, weights: Weights) -> None:
        """Keeps copies until a layer is complete: these may be views of a ring."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if not self._begun:
            for model in self._models:
                self._begun.append(model)
                initialize_layerwise_reload(model)
        own = [(name, tensor.clone()) for name, tensor in weights]
        for model in self._models:
            model.load_weights(iter(own))

    def finish(self) -> None:
        """After the last weights; in place of the engine's processing after loading."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        while self._begun:
            finalize_layerwise_reload(self._begun[0], self._config)
            self._begun.pop(0)
