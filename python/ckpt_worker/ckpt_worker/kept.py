"""What a layer and its method know: puts back what a trial has changed of it."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .copies import bytes_of

# of a method that has taken the place of another one
_BEFORE = "old_quant_method"
# from the layer's attributes to its kernel, what runs that, its experts, their configuration, a description in it, a tensor
_DEPTH_MAX = 7
_OBJECTS_MAX = 4096
# of memory beside the layer's own
_BYTES_MAX = 256 * 2**20
_OTHERS = (torch.nn.Module, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)
_CONTAINERS = (list, tuple, set)


class NotRestored(RuntimeError):
    """The layer may hold what was tried."""


@contextmanager
def kept(layer: torch.nn.Module) -> Iterator[None]:
    """Afterwards the layer's attributes, those of its method and of what hangs on that, and the contents of all tensors there
    are what they were, at the addresses where they were. Other modules are left alone.

    @raises RuntimeError: before anything, where there is too much
    @raises NotRestored: what was there cannot be put back
    """
    state = _State(layer)
    try:
        yield
    finally:
        try:
            with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                state.restore()
        except Exception as error:
            raise NotRestored(f"a layer cannot be put back: {type(error).__name__}: {error}") from error


def known_parameters(layer: torch.nn.Module) -> list[int]:
    """Addresses of tensors that the layer's method, and what hangs on that, know of and that are memory of its parameters.
    Where it knows others in their place, as after a reload by vLLM, it does not see new weights that come to the parameters."""
    with torch._C.DisableTorchFunctionSubclass():
        storages = {one.untyped_storage()._cdata for one in layer._parameters.values() if one is not None}
        own, *methods = _roots(layer)
        walk = _Walk([{name: value for name, value in own.items() if name != "_parameters"}, *methods])
        return sorted(one.data_ptr() for one in walk.tensors if one.untyped_storage()._cdata in storages)


class _Walk:
    """Goes from attribute to attribute, the nearest first, but not into other modules."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[list[Any]] = []
        self.tensors: list[torch.Tensor] = []
        # ids last as long as what they are of
        self._seen: dict[int, Any] = {}
        self._next: list[Any] = list(roots)
        for _ in range(_DEPTH_MAX):
            now, self._next = self._next, []
            for value in now:
                self._look(value)

    def _look(self, value: Any) -> None:
        if isinstance(value, (*_PLAIN, *_OTHERS)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if len(self._seen) > _OBJECTS_MAX:
            raise RuntimeError("its method knows too many objects")
        if isinstance(value, torch.Tensor):
            if not value.is_meta:
                self.tensors.append(value)
        elif isinstance(value, dict):
            self.dicts.append(value)
            self._next += value.values()
        elif isinstance(value, _CONTAINERS):
            if isinstance(value, list):
                self.lists.append(value)
            self._next += value
        elif hasattr(value, "__dict__"):
            self._look(vars(value))


def methods_of(layer: torch.nn.Module) -> list[Any]:
    """The one that runs the layer, then that which it has taken the place of, and so on: the last one has processed it when it
    was loaded."""
    methods: list[Any] = []
    method = getattr(layer, "quant_method", None)
    while method is not None:
        methods.append(method)
        method = getattr(method, _BEFORE, None)
    return methods


def _roots(layer: torch.nn.Module) -> list[dict[str, Any]]:
    """Of the layer and its methods, some of which are modules."""
    return [vars(layer), *(vars(method) for method in methods_of(layer))]


class _State:
    def __init__(self, layer: torch.nn.Module):
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._contents: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        own = [one for one in (*layer._parameters.values(), *layer._buffers.values()) if one is not None]
        self._bytes_left = _BYTES_MAX
        with torch._C.DisableTorchFunctionSubclass():
            self._bytes_left += sum(one.untyped_storage().nbytes() for one in own)
            walk = _Walk(_roots(layer))
            for tensor in walk.tensors:
                self._keep(tensor)
        self._dicts = [(one, dict(one)) for one in walk.dicts]
        self._lists = [(one, list(one)) for one in walk.lists]

    def _keep(self, tensor: torch.Tensor) -> None:
        self._tensors.append((tensor, tensor.data))
        storage = tensor.untyped_storage()
        if storage._cdata in self._contents:
            return
        self._bytes_left -= storage.nbytes()
        if self._bytes_left < 0:
            raise RuntimeError("its method knows too much memory")
        contents = bytes_of(storage)
        self._contents[storage._cdata] = contents, contents.clone()

    def restore(self) -> None:
        for held, was in self._dicts:
            if held.keys() != was.keys() or any(held[key] is not one for key, one in was.items()):
                held.clear()
                held.update(was)
        for value, items in self._lists:
            if len(value) != len(items) or any(has is not had for has, had in zip(value, items)):
                value[:] = items
        for tensor, data in self._tensors:
            tensor.data = data
        for contents, before in self._contents.values():
            contents.copy_(before)
