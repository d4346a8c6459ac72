"""vLLM's own layerwise reload, for layers whose running tensors are not those that weights are loaded into: it brings back the
tensors of the checkpoint, loads a layer when all of its weights have come, processes it, and copies into the running ones.
Facts of vLLM 0.26.0."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_iter, tree_map

from .converted import process_layer, processed_layers
from .reload import Weights

# by which vLLM knows what it has put before a parameter's loader
_WRAPPER = "online_process_loader"

Aside = Callable[[Iterable[torch.Tensor]], AbstractContextManager[None]]


class LayerwiseReload:
    """One update. A context: what was not finished at its end is undone as far as can be, so that the next one can begin.

    @param partly: what earlier updates have found to be loaded of layers that are never whole (padding), by their names; is
        added to
    @param layers: only these are reloaded so, all others hold what weights are loaded into; None: all
    @param aside: around what becomes of weights of `layers`
    """

    def __init__(
        self,
        models: Iterable[torch.nn.Module],
        model_config: Any,
        partly: dict[str, int],
        layers: Collection[torch.nn.Module] | None = None,
        aside: Aside = lambda _: nullcontext(),
    ):
        self._models = list(models)
        self._config = model_config
        self._partly = partly
        self._layers = layers
        self._aside = aside
        self._begun: list[torch.nn.Module] = []
        # of the other layers, what runs, while they have tensors in its place that weights can be loaded into
        self._running: list[tuple[torch.nn.Module, dict[str, Any]]] = []

    def __enter__(self) -> LayerwiseReload:
        return self

    def __exit__(self, *_: object) -> None:
        from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

        self._place_running()
        for layer in self._layers or ():
            # vLLM keeps them, with their loaders, for the next reload
            _unwrap(get_layerwise_info(layer).restore_metadata[0].values())
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
        self._begin()
        own = weights if self._layers is not None else [(name, tensor.clone()) for name, tensor in weights]
        for model in self._models:
            model.load_weights(iter(own))

    def _begin(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if self._begun:
            return
        for model in self._models:
            self._begun.append(model)
            if self._layers is None:
                initialize_layerwise_reload(model)
            else:
                self._begin_layers(model)

    def _begin_layers(self, model: torch.nn.Module) -> None:
        """As vLLM's `initialize_layerwise_reload`, but of `layers` only."""
        from vllm.model_executor.model_loader.reload.layerwise import (
            get_layer_params_buffers,
            get_layerwise_info,
            initialize_online_processing,
            restore_layer_on_meta,
        )

        model._original_do_torchao_reload = getattr(model, "_do_torchao_reload", False)
        model._do_torchao_reload = False
        for layer in self._converted(model):
            info = get_layerwise_info(layer)
            if info.can_load():
                continue
            info.kernel_tensors = get_layer_params_buffers(layer)
            info.kernel_non_persistent_buffers = set(layer._non_persistent_buffers_set)
            restore_layer_on_meta(layer, info)
            initialize_online_processing(layer)
            self._wrap(layer)
        self._place_loadable(model)

    def _converted(self, model: torch.nn.Module) -> Iterator[torch.nn.Module]:
        return (layer for layer in model.modules() if self._layers is not None and layer in self._layers)

    def _place_loadable(self, model: torch.nn.Module) -> None:
        """In the other layers. Their processing has made parameters anew that know no more how they are loaded: others of the
        same memory, as they were made, take their place."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for layer in model.modules():
            made, _ = get_layerwise_info(layer).restore_metadata
            if not made or self._layers is None or layer in self._layers:
                continue
            self._running.append((layer, dict(layer._parameters)))
            for name, before in made.items():
                layer._parameters[name] = _loadable(layer, before, layer._parameters[name])

    def _place_running(self) -> None:
        for layer, parameters in self._running:
            layer._parameters.clear()
            layer._parameters.update(parameters)
        self._running.clear()

    def _wrap(self, layer: torch.nn.Module) -> None:
        """Has what comes to the layer copied, and taken `aside`."""
        for tensor in (*layer._parameters.values(), *layer._buffers.values()):
            loader = getattr(tensor, "weight_loader", None)
            if loader is not None and loader.__name__ == _WRAPPER and not hasattr(loader, "takes_aside"):
                tensor.weight_loader = self._taking_aside(layer, loader)

    def _taking_aside(self, layer: torch.nn.Module, loader: Any) -> Any:
        def online_process_loader(*args: Any, **kwargs: Any) -> Any:
            taken = [one for one in tree_iter((args, kwargs)) if _is_weight(one)]
            with self._aside(taken):
                copies = {id(one): one.clone() for one in taken}
                own_args, own_kwargs = tree_map(lambda one: copies.get(id(one), one), (args, kwargs))
                answer = loader(*own_args, **own_kwargs)
            # it may have made parameters, with loaders of its own
            self._wrap(layer)
            return answer

        online_process_loader.__name__ = _WRAPPER
        online_process_loader.__wrapped__ = loader  # type: ignore[attr-defined]
        online_process_loader.takes_aside = True  # type: ignore[attr-defined]
        return online_process_loader

    def finish(self) -> None:
        """After the last weights; in place of the engine's processing after loading.

        @raises RuntimeError: a layer has got only a part of its weights; vLLM would take the others from memory that nobody
            has written
        """
        self._place_running()
        for number, model in enumerate(self._begun):
            self._require_whole(number, model)
        while self._begun:
            self._finalize(self._begun[0])
            self._begun.pop(0)
        if self._layers is not None:
            for model in self._models:
                self._process_others(model)

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
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(model, self._config)
        if self._layers is None:
            # which it leaves out
            self._derive(model, "MMEncoderAttention")

    def _process_others(self, model: torch.nn.Module) -> None:
        """What vLLM's processing after loading does, but for the layers that have been processed already."""
        for layer in processed_layers(model):
            if self._layers is not None and layer not in self._layers:
                process_layer(layer)
        self._derive(model, "Attention", "MLAAttention", "MMEncoderAttention")

    def _derive(self, model: torch.nn.Module, *attentions: str) -> None:
        """Modules that make something of the weights of others do it again."""
        from vllm.model_executor.model_loader import utils

        for module in _of_kinds(model, utils, attentions):
            if hasattr(module, "process_weights_after_loading"):
                module.process_weights_after_loading(self._config.dtype)
        for module in _of_kinds(model, utils, ("HpcModule",)):
            module.process_weights_after_loading(model)


def _loadable(layer: torch.nn.Module, made: Any, running: Any) -> Any:
    """`made` over the memory of `running`."""
    from vllm.model_executor.model_loader.reload.layerwise import _get_original_loader
    from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

    tensor = running.data
    tensor.__class__ = made.__class__
    tensor.__dict__ = made.__dict__.copy()
    restore_layer_refs(tensor, layer)
    if hasattr(tensor, "weight_loader"):
        tensor.weight_loader = _get_original_loader(tensor)
    return tensor


def _unwrap(tensors: Iterable[Any]) -> None:
    for tensor in tensors:
        loader = getattr(tensor, "weight_loader", None)
        if loader is not None and hasattr(loader, "takes_aside"):
            tensor.weight_loader = loader.__wrapped__


def _is_weight(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_meta and not isinstance(value, torch.nn.Parameter)


def _of_kinds(model: torch.nn.Module, utils: Any, names: Iterable[str]) -> list[torch.nn.Module]:
    """@param utils: the module that has these classes, if this vLLM has them"""
    kinds = tuple(getattr(utils, name) for name in names if hasattr(utils, name))
    return [module for module in model.modules() if isinstance(module, kinds)]
