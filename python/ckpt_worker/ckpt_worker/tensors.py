"""The tensors that a model holds: what weights may be loaded into."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch

_INDEX_WORDS = ("expert", "physical", "logical")
_INDEX_ITEMS_MAX = 65_536
# of attributes, in each module
_HOLDERS = 3

Models = Sequence[torch.nn.Module | None]
Named = list[tuple[str, torch.Tensor]]


class ModelTensors:
    """Parameters, buffers and tensors that are plain attributes of the modules of models, with names.

    An engine stands still while they are looked for, and has thousands of attributes: where they are is kept. Each time all
    modules and the types of all attributes are compared with those of the last time (the 14,489 of vLLM's Qwen3-8B: 2.2 ms
    beside an H200); a tensor itself is always taken from where it is now.

    @param models: those that the engine has now; they are not kept
    @param without: modules whose own tensors are left out, always the same ones
    """

    def __init__(self, models: Callable[[], Models], without: Collection[torch.nn.Module] = ()):
        self._models = models
        self._without = without
        self._places: _Places | None = None
        self._standing: tuple[_Places, list[dict[str, Any]]] | None = None
        self._stands = False

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Around several looks between which the engine does nothing: the modules are gone over once."""
        self._stands = True
        try:
            yield
        finally:
            self._stands, self._standing = False, None

    def __call__(self) -> Named:
        places, held = self._look()
        return [(slot.name, held[slot.holder][slot.key]) for slot in places.tensors]

    def index_contents(self) -> tuple[int, ...]:
        """What says which expert goes where: small integer tensors of that name, which are buffers or plain attributes of the
        modules, or plain attributes of those."""
        places, held = self._look()
        found: list[torch.Tensor] = []
        for slot in places.indices:
            value = held[slot.holder][slot.key]
            candidates = (value,) if isinstance(value, torch.Tensor) else vars(value).values()
            found += [one for one in candidates if isinstance(one, torch.Tensor) and not one.is_floating_point()]
        small = [one for one in found if one.device.type != "meta" and 0 < one.numel() <= _INDEX_ITEMS_MAX]
        if not small:
            return ()
        return tuple(torch.cat([one.detach().reshape(-1).to(torch.int64) for one in small]).tolist())

    def _look(self) -> tuple[_Places, list[dict[str, Any]]]:
        """With what holds attributes, as the places count it."""
        if self._standing is None:
            found = self._go_over()
            if not self._stands:
                return found
            self._standing = found
        return self._standing

    def _go_over(self) -> tuple[_Places, list[dict[str, Any]]]:
        models = self._models()
        held = None if self._places is None else self._places.held(models)
        if self._places is None or held is None:
            self._places = _Places(models, self._without)
            held = self._places.held(models)
            assert held is not None, "the model changes while it is looked at"
        return self._places, held


class _Slot(NamedTuple):
    name: str
    holder: int
    key: str


class _Places:
    """Where the tensors of some models are. Keeps none of them."""

    def __init__(self, models: Models, without: Collection[torch.nn.Module]):
        self.tensors: list[_Slot] = []
        self.indices: list[_Slot] = []
        numbers: dict[int, int] = {}
        modules: list[torch.nn.Module] = []
        for number, model in enumerate(models):
            for path, module in () if model is None else model.named_modules():
                for at, held in enumerate(_holders(module, without)):
                    self._find(f"{number}:{path}", len(modules) * _HOLDERS + at, held)
                numbers.setdefault(id(module), len(modules))
                modules.append(module)
        self._roots = [None if model is None else numbers[id(model)] for model in models]
        self._modules = [weakref.ref(module) for module in modules]
        self._children = [None if child is None else numbers[id(child)] for child in _children(modules)]
        self._without = without
        self._types = _types(self._all_holders(modules))

    def _find(self, path: str, holder: int, held: dict[str, Any]) -> None:
        for key, value in held.items():
            slot = _Slot(f"{path}.{key}", holder, key)
            is_tensor = isinstance(value, torch.Tensor)
            if is_tensor:
                self.tensors.append(slot)
            # a parameter is no index
            if holder % _HOLDERS == 0 or not _names_index(key):
                continue
            if is_tensor or (hasattr(value, "__dict__") and not callable(value)):
                self.indices.append(slot)

    def held(self, models: Models) -> list[dict[str, Any]] | None:
        """None: it may be that tensors have come, gone or moved to another attribute."""
        modules: list[Any] = [module() for module in self._modules]
        roots = [None if number is None else modules[number] for number in self._roots]
        children = [None if number is None else modules[number] for number in self._children]
        if None in modules or not _are_same(roots, models) or not _are_same(children, list(_children(modules))):
            return None
        held = self._all_holders(modules)
        if _types(held) != self._types:
            return None
        slots = chain(self.tensors, self.indices)
        return held if all(slot.key in held[slot.holder] for slot in slots) else None

    def _all_holders(self, modules: Sequence[torch.nn.Module]) -> list[dict[str, Any]]:
        return list(chain.from_iterable(_holders(module, self._without) for module in modules))


def _holders(module: torch.nn.Module, without: Collection[torch.nn.Module]) -> tuple[dict[str, Any], ...]:
    """`_HOLDERS` of them."""
    if module in without:
        return {}, {}, {}
    return module._parameters, module._buffers, vars(module)


def _types(held: list[dict[str, Any]]) -> list[type]:
    """Of all attributes."""
    # a scripted module holds them in something that is no dict
    return list(map(type, chain.from_iterable(one.values() for one in held)))


def _children(modules: Sequence[torch.nn.Module]) -> Iterator[torch.nn.Module | None]:
    return chain.from_iterable(module._modules.values() for module in modules)


def _are_same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _names_index(name: str) -> bool:
    return any(word in name for word in _INDEX_WORDS)


def model_tensors(*models: torch.nn.Module | None) -> Named:
    """See `ModelTensors`."""
    return ModelTensors(lambda: models)()


def index_contents(*models: torch.nn.Module | None) -> tuple[int, ...]:
    """See `ModelTensors.index_contents`."""
    return ModelTensors(lambda: models).index_contents()
