"""vLLM's own layerwise reload, for layers whose running tensors are not those that weights are loaded into: it brings back the
tensors of the checkpoint, loads a layer when all of its weights have come, processes it, and copies into the running ones.
Facts of vLLM 0.26.0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from .converted import Looked, changed_layers, process_layer, processed_layers, refuse_shared
from .kept import known_parameters
from .reload import Weights

# by which vLLM knows what it has put before a parameter's loader
_WRAPPER = "online_process_loader"
_ATTENTIONS = ("Attention", "MLAAttention")

Aside = Callable[[Iterable[torch.Tensor]], AbstractContextManager[None]]


class LayerwiseReload:
    """One update. A context: what was not finished at its end is undone as far as can be, so that the next one can begin.

    @param partly: what earlier updates have found to be loaded of layers that are never whole (padding), by their names; is
        added to by an update that is finished
    @param looked: only the converted layers are reloaded so, all others hold what weights are loaded into; None: all
    @param aside: around what becomes of weights of converted layers
    """

    def __init__(
        self,
        models: Iterable[torch.nn.Module],
        model_config: Any,
        partly: dict[str, int],
        looked: Looked | None = None,
        aside: Aside = lambda _: nullcontext(),
    ):
        self._models = list(models)
        self._config = model_config
        self._partly = partly
        self._looked = looked
        self._aside = aside
        self._guard = _MetaGuard()
        self._begun: list[torch.nn.Module] = []
        # of the other layers, what runs, while they have tensors in its place that weights can be loaded into
        self._running: list[tuple[torch.nn.Module, dict[str, Any]]] = []

    def __enter__(self) -> LayerwiseReload:
        return self

    def __exit__(self, *_: object) -> None:
        from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

        self._place_running()
        for model in self._begun:
            for layer in model.modules():
                info = get_layerwise_info(layer)
                # vLLM keeps them, with their loaders, for the next reload
                for made in info.restore_metadata:
                    _unwrap(made.values())
                if info.kernel_tensors is not None:
                    _place_kernel_tensors(layer, info)
                if info.can_load() or info.kernel_tensors is not None:
                    info.reset()
            model._do_torchao_reload = getattr(model, "_original_do_torchao_reload", False)
        self._begun.clear()

    def load(self, weights: Weights) -> None:
        """Keeps copies of what goes to reloaded layers until one is complete: these may be views of a ring.

        @raises RuntimeError: a model writes into such a layer without its loader, which would be lost
        """
        self._begin()
        own = weights if self._looked is not None else [(name, tensor.clone()) for name, tensor in weights]
        with self._guard:
            for model in self._models:
                model.load_weights(iter(own))

    def _begin(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if self._begun:
            return
        if self._looked is None:
            refuse_shared(self._models, changed_layers(self._models))
        for model in self._models:
            self._begun.append(model)
            if self._looked is None:
                initialize_layerwise_reload(model)
                for layer in model.modules():
                    self._wrap(layer)
            else:
                self._begin_converted(model, self._looked)

    def _begin_converted(self, model: torch.nn.Module, looked: Looked) -> None:
        """As vLLM's `initialize_layerwise_reload`, but of converted layers only."""
        from vllm.model_executor.model_loader.reload.layerwise import (
            get_layer_params_buffers,
            get_layerwise_info,
            initialize_online_processing,
            restore_layer_on_meta,
        )

        model._original_do_torchao_reload = getattr(model, "_do_torchao_reload", False)
        model._do_torchao_reload = False
        for layer in model.modules():
            info = get_layerwise_info(layer)
            if layer not in looked.converted or info.can_load():
                continue
            info.kernel_tensors = get_layer_params_buffers(layer)
            info.kernel_non_persistent_buffers = set(layer._non_persistent_buffers_set)
            restore_layer_on_meta(layer, info)
            initialize_online_processing(layer)
            self._wrap(layer)
        self._place_loadable(model, looked)

    def _place_loadable(self, model: torch.nn.Module, looked: Looked) -> None:
        """In the other layers. Their processing has made parameters anew that know no more how they are loaded: others of the
        same memory, as they were made, take their place."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for layer in model.modules():
            made, _ = get_layerwise_info(layer).restore_metadata
            if not made or layer in looked.converted:
                continue
            self._running.append((layer, dict(layer._parameters)))
            for name, before in made.items():
                layer._parameters[name] = _loadable(layer, before, layer._parameters[name])

    def _place_running(self) -> None:
        # one that two models have is in it twice
        for layer, parameters in reversed(self._running):
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
            with self._aside(taken), self._guard.off():
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
        partly: dict[str, int] = {}
        for number, model in enumerate(self._begun):
            partly |= self._require_whole(number, model)
        for model in self._begun:
            self._finalize(model)
        if self._looked is not None:
            for model in self._models:
                self._process_others(model, self._looked)
        self._partly |= partly

    def _require_whole(self, number: int, model: torch.nn.Module) -> dict[str, int]:
        """What was loaded of layers that are not whole."""
        from vllm.model_executor.model_loader import utils
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
        from vllm.model_executor.model_loader.reload.meta import SKIP_TENSORS

        partly: dict[str, int] = {}
        # of their scales vLLM knows what one that is missing means
        attentions = set(_of_kinds(model, utils, _ATTENTIONS))
        for path, layer in model.named_modules():
            info = get_layerwise_info(layer)
            if layer in attentions or not info.can_load() or not 0 < info.load_numel < info.load_numel_total:
                continue
            loaded = {name for name, _ in info.loaded_weights}
            wanted = {name for name, value in layer._parameters.items() if value is not None} - set(SKIP_TENSORS)
            missing = sorted(wanted - loaded)
            if missing:
                raise RuntimeError(f"{path}: the update has {', '.join(sorted(loaded))}, but not {', '.join(missing)}")
            key = f"{number}:{path}"
            before = self._partly.get(key, info.load_numel)
            if before != info.load_numel:
                raise RuntimeError(f"{path}: the update has {info.load_numel} items of its weights, the last one had {before}")
            partly[key] = before
        return partly

    def _finalize(self, model: torch.nn.Module) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(model, self._config)
        if self._looked is None:
            # which it leaves out
            self._derive(model, "MMEncoderAttention")

    def _process_others(self, model: torch.nn.Module, looked: Looked) -> None:
        """What vLLM's processing after loading does, but for the layers that have been processed already, and for those that
        need none for new weights: what would be made anew for them may be what a CUDA graph runs on."""
        for layer in processed_layers(model):
            known = looked.others.get(layer)
            if layer not in looked.converted and (known is None or known != known_parameters(layer)):
                process_layer(layer)
        self._derive(model, *_ATTENTIONS, "MMEncoderAttention")

    def _derive(self, model: torch.nn.Module, *attentions: str) -> None:
        """Modules that make something of the weights of others do it again."""
        from vllm.model_executor.model_loader import utils

        for module in _of_kinds(model, utils, attentions):
            if hasattr(module, "process_weights_after_loading"):
                module.process_weights_after_loading(self._config.dtype)
        for module in _of_kinds(model, utils, ("HpcModule",)):
            module.process_weights_after_loading(model)


class _MetaGuard(TorchDispatchMode):
    """Finds weights that a model copies into a layer that is reloaded without vLLM's loader: they would go nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self._is_off = False

    @contextmanager
    def off(self) -> Iterator[None]:
        before, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        is_copy = func is torch.ops.aten.copy_.default and not self._is_off
        if is_copy and args[0].is_meta and not args[1].is_meta:
            shape = tuple(args[0].shape)
            raise RuntimeError(f"the model loads a weight of shape {shape} in a way that vLLM's reload does not see")
        return func(*args, **(kwargs or {}))


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
