"""Where an engine's tensors are, and whether they are still there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from itertools import count
from typing import Any

import torch

from .copies import bytes_of

_BUFFER_ID = 7  # CU_POINTER_ATTRIBUTE_BUFFER_ID

# address, bytes, and the number that the driver gives each allocation only once
Place = tuple[int, int, int]
# of a tensor: name, address, shape, strides, dtype
View = tuple[str, int, tuple[int, ...], tuple[int, ...], torch.dtype]
# of a storage's tensors
Views = frozenset[View]
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
        # names
        self._seen: list[str] = []
        # of each allocation: its number, and an address in it
        self._allocations: dict[int, int] = {}
        # with their addresses
        self._held: list[tuple[torch.Tensor, int]] = []
        self.storages: dict[int, torch.UntypedStorage] = {}

    def look(self, ring: torch.Tensor | None = None) -> bool:
        """Whether something is at another place than when this was called last. A tensor of the model in the ring, which is
        written over, is taken out of it. What is found is held until `let_go`.

        @param ring: all of its bytes
        """
        # vLLM's parameters have one in Python, which is called for everything that is asked of them
        with torch._C.DisableTorchFunctionSubclass():
            return self._look(ring)

    def _look(self, ring: torch.Tensor | None) -> bool:
        in_ring = None if ring is None else ring.untyped_storage()._cdata
        storages: dict[Place, torch.UntypedStorage] = {}
        views: dict[Place, set[Any]] = {}
        # by the storage's own address
        known: dict[int, set[Any]] = {}
        self._held, self._seen, self._allocations = [], [], {}
        for name, tensor in self._tensors():
            if tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata == in_ring:
                tensor.data = tensor.data.clone()
                storage = tensor.untyped_storage()
            of_storage = known.get(storage._cdata)
            if of_storage is None:
                place = _place(storage)
                storages[place] = storage
                of_storage = known[storage._cdata] = views.setdefault(place, set())
                self._allocations.setdefault(place[2], place[0])
            view = _view(name, tensor)
            of_storage.add(view)
            self._seen.append(name)
            self._held.append((tensor, view[1]))
        now = {place: frozenset(of_place) for place, of_place in views.items()}
        moved = now != self._views
        self._views = now
        self._numbers = {place: self._numbers.get(place) or next(self._next) for place in storages}
        self.storages = {self._numbers[place]: one for place, one in storages.items()}
        return moved

    def are_same(self, numbers: Iterable[int]) -> bool:
        """Whether these storages are where the last look has found them, with the same tensors in them, and all names are those
        that it has found. Takes less than `look`, and does not mind where other storages are. What is found in these is held
        until `let_go`, but not as `storages`."""
        wanted = set(numbers)
        places = {place for place, number in self._numbers.items() if number in wanted}
        if len(places) < len(wanted):
            return False
        found: dict[tuple[int, int], set[View]] = {place[:2]: set() for place in places}
        names: list[str] = []
        self._held = []
        with torch._C.DisableTorchFunctionSubclass():
            for name, tensor in self._tensors():
                if tensor.is_meta:
                    continue
                names.append(name)
                storage = tensor.untyped_storage()
                views = found.get((storage.data_ptr(), storage.nbytes()))
                if views is not None:
                    view = _view(name, tensor)
                    views.add(view)
                    self._held.append((tensor, view[1]))
        held = all(found[place[:2]] == self._views[place] for place in places)
        return held and names == self._seen and self._are_allocated({place[2] for place in places})

    def _are_allocated(self, allocations: Iterable[int]) -> bool:
        """The driver gives memory back as whole allocations."""
        return all(number == _buffer_id(self._allocations[number]) for number in allocations if number != 0)

    @property
    def names(self) -> set[str]:
        """Of the tensors that were seen the last time."""
        return set(self._seen)

    @property
    def unmoved(self) -> bool:
        """Whether all that the last look has found is held still, where it was then. Does not look for what has come since."""
        with torch._C.DisableTorchFunctionSubclass():
            return bool(self._held) and all(tensor.data_ptr() == address for tensor, address in self._held)

    def let_go(self) -> None:
        """The engine may free its memory."""
        self.storages = {}
        self._held = []

    def views(self, numbers: Iterable[int]) -> dict[int, Views | None]:
        """What was seen of these the last time; None: it is not there any more."""
        places = {number: place for place, number in self._numbers.items()}
        return {number: self._views[places[number]] if number in places else None for number in numbers}

    def bytes(self) -> dict[int, torch.Tensor]:
        """All bytes of each storage."""
        return {number: bytes_of(storage) for number, storage in self.storages.items()}


def _view(name: str, tensor: torch.Tensor) -> View:
    return name, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


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
