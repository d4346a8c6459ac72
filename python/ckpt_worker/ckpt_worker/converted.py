"""Which layers of a vLLM model have running tensors that are not those that weights are loaded into. Facts of vLLM 0.26.0.

The processing after loading converts the weights of such a layer: it repacks them, transposes scales or quantises anew. Of all
others it may make what it likes, but not other weights: that is tried with other contents before it is relied on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .fingerprint import fingerprint_of
from .kept import NotRestored, kept, known_parameters, methods_of
from .watch import ContentWatch

# a scale of block-quantised weights is none of these powers of two, whatever it is rounded to
_LEAST, _MOST = 0.6, 0.9
# the bytes of 8-bit numbers from 0 on that are numbers in each of torch's formats
_BYTES = 0x78

# of layers whose checkpoint is not quantised: their processing does nothing any more
_QUANTISED = "_already_called_process_weights_after_loading"
_CONVERTS = "its processing converts weights"

Layers = weakref.WeakKeyDictionary[torch.nn.Module, str]


@dataclass(frozen=True)
class Looked:
    """What is known of a model's layers. It keeps none of them."""

    #: with the reason: vLLM has to reload them
    converted: Layers = field(default_factory=weakref.WeakKeyDictionary)
    #: of the others, what `known_parameters` is after processing; None: it looks at weights, and has to do so again at new ones
    others: weakref.WeakKeyDictionary[torch.nn.Module, list[int] | None] = field(default_factory=weakref.WeakKeyDictionary)


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


def look_at_layers(models: Sequence[torch.nn.Module], device: Any) -> Looked:
    """Converted are `changed_layers`, and those whose processing makes other weights of what they hold, or cannot be tried.
    Nothing of a layer is another one afterwards.

    @param device: of the engine
    @raises RuntimeError: a converted one cannot be reloaded
    @raises NotRestored: what was tried of one is still there
    """
    looked = Looked(changed_layers(models))
    for model in models:
        paths = {layer: path for path, layer in model.named_modules()}
        for layer in processed_layers(model):
            if layer not in looked.converted:
                reason, known = _try(layer, device)
                if reason is not None:
                    looked.converted[layer] = f"{paths[layer]}: {reason}"
                else:
                    looked.others[layer] = known
            if layer in looked.converted and _is_wrapped(layer):
                words = "vLLM would not process it again: it has put another method there"
                raise RuntimeError(f"{looked.converted[layer]}, and {words}")
    refuse_shared(models, looked.converted)
    return looked


def refuse_shared(models: Sequence[torch.nn.Module], converted: Layers) -> None:
    """@raises RuntimeError: two models have a layer that is converted: vLLM would load it twice, and not convert it again"""
    owners: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()
    for number, model in enumerate(models):
        for layer in model.modules():
            if owners.setdefault(layer, number) != number and layer in converted and _parameters(layer):
                raise RuntimeError(
                    f"{converted[layer]}, and two models have it: vLLM would load it again without converting it"
                )


def has_wrapped(models: Sequence[torch.nn.Module]) -> bool:
    """Whether vLLM's processing after loading leaves out a layer that it has processed before: its experts run by another
    method since (`FusedMoEModularMethod`)."""
    return any(_is_wrapped(layer) for model in models for layer in model.modules())


def _is_wrapped(layer: torch.nn.Module) -> bool:
    return len(methods_of(layer)) > 1


def processed_layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Those with weights that vLLM processes after loading."""
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    for layer in model.modules():
        if isinstance(getattr(layer, "quant_method", None), QuantizeMethodBase) and _parameters(layer):
            yield layer


def process_layer(layer: torch.nn.Module) -> None:
    """As vLLM does it after loading, where no weights are offloaded."""
    layer.quant_method.process_weights_after_loading(layer)
    if hasattr(layer, "update_param_tp_status"):
        layer.update_param_tp_status()


def _try(layer: torch.nn.Module, device: Any) -> tuple[str | None, list[int] | None]:
    """Why its weights are converted; None: processing it leaves each what and where it is. And what `Looked.others` has of
    it."""
    parameters = _parameters(layer)
    if hasattr(layer, _QUANTISED):
        return "vLLM quantises it while it is loaded", None
    if not all(one.is_floating_point() for one in parameters.values()):
        return "it holds weights that are no floating-point numbers", None
    if any(one.device.type != device.type for one in parameters.values()):
        return "its weights are not on the engine's device", None
    try:
        with torch.no_grad():
            with kept(layer):
                _fill(list(parameters.values()))
                converts, derives = _process_watched(layer, parameters)
            if converts:
                return _CONVERTS, None
            # it may go by what the weights are
            with kept(layer):
                converts, also_derives = _process_watched(layer, parameters)
                known = known_parameters(layer)
    except NotRestored:
        raise
    except Exception as error:
        return f"its processing cannot be tried: {type(error).__name__}: {error}", None
    return (_CONVERTS if converts else None), (None if derives or also_derives else known)


def _process_watched(layer: torch.nn.Module, parameters: dict[str, torch.Tensor]) -> tuple[bool, bool]:
    """Whether other weights have come of it, and whether it has looked at them."""
    before = {name: _state(one) for name, one in parameters.items()}
    with ContentWatch([one.untyped_storage() for one in parameters.values()]) as watch:
        methods_of(layer)[-1].process_weights_after_loading(layer)
    return {name: _state(one) for name, one in _parameters(layer).items()} != before, watch.touched


def _fill(parameters: Sequence[torch.Tensor]) -> None:
    """With other numbers, no two of them the same. The generators of torch, which the engine samples with, are left alone."""
    generator = torch.Generator(parameters[0].device).manual_seed(0)
    for parameter in parameters:
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
