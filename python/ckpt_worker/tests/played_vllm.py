"""Stand-ins for the parts of vLLM that loading goes through: they do the same to small layers."""

from __future__ import annotations

import inspect
import sys
import types
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

UUID = "GPU-0"
_LOADER = "vllm.model_executor.model_loader"
_WRAPPER = "online_process_loader"


class QuantizeMethodBase:
    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Nothing, unless a method says otherwise."""


# of those that are not loaded in a reload
SKIP_TENSORS = {"_expert_map"}


def set_current_vllm_config(_config: Any) -> Any:
    return nullcontext()


class Attention(torch.nn.Module):
    pass


class LayerInfo:
    """What is kept of a layer: its parameters as they were made, and those that run while it is reloaded."""

    def __init__(self) -> None:
        self.restore_metadata: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        self.reset()

    def reset(self) -> None:
        self.load_numel = 0
        self.load_numel_total: int | None = None
        self.loaded_weights: list[tuple[str, Any]] = []
        self.kernel_tensors: Any = None
        self.kernel_non_persistent_buffers: set[str] = set()

    def can_load(self) -> bool:
        return self.load_numel_total is not None


_infos: weakref.WeakKeyDictionary[torch.nn.Module, LayerInfo] = weakref.WeakKeyDictionary()


def get_layerwise_info(layer: torch.nn.Module) -> LayerInfo:
    return _infos.setdefault(layer, LayerInfo())


def get_layer_params_buffers(layer: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(layer._parameters), dict(layer._buffers)


def record_metadata_for_reloading(model: torch.nn.Module) -> None:
    for layer in model.modules():
        made = {name: _as_meta(one) for name, one in layer._parameters.items() if one is not None}
        get_layerwise_info(layer).restore_metadata = (made, {})


def _as_meta(tensor: torch.Tensor) -> torch.nn.Parameter:
    meta = torch.nn.Parameter(tensor.data.to("meta"), requires_grad=False)
    meta.__dict__.update(tensor.__dict__)
    return meta


def restore_layer_on_meta(layer: torch.nn.Module, info: LayerInfo) -> None:
    layer._parameters.clear()
    # the very ones, as vLLM has it: their loaders stay
    layer._parameters.update(info.restore_metadata[0])  # type: ignore[arg-type]


def initialize_online_processing(layer: torch.nn.Module) -> None:
    info = get_layerwise_info(layer)
    info.load_numel_total = sum(one.numel() for one in layer._parameters.values() if one is not None)
    for name, parameter in layer._parameters.items():
        assert parameter is not None
        if parameter.weight_loader.__name__ != _WRAPPER:  # type: ignore[attr-defined]
            parameter.weight_loader = _online(layer, name, _get_original_loader(parameter))  # type: ignore[attr-defined]


def _online(layer: torch.nn.Module, name: str, loader: Callable[..., object]) -> Callable[..., object]:
    info = get_layerwise_info(layer)

    def online_process_loader(*args: Any) -> None:
        if not info.can_load():
            return
        bound = inspect.signature(loader).bind(*args)
        info.loaded_weights.append((name, bound))
        info.load_numel += args[1].numel()
        if info.load_numel == info.load_numel_total:
            _process(layer, info)

    online_process_loader.__wrapped__ = loader  # type: ignore[attr-defined]
    return online_process_loader


def _get_original_loader(parameter: Any) -> Any:
    loader = parameter.weight_loader
    while loader.__name__ == _WRAPPER:
        loader = loader.__wrapped__
    return loader


def _process(layer: torch.nn.Module, info: LayerInfo) -> None:
    for name, meta in list(layer._parameters.items()):
        assert meta is not None
        made = torch.nn.Parameter(torch.empty_like(meta, device="cpu"), requires_grad=False)
        made.__dict__.update(meta.__dict__)
        made.weight_loader = _get_original_loader(meta)  # type: ignore[attr-defined]
        layer._parameters[name] = made
    for name, bound in info.loaded_weights:
        parameter: Any = layer._parameters[name]
        parameter.weight_loader(parameter, *bound.args[1:])
    method = getattr(layer, "quant_method", None)
    if method is not None:
        method.process_weights_after_loading(layer)
    for name, running in info.kernel_tensors[0].items():
        running.data.copy_(layer._parameters[name])
    _place_kernel_tensors(layer, info)
    info.reset()


def _place_kernel_tensors(layer: torch.nn.Module, info: LayerInfo) -> None:
    layer._parameters.clear()
    layer._parameters.update(info.kernel_tensors[0])


def restore_layer_refs(tensor: torch.Tensor, _layer: torch.nn.Module) -> torch.Tensor:
    """Loaders of these layers are no methods."""
    return tensor


def initialize_layerwise_reload(model: torch.nn.Module) -> None:
    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.kernel_tensors = get_layer_params_buffers(layer)
        restore_layer_on_meta(layer, info)
        initialize_online_processing(layer)


def finalize_layerwise_reload(model: torch.nn.Module, config: Any) -> None:
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            _place_kernel_tensors(layer, info)
        if info.can_load() and isinstance(layer, Attention):
            layer.process_weights_after_loading(config.dtype)  # type: ignore[operator]
        info.reset()


def process_weights_after_loading(model: torch.nn.Module, config: Any, _device: Any) -> None:
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, QuantizeMethodBase):
            method.process_weights_after_loading(layer)
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.process_weights_after_loading(config.dtype)  # type: ignore[operator]


def stand_ins() -> dict[str, Any]:
    """By the names of the modules whose places they take."""
    here = sys.modules[__name__]
    platform = types.SimpleNamespace(get_device_uuid=lambda _index: UUID)
    names = ("vllm", "vllm.model_executor", _LOADER, "vllm.model_executor.layers", "vllm.model_executor.layers.quantization")
    return {
        **{name: types.ModuleType(name) for name in names},
        "vllm.model_executor.layers.quantization.base_config": here,
        f"{_LOADER}.reload": here,
        f"{_LOADER}.reload.layerwise": here,
        f"{_LOADER}.reload.sanitize": here,
        f"{_LOADER}.utils": here,
        f"{_LOADER}.reload.meta": here,
        "vllm.config": here,
        "vllm.platforms": types.SimpleNamespace(current_platform=platform),
    }
