"""Watches an engine load weights out of the ring, and notes which of its bytes end up where.

A dispatch mode sees every operator of torch that runs in its thread, so it sees `param.copy_(loaded)` as well as the chains
that lead there: slices, transposes, `contiguous`, `cat`. It does not see what Triton kernels, ctypes or `param.data = view` do:
whoever replays a recording has to prove it first (`proof.py`).
"""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .copies import Constant, Copy, simplified
from .origins import UNKNOWN, affine_pieces, origin_in_ring

aten = torch.ops.aten

# what they make has the contents of their inputs, item by item: done to the origins, they give the origins of the result
_MOVES = {
    aten.clone.default,
    aten._to_copy.default,
    aten.cat.default,
    aten.stack.default,
    aten.flip.default,
    aten.roll.default,
    aten.repeat.default,
}

_READ_NOTHING = {aten.record_stream.default}
_CONSTANTS = {aten.zero_.default, aten.fill_.Scalar}
# whoever has their answer can do one thing or the other
_HOST_READS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default}
LAUNCHES = "a Triton kernel runs while it is loaded"
STEERED = "what the engine does depends on what is in its weights"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a list: its bytes are `[offset, offset + bytes)` of the ring."""

    name: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Form:
    """Other bytes of the same number may be of another type, or of another shape, which an engine loads otherwise."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass
class ListRecording:
    """What became of the tensors of one list."""

    tensors: tuple[Tensor, ...]
    #: of each tensor what it was loaded as
    forms: tuple[Form, ...] = ()
    copies: list[Copy] = field(default_factory=list)
    # to be written before the copies are made
    constants: list[Constant] = field(default_factory=list)
    # why a tensor has to take the ordinary path, by its name
    ordinary: dict[str, str] = field(default_factory=dict)
    # what else the engine has done to its tensors: the whole list has to take the ordinary path
    foreign: list[str] = field(default_factory=list)
    # of which something was read
    read: set[str] = field(default_factory=set)
    # that the engine loads itself in every update, whatever else it does with them
    aside: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._by_start = sorted((tensor for tensor in self.tensors if tensor.bytes), key=lambda tensor: tensor.offset)
        self.starts = [tensor.offset for tensor in self._by_start]

    @property
    def reasons(self) -> list[str]:
        """Why the list cannot be replayed; empty: it can."""
        ordinary = [reason for name, reason in self.ordinary.items() if name not in self.aside]
        return [*ordinary, *self.foreign]

    def tensor_at(self, offset: int) -> Tensor:
        """The one that has this byte of the ring."""
        return self._by_start[max(0, bisect_right(self.starts, offset) - 1)]

    def name_at(self, offset: int) -> str:
        """Of the tensor that has this byte of the ring."""
        return self.tensor_at(offset).name

    def names_between(self, first: int, last: int) -> Iterator[str]:
        """Of the tensors that have some of these bytes of the ring, both included."""
        index = max(0, bisect_right(self.starts, first) - 1)
        while index < len(self._by_start) and self._by_start[index].offset <= last:
            yield self._by_start[index].name
            index += 1

    def refuse(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.ordinary.setdefault(name, reason)

    @property
    def ignored(self) -> list[str]:
        """Names that the model has not looked at."""
        return [tensor.name for tensor in self.tensors if tensor.bytes and tensor.name not in self.read]


@dataclass
class _Temporary:
    """A storage that is not the model's and holds bytes of the ring. The storage is kept: its address must not be another's."""

    storage: torch.UntypedStorage
    item: int
    origin: torch.Tensor


class Recorder(TorchDispatchMode):
    """Use it as a context around the engine's own loading of one list after another, in one update: what the engine reads again
    of an earlier list in a later one makes the earlier one ordinary.

    @param ring: all bytes of the ring
    @param regions: the storages of the model's parameters, buffers and other tensors; a copy names one by its number
    """

    def __init__(self, ring: torch.Tensor, regions: Mapping[int, torch.UntypedStorage]):
        super().__init__()
        self._ring = storage_key(ring.untyped_storage())
        self._ring_offset = ring.storage_offset() * ring.element_size()
        self._regions = {storage_key(storage): number for number, storage in regions.items()}
        self._temporaries: dict[int, _Temporary] = {}
        self._list = ListRecording(())
        # of this update, by region
        self._loaded: dict[int, list[tuple[Copy, ListRecording]]] = {}
        self._replayed: list[ListRecording] = []
        self._recorded: list[ListRecording] = []
        self._steered = False
        self._aside = False
        # by region, whatever was written there by an operator of torch
        self._written: dict[int, list[tuple[int, int]]] = {}

    def begin(self, tensors: Sequence[Tensor]) -> ListRecording:
        """From now on these are in the ring. What was noted before is in what an earlier call has returned."""
        self._list = ListRecording(tuple(tensors))
        self._recorded.append(self._list)
        if self._steered:
            self._list.foreign.append(STEERED)
        self._temporaries.clear()
        for recording in self._replayed:
            for copy in recording.copies:
                self._loaded.setdefault(copy.region, []).append((copy, recording))
        self._replayed.clear()
        return self._list

    @contextmanager
    def aside(self, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
        """The engine does something with what these come from that it does in every update: that is not looked at."""
        names = self._names(tensors)
        self._list.aside |= names
        self._list.read |= names
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def launched(self) -> None:
        """A Triton kernel runs, whose arguments nobody looks at."""
        if not self._aside:
            self._list.foreign.append(LAUNCHES)

    def refuse_all(self, reason: str) -> None:
        """Of every list that the engine has loaded in this update."""
        for recording in self._recorded:
            recording.foreign.append(reason)

    def replayed(self, recording: ListRecording) -> None:
        """Its copies were made without the engine."""
        # looked at only when the engine loads a list again, which it may not do in this update
        self._replayed.append(recording)

    def finish(self) -> None:
        """The list has been loaded. A tensor that the engine keeps in memory of its own making is ordinary: nobody would bring
        the next version there."""
        if self._kept():
            gc.collect()
        for temporary in self._kept():
            names = self._names_of_origin(temporary.origin)
            self._list.refuse(names, "the engine keeps it in memory that is not its model's")
        self._temporaries.clear()

    def _kept(self) -> list[_Temporary]:
        # one use is ours
        return [one for one in self._temporaries.values() if torch._C._storage_Use_Count(storage_key(one.storage)) > 1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = kwargs or {}
        if self._aside:
            return func(*args, **kwargs)
        if func is aten.copy_.default:
            self._copies(args[0], args[1])
            return func(*args, **kwargs)
        # most of what runs: it neither reads nor writes
        view = func(*args, **kwargs) if func.is_view else None
        if view is not None and is_plain_view(args, view):
            return view
        inputs = list(tensors_in((args, kwargs)))
        derived = [tensor for tensor in inputs if self._has_origin(tensor)]
        names = self._names(derived)
        out = func(*args, **kwargs) if view is None else view
        self._steers(func, inputs, derived, out)
        if func in _READ_NOTHING or _is_view(func, inputs, out):
            return out
        self._reads_regions(func, args, kwargs)
        if derived and self._moves(func, args, kwargs, out):
            return out
        self._writes(func, args, kwargs)
        self._note_constant(func, args)
        self._list.read.update(names)
        self._list.refuse(names, f"{func} is no copy")
        return out

    def _steers(self, func: Any, inputs: Sequence[torch.Tensor], derived: Sequence[torch.Tensor], out: Any) -> None:
        """Contents of weights that reach the host may decide what becomes of any list."""
        leaves = any(one.device != tensor.device for tensor in derived for one in tensors_in(out))
        loaded = func in _HOST_READS and any(derived or self._loaded_there(tensor) for tensor in inputs)
        if leaves or loaded:
            self._steer()

    def _steer(self) -> None:
        if self._steered:
            return
        self._steered = True
        self.refuse_all(STEERED)

    def _note_constant(self, func: Any, args: Any) -> None:
        if func not in _CONSTANTS:
            return
        to = args[0]
        region = self._regions.get(storage_key(to.untyped_storage()))
        if region is None or to.numel() == 0:
            return
        value = args[1] if func is aten.fill_.Scalar else 0
        self._list.constants.append(Constant(region, to.storage_offset(), to.dtype, tuple(to.shape), tuple(to.stride()), value))

    @property
    def written(self) -> dict[int, list[tuple[int, int]]]:
        """By region, begin and end of what was written in this update: seen, or replayed."""
        extents = {region: list(of_region) for region, of_region in self._written.items()}
        loaded = [copy for of_region in self._loaded.values() for copy, _ in of_region]
        replayed = [copy for recording in self._replayed for copy in recording.copies]
        for copy in (*loaded, *replayed):
            extents.setdefault(copy.region, []).append((copy.destination, copy.destination_end))
        return extents

    def _has_origin(self, tensor: torch.Tensor) -> bool:
        key = storage_key(tensor.untyped_storage())
        return key == self._ring or key in self._temporaries

    def _copies(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """`to.copy_(source)` is about to run."""
        key = storage_key(to.untyped_storage())
        self._reads_region(source)
        if not self._has_origin(source):
            self._overwrites(to, "copy_ of something else")
            return
        names = self._names([source])
        self._list.read.update(names)
        reason = _why_no_copy(to, source)
        if key == self._ring:
            self._list.refuse(names, "it is copied into the ring")
        elif reason is not None:
            self._list.refuse(names, reason)
            self._overwrites(to, None)
            if source.device != to.device:
                self._steer()
        elif key in self._regions:
            self._into_region(self._regions[key], to, source.expand(to.shape), names)
        else:
            try:
                self._into_temporary(to, source.expand(to.shape))
            except RuntimeError as error:
                self._temporaries.pop(key, None)
                self._list.refuse(names, f"where it comes from cannot be followed: {error}")

    def _into_region(self, region: int, to: torch.Tensor, source: torch.Tensor, names: set[str]) -> None:
        item = to.element_size()
        strides = tuple(stride * item for stride in to.stride())
        destination = to.storage_offset() * item
        copies: list[Copy] = []
        if storage_key(source.untyped_storage()) == self._ring:
            offset = source.storage_offset() * item - self._ring_offset
            sources = tuple(stride * item for stride in source.stride())
            copies = simplified(Copy(offset, region, destination, item, tuple(to.shape), sources, strides))
        else:
            origin = self._origin(source)
            pieces = None if origin is None else affine_pieces(origin)
            if pieces is None:
                self._list.refuse(names, "not all of what it is copied with comes from the ring, or in too many pieces")
                self._overwrites(to, None)
                return
            for piece in pieces:
                at = destination + sum(begin * stride for begin, stride in zip(piece.begin, strides))
                copies += simplified(Copy(piece.base, region, at, item, piece.shape, piece.strides, strides))
        self._list.copies += copies
        self._loaded.setdefault(region, []).extend((copy, self._list) for copy in copies)

    def _into_temporary(self, to: torch.Tensor, source: torch.Tensor) -> None:
        storage, item = to.untyped_storage(), to.element_size()
        key = storage_key(storage)
        known = self._temporaries.get(key)
        if known is None or known.item != item:
            items = storage.nbytes() // item
            origin = torch.full((items,), UNKNOWN, dtype=torch.int64, device=to.device)
            known = self._temporaries[key] = _Temporary(storage, item, origin)
        known.origin.as_strided(to.shape, to.stride(), to.storage_offset()).copy_(self._origin_or_unknown(source))

    def _origin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Of the tensor's items; None where it does not come from the ring, or is looked at with another item size."""
        key = storage_key(tensor.untyped_storage())
        if key == self._ring:
            return origin_in_ring(tensor, self._ring_offset)
        temporary = self._temporaries.get(key)
        if temporary is None or temporary.item != tensor.element_size():
            return None
        return temporary.origin.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _origin_or_unknown(self, tensor: torch.Tensor) -> torch.Tensor:
        origin = self._origin(tensor)
        if origin is not None:
            return origin
        return torch.full(tensor.shape, UNKNOWN, dtype=torch.int64, device=tensor.device)

    def _moves(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Whether the operator only moves items, to a new tensor; then the origins of that are known."""
        if func not in _MOVES or not isinstance(out, torch.Tensor):
            return False
        sources = list(tensors_in(args[:1]))
        if any(source.dtype != out.dtype or source.device != out.device for source in sources):
            return False
        if storage_key(out.untyped_storage()) in self._regions:
            return False
        try:
            self._follow(func, args, kwargs, sources, out)
        except RuntimeError:
            # it takes memory: what is copied from there is then of unknown origin
            self._temporaries.pop(storage_key(out.untyped_storage()), None)
            return False
        return True

    def _follow(self, func: Any, args: Any, kwargs: Any, sources: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        origins = [self._origin_or_unknown(source) for source in sources]
        if func in (aten.clone.default, aten._to_copy.default):
            origin = origins[0]
        elif func in (aten.cat.default, aten.stack.default):
            origin = func(origins, *args[1:], **kwargs)
        else:
            origin = func(origins[0], *args[1:], **kwargs)
        self._list.read.update(self._names(sources))
        storage, item = out.untyped_storage(), out.element_size()
        whole = torch.full((storage.nbytes() // item,), UNKNOWN, dtype=torch.int64, device=out.device)
        whole.as_strided(out.shape, out.stride(), out.storage_offset()).copy_(origin)
        self._temporaries[storage_key(storage)] = _Temporary(storage, item, whole)

    def _writes(self, func: Any, args: Any, kwargs: Any) -> None:
        """What the operator writes in place does not come from the ring any more."""
        what = None if func in _CONSTANTS else str(func)
        for argument, value in schema_arguments(func, args, kwargs):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors_in(value):
                    self._overwrites(tensor, what)

    def _overwrites(self, tensor: torch.Tensor, what: str | None) -> None:
        """@param what: does it that a replay would not do; None: a constant, or of a tensor that is ordinary anyway"""
        key = storage_key(tensor.untyped_storage())
        if key in self._regions:
            if tensor.numel():
                self._written.setdefault(self._regions[key], []).append(_extent(tensor))
            if what is not None:
                self._list.foreign.append(f"{what} writes a tensor of the model")
            for copy, recording in self._loaded_there(tensor):
                recording.refuse([recording.name_at(copy.source)], "it is written over in place")
            return
        temporary = self._temporaries.get(key)
        if temporary is None:
            return
        if temporary.item == tensor.element_size():
            temporary.origin.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(UNKNOWN)
        else:
            temporary.origin.fill_(UNKNOWN)

    def _reads_regions(self, func: Any, args: Any, kwargs: Any) -> None:
        for argument, value in schema_arguments(func, args, kwargs):
            if argument.alias_info is None or not argument.alias_info.is_write:
                for tensor in tensors_in(value):
                    self._reads_region(tensor)

    def _reads_region(self, tensor: torch.Tensor) -> None:
        """What has been loaded there goes on to somewhere else, which a replay would not do."""
        for copy, recording in self._loaded_there(tensor):
            recording.refuse([recording.name_at(copy.source)], "the engine reads it again out of its own tensors")

    def _loaded_there(self, tensor: torch.Tensor) -> list[tuple[Copy, ListRecording]]:
        region = self._regions.get(storage_key(tensor.untyped_storage()))
        if region is None or tensor.numel() == 0:
            return []
        begin, end = _extent(tensor)
        loaded = self._loaded.get(region, ())
        return [one for one in loaded if one[0].destination < end and begin < one[0].destination_end]

    def _names(self, tensors: Iterable[torch.Tensor]) -> set[str]:
        """Tensors of the list that something of these comes from."""
        return {name for tensor in tensors for name in self._names_of(tensor)}

    def _names_of(self, tensor: torch.Tensor) -> Iterator[str]:
        if tensor.numel() == 0:
            return
        key = storage_key(tensor.untyped_storage())
        if key == self._ring:
            begin, end = _extent(tensor)
            yield from self._list.names_between(begin - self._ring_offset, end - 1 - self._ring_offset)
        elif key in self._temporaries:
            yield from self._names_of_origin(self._temporaries[key].origin)

    def _names_of_origin(self, origin: torch.Tensor) -> Iterator[str]:
        starts = torch.tensor(self._list.starts, dtype=torch.int64, device=origin.device)
        indices = torch.searchsorted(starts, origin[origin != UNKNOWN], right=True) - 1
        for index in indices.unique().tolist():
            yield self._list.name_at(self._list.starts[index])


def is_plain_view(args: Any, out: Any) -> bool:
    """Whether all of it is memory of the first argument: an operator that may also copy is not, where it has."""
    if not args or not isinstance(args[0], torch.Tensor):
        return False
    key = storage_key(args[0].untyped_storage())
    outs = (out,) if isinstance(out, torch.Tensor) else out
    return all(isinstance(one, torch.Tensor) and storage_key(one.untyped_storage()) == key for one in outs)


def _why_no_copy(to: torch.Tensor, source: torch.Tensor) -> str | None:
    if source.is_neg() or source.is_conj():
        return "it is negated or conjugated"
    if source.dtype != to.dtype:
        return f"it is converted from {source.dtype} to {to.dtype}"
    if source.device != to.device:
        return f"it goes from {source.device} to {to.device}"
    return None


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage between which it lies."""
    item = tensor.element_size()
    begin = tensor.storage_offset() * item
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return begin, begin + (last + 1) * item


def storage_key(storage: torch.UntypedStorage) -> int:
    """The same for every tensor of a storage, while it lives."""
    return int(storage._cdata)


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    return (value for value in tree_iter(values) if isinstance(value, torch.Tensor))


def _is_view(func: Any, inputs: Sequence[torch.Tensor], out: Any) -> bool:
    """Whether what it returns is memory of the only input, looked at in another way (`_unsafe_view` does not say so itself)."""
    outs = list(tensors_in(out))
    keys = {storage_key(tensor.untyped_storage()) for tensor in (*inputs, *outs)}
    return bool(outs) and len(keys) == 1 and not func._schema.is_mutable


def schema_arguments(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            yield argument, args[index]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]
