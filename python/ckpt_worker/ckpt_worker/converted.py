"""Which layers of a vLLM model have running tensors that are not those that weights are loaded into. Facts of vLLM 0.26.0.

The processing after loading converts the weights of such a layer: it repacks them, transposes scales or quantises anew. Of all
others it may make what it likes, but not other weights: that is tried with other contents before it is relied on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .fingerprint import fingerprint_of

# a scale of block-quantised weights is none of these powers of two, whatever it is rounded to
_LEAST, _MOST = 0.6, 0.9
# the bytes of 8-bit numbers from 0 on that are numbers in each of torch's formats
_BYTES = 0x78

# of layers whose checkpoint is not quantised: their processing does nothing any more
_QUANTISED = "_already_called_process_weights_after_loading"

# what another method has taken the place of
_BEFORE = "old_quant_method"

# with the reasons; a model that the engine gives up goes with them
Layers = weakref.WeakKeyDictionary[torch.nn.Module, str]


def changed_layers(models: Sequence[torch.nn.Module]) -> Layers:
    """Those with a parameter of another form than when the model was made, so that weights cannot be loaded into it, and which
    parameter that is."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    layers: Layers = weakref.WeakKeyDictionary()
    with torch._C.DisableTorchFunctionSubclass():
        for model in models:
            for path, layer in model.named_modules():
                made, _ = get_layerwise_info(layer).restore_metadata
                for name, before in made.items():
                    now = layer._parameters.get(name)
                    where = f"{path}.{name}" if path else name
                    if now is None:
                        layers[layer] = f"{where} is gone since the engine has processed it"
                    elif _form(now) != _form(before):
                        layers[layer] = f"{where} has another form since the engine has processed it"
    return layers


def converted_layers(models: Sequence[torch.nn.Module]) -> Layers:
    """Beside `changed_layers` those whose processing makes other weights of what they hold, or cannot be tried. The contents of
    all layers are what they were afterwards.

    @raises RuntimeError: one of them cannot be processed again
    """
    layers = changed_layers(models)
    for model in models:
        paths = {layer: path for path, layer in model.named_modules()}
        for layer in processed_layers(model):
            reason = None if layer in layers else _why_converted(layer)
            if reason is not None:
                layers[layer] = f"{paths[layer]}: {reason}"
            if layer in layers and _is_wrapped(layer):
                raise RuntimeError(
                    f"{layers[layer]}, and vLLM would not process it again: it has put another method there"
                )
    return layers


def has_wrapped(models: Sequence[torch.nn.Module]) -> bool:
    """Whether vLLM's processing after loading leaves out a layer that it has processed before: its experts run by another method
    since (`FusedMoEModularMethod`)."""
    return any(_is_wrapped(layer) for model in models for layer in model.modules())


def _is_wrapped(layer: torch.nn.Module) -> bool:
    return hasattr(getattr(layer, "quant_method", None), _BEFORE)


def _process_as_first(layer: torch.nn.Module) -> None:
    """By the method that has processed it when it was loaded."""
    method: Any = layer.quant_method
    while hasattr(method, _BEFORE):
        method = getattr(method, _BEFORE)
    method.process_weights_after_loading(layer)


def processed_layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Those with weights that vLLM processes after loading."""
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    for layer in model.modules():
        if isinstance(getattr(layer, "quant_method", None), QuantizeMethodBase) and _parameters(layer):
            yield layer


def process_layer(layer: torch.nn.Module) -> None:
    """As vLLM does it after loading."""
    layer.quant_method.process_weights_after_loading(layer)
    if hasattr(layer, "update_param_tp_status"):
        layer.update_param_tp_status()


def _why_converted(layer: torch.nn.Module) -> str | None:
    """None: processing it leaves every weight what and where it is."""
    parameters = _parameters(layer)
    if hasattr(layer, _QUANTISED):
        return "vLLM quantises it while it is loaded"
    if not all(one.is_floating_point() for one in parameters.values()):
        return "it holds weights that are no floating-point numbers"
    try:
        with torch.no_grad(), _kept(layer):
            for parameter in parameters.values():
                _fill(parameter)
            if _moves(layer, parameters):
                return "its processing converts weights"
        # what it derives of them is to be of the right ones again
        if _moves(layer, parameters):
            return "its processing converts weights"
    except Exception as error:
        return f"its processing cannot be tried: {type(error).__name__}: {error}"
    return None


def _moves(layer: torch.nn.Module, parameters: dict[str, torch.Tensor]) -> bool:
    before = {name: _state(one) for name, one in parameters.items()}
    _process_as_first(layer)
    return {name: _state(one) for name, one in _parameters(layer).items()} != before


@contextmanager
def _kept(layer: torch.nn.Module) -> Iterator[None]:
    """The layer's tensors, and their contents, are what they were afterwards."""
    held = dict(layer._parameters), dict(layer._buffers)
    copies = [(one, one.detach().clone()) for of_kind in held for one in of_kind.values() if one is not None]
    try:
        yield
    finally:
        layer._parameters.clear()
        layer._buffers.clear()
        layer._parameters.update(held[0])
        layer._buffers.update(held[1])
        for one, copy in copies:
            one.data.copy_(copy)


def _fill(parameter: torch.Tensor) -> None:
    """With other numbers. The generators of torch, which the engine samples with, are left alone."""
    generator = torch.Generator(parameter.device).manual_seed(0)
    if parameter.dtype.itemsize == 1:
        parameter.data.view(torch.uint8).random_(0, _BYTES, generator=generator)
    else:
        parameter.data.uniform_(_LEAST, _MOST, generator=generator)


def _parameters(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one for name, one in layer._parameters.items() if one is not None}


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _state(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (*_form(tensor), tensor.data_ptr(), fingerprint_of(tensor))
