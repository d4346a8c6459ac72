"""vLLM's own layerwise reload, for models whose tensors are not those that weights are loaded into: it brings back the tensors
of the checkpoint layer by layer, loads, processes, and copies into the running ones. Facts of vLLM 0.26.0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .reload import Weights


def changed_by_processing(model: torch.nn.Module) -> str | None:
    """A parameter that has another form than when the model was made, so that weights cannot be loaded into it."""
    with torch._C.DisableTorchFunctionSubclass():
        return _changed_by_processing(model)


def _changed_by_processing(model: torch.nn.Module) -> str | None:
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
    """One update. A context: what was not finished at its end is undone as far as can be, so that the next one can begin.

    @param partly: what earlier updates have found to be loaded of layers that are never whole (padding), by their names; is
        added to
    """

    def __init__(self, models: Iterable[torch.nn.Module], model_config: Any, partly: dict[str, int]):
        self._models = list(models)
        self._config = model_config
        self._partly = partly
        self._begun: list[torch.nn.Module] = []

    def __enter__(self) -> LayerwiseReload:
        return self

    def __exit__(self, *_: object) -> None:
        from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

        for model in self._begun:
            for layer in model.modules():
                info = get_layerwise_info(layer)
                if info.can_load():
                    if info.kernel_tensors is not None:
                        _place_kernel_tensors(layer, info)
                    info.reset()
            model._do_torchao_reload = getattr(model, "_original_do_torchao_reload", False)
        self._begun.clear()

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
        """After the last weights; in place of the engine's processing after loading.

        @raises RuntimeError: a layer has got only a part of its weights; vLLM would take the others from memory that nobody
            has written
        """
        for number, model in enumerate(self._begun):
            self._require_whole(number, model)
        while self._begun:
            self._finalize(self._begun[0])
            self._begun.pop(0)

    def _require_whole(self, number: int, model: torch.nn.Module) -> None:
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for path, layer in model.named_modules():
            info = get_layerwise_info(layer)
            if not info.can_load() or not 0 < info.load_numel < info.load_numel_total:
                continue
            loaded = {name for name, _ in info.loaded_weights}
            missing = [name for name, value in layer._parameters.items() if value is not None and name not in loaded]
            if missing:
                raise RuntimeError(f"{path}: the update has {', '.join(sorted(loaded))}, but not {', '.join(missing)}")
            before = self._partly.setdefault(f"{number}:{path}", info.load_numel)
            if before != info.load_numel:
                raise RuntimeError(f"{path}: the update has {info.load_numel} items of its weights, the last one had {before}")

    def _finalize(self, model: torch.nn.Module) -> None:
        from vllm.model_executor.model_loader import utils
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(model, self._config)
        # which it leaves out: these derive something of weights too
        encoder, hpc = getattr(utils, "MMEncoderAttention", ()), getattr(utils, "HpcModule", ())
        for module in model.modules():
            if isinstance(module, encoder) and hasattr(module, "process_weights_after_loading"):
                module.process_weights_after_loading(self._config.dtype)
        for module in model.modules():
            if isinstance(module, hpc):
                module.process_weights_after_loading(model)
