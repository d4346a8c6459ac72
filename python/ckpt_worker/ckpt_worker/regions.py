"""Where an engine's tensors are, and whether they are still there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import count
from typing import Any

import torch

from .copies import bytes_of

_BUFFER_ID = 7  # CU_POINTER_ATTRIBUTE_BUFFER_ID
_INDEX_WORDS = ("expert", "physical", "logical")
_INDEX_ITEMS_MAX = 65_536
_KEPT = 4096

# address, bytes, and the number that the driver gives each allocation only once
Place = tuple[int, int, int]
# of its tensors: name, address, shape, strides, dtype
Views = frozenset[tuple[str, int, tuple[int, ...], tuple[int, ...], torch.dtype]]
Named = Iterable[tuple[str, torch.Tensor]]


class Regions:
    """Storages of a model's tensors, each with a number that stays its own while it is at the same place.

    @param tensors: gives the model's parameters, buffers and other tensors that its weights may be loaded into, with names
    """

    def __init__(self, tensors: Callable[[], Named]):
        self._tensors = tensors
        self._numbers: dict[Place, int] = {}
        self._next = count(1)
        self._views: dict[Place, Views] = {}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def look(self, ring: torch.Tensor | None = None) -> bool:
        """Whether something is at another place than when this was called last. A tensor of the model in the ring, which is
        written over, is taken out of it.

        @param ring: all of its bytes
        """
        in_ring = None if ring is None else ring.untyped_storage()._cdata
        storages: dict[Place, torch.UntypedStorage] = {}
        views: dict[Place, set[Any]] = {}
        places: dict[int, Place] = {}
        for name, tensor in self._tensors():
            if tensor.device.type == "meta":
                continue
            if tensor.untyped_storage()._cdata == in_ring:
                tensor.data = tensor.data.clone()
            storage = tensor.untyped_storage()
            place = places.get(storage._cdata)
            if place is None:
                place = places[storage._cdata] = _place(storage)
                storages[place] = storage
            view = (name, tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
            views.setdefault(place, set()).add(view)
        now = {place: frozenset(of_place) for place, of_place in views.items()}
        moved = now != self._views
        self._views = now
        self._numbers = {place: self._numbers.get(place) or next(self._next) for place in storages}
        self.storages = {self._numbers[place]: one for place, one in storages.items()}
        return moved

    @property
    def names(self) -> set[str]:
        """Of the tensors that were seen the last time."""
        return {name for views in self._views.values() for name, *_ in views}

    def let_go(self) -> None:
        """The engine may free its memory."""
        self.storages = {}

    def views(self, numbers: Iterable[int]) -> dict[int, Views | None]:
        """What was seen of these the last time; None: it is not there any more."""
        places = {number: place for place, number in self._numbers.items()}
        return {number: self._views[places[number]] if number in places else None for number in numbers}

    def bytes(self) -> dict[int, torch.Tensor]:
        """All bytes of each storage."""
        return {number: bytes_of(storage) for number, storage in self.storages.items()}


def _place(storage: torch.UntypedStorage) -> Place:
    address = storage.data_ptr()
    return address, storage.nbytes(), _buffer_id(address) if storage.device.type == "cuda" else 0


def _buffer_id(address: int) -> int:
    number = ctypes.c_ulonglong(0)
    status = driver().cuPointerGetAttribute(ctypes.byref(number), _BUFFER_ID, ctypes.c_ulonglong(address))
    # an empty storage has no allocation
    return number.value if status == 0 else 0


@cache
def driver() -> ctypes.CDLL:
    """CUDA's. @raises OSError: there is none"""
    return ctypes.CDLL("libcuda.so.1")


def model_tensors(*models: torch.nn.Module | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers and tensors that are plain attributes of the modules: what weights may be loaded into."""
    for number, model in enumerate(models):
        for path, module in () if model is None else model.named_modules():
            for held in (module._parameters, module._buffers, vars(module)):
                # this goes over ten thousands of attributes before each update, while the engine stands still
                if _OTHERS.issuperset(map(type, held.values())):
                    continue
                for name, value in held.items():
                    if isinstance(value, torch.Tensor):
                        yield f"{number}:{path}.{name}", value
                    elif len(_OTHERS) < _KEPT:
                        _OTHERS.add(type(value))


# types that are no tensors
_OTHERS: set[type] = set()


def index_contents(*models: torch.nn.Module | None) -> tuple[int, ...]:
    """What says which expert goes where: small integer tensors of that name, of the modules and of their plain attributes."""
    found: list[torch.Tensor] = []
    for model in models:
        for module in () if model is None else model.modules():
            for held in (module._buffers, vars(module)):
                if _OTHER_NAMES.issuperset(held):
                    continue
                for name, value in held.items():
                    if not _names_index(name):
                        continue
                    inner = vars(value).values() if hasattr(value, "__dict__") and not callable(value) else ()
                    candidates = (value,) if isinstance(value, torch.Tensor) else inner
                    found += [one for one in candidates if isinstance(one, torch.Tensor) and not one.is_floating_point()]
    small = [one for one in found if one.device.type != "meta" and 0 < one.numel() <= _INDEX_ITEMS_MAX]
    if not small:
        return ()
    return tuple(torch.cat([one.detach().reshape(-1).to(torch.int64) for one in small]).tolist())


# of attributes: every module has the same few, and there are thousands of modules
_OTHER_NAMES: set[str] = set()


def _names_index(name: str) -> bool:
    if any(word in name for word in _INDEX_WORDS):
        return True
    if len(_OTHER_NAMES) < _KEPT:
        _OTHER_NAMES.add(name)
    return False
