"""What can be registered: torch tensors, numpy arrays, and whatever else is a buffer. Neither library is imported unless the
objects come from it."""

from __future__ import annotations

import sys
from typing import Any, List, Optional, Tuple

from .errors import CkptError

# attributes of torch for the dtypes of packages/core/src/safetensors/dtypes.ts; numpy's and ml_dtypes' names are the same
DTYPES = frozenset(
    "bool uint8 int8 int16 uint16 float16 bfloat16 int32 uint32 float32 float64 int64 uint64 complex64 float8_e4m3fn "
    "float8_e5m2 float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz float4_e2m1fn_x2".split()
)
# struct's format characters; the width of an integer is its item size
_FORMATS = {"?": "bool", "e": "float16", "f": "float32", "d": "float64"}
_INTEGERS = "bhilq"
# integers of an item's size: torch copies every dtype as one of them
_BITS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}


class Source:
    """One tensor: what it is, and how its bytes get into a mapping.

    `address`: of its bytes, when they lie in CPU memory in one piece, else None; `device`: None for CPU memory.
    """

    __slots__ = ("name", "dtype", "shape", "bytes", "address", "device")

    def __init__(self, name: str, dtype: str, shape: Tuple[int, ...], size: int):
        if dtype not in DTYPES:
            raise _refuse(name, f"has the dtype {dtype}, which safetensors does not have")
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.bytes = size
        self.address: Optional[int] = None
        self.device: Any = None

    def write(self, region: Any, offset: int) -> None:
        """Copies into a writable buffer, whatever the layout in memory is. For a device: enqueues the copy."""
        raise NotImplementedError


class TorchSource(Source):
    __slots__ = ("_tensor", "_torch")

    def __init__(self, name: str, tensor: Any, torch: Any):
        tensor = tensor.detach()
        if type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:
            kind = type(tensor).__name__
            raise _refuse(name, f"is a {kind}: make it a plain tensor first (a DTensor's full_tensor() or to_local())")
        if tensor.layout is not torch.strided or tensor.device.type not in ("cpu", "cuda"):
            raise _refuse(name, f"is {tensor.layout} on '{tensor.device}'; it must be strided, on the CPU or a CUDA device")
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        super().__init__(name, str(tensor.dtype)[6:], tuple(tensor.shape), tensor.numel() * tensor.element_size())
        self._tensor = tensor
        self._torch = torch
        if tensor.device.type == "cuda":
            self.device = tensor.device
        elif tensor.is_contiguous():
            self.address = tensor.data_ptr()

    def write(self, region: Any, offset: int) -> None:
        torch = self._torch
        bits = getattr(torch, _BITS[self._tensor.element_size()])
        target = torch.frombuffer(region, dtype=torch.uint8, count=self.bytes, offset=offset)
        target.view(bits).view(self.shape).copy_(self._tensor.view(bits), non_blocking=self.device is not None)


class NumpySource(Source):
    __slots__ = ("_array",)

    def __init__(self, name: str, array: Any):
        if not array.dtype.isnative:
            raise _refuse(name, f"has the dtype {array.dtype.str}, which is not of this machine's byte order")
        super().__init__(name, array.dtype.name, tuple(array.shape), array.nbytes)
        self._array = array
        if array.flags.c_contiguous:
            self.address = array.__array_interface__["data"][0]

    def write(self, region: Any, offset: int) -> None:
        import numpy

        target = numpy.frombuffer(region, numpy.uint8, self.bytes, offset)
        numpy.copyto(target.view(self._array.dtype).reshape(self.shape), self._array)


class BufferSource(Source):
    __slots__ = ("_view",)

    def __init__(self, name: str, view: memoryview):
        code = view.format.lstrip("@=<")
        dtype = _FORMATS.get(code, f"'{view.format}'")
        if code.lower() in _INTEGERS:
            dtype = f"{'int' if code.islower() else 'uint'}{8 * view.itemsize}"
        super().__init__(name, dtype, tuple(view.shape or ()), view.nbytes)
        self._view = view

    def write(self, region: Any, offset: int) -> None:
        with memoryview(region) as target:
            contiguous = self._view if self._view.c_contiguous else memoryview(self._view.tobytes())
            target[offset : offset + self.bytes] = contiguous.cast("B")


def describe(tensors: Any) -> List[Source]:
    """@raises CkptError `bad_request` that names the tensor"""
    torch = sys.modules.get("torch")
    numpy = sys.modules.get("numpy")
    return [_source(name, tensor, torch, numpy) for name, tensor in tensors.items()]


def _source(name: Any, tensor: Any, torch: Any, numpy: Any) -> Source:
    if not isinstance(name, str):
        raise CkptError("bad_request", f"a tensor's name must be a string, not {name!r}")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return TorchSource(name, tensor, torch)
    if numpy is not None and isinstance(tensor, (numpy.ndarray, numpy.generic)):
        return NumpySource(name, numpy.asarray(tensor))
    try:
        view = memoryview(tensor)
    except TypeError:
        kind = type(tensor).__name__
        raise _refuse(name, f"is a {kind}: neither a torch tensor, nor a numpy array, nor a buffer") from None
    return BufferSource(name, view)


def _refuse(name: str, reason: str) -> CkptError:
    return CkptError("bad_request", f"tensor '{name}' {reason}", tensor=name)
