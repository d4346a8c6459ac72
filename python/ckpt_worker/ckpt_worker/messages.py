"""The pickles of checkpoint-engine's protocol, read with nothing but the names that they need."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing import reductions

from .recorder import Tensor

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_NAMES = {
    ("torch", "Tensor"),
    ("torch", "Size"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
    ("builtins", "RuntimeError"),
}
_HANDLE_ARGUMENTS = 15
_DEVICE = 6


class ProtocolError(RuntimeError):
    """The daemon says something that does not belong here."""


class DaemonError(RuntimeError):
    """The daemon has ended the update; its words."""


@dataclass(frozen=True)
class Handle:
    """What the ring is mapped with: arguments of torch's `rebuild_cuda_tensor`."""

    arguments: tuple[Any, ...]

    def open(self, device: int) -> torch.Tensor:
        """All bytes of the ring. The daemon may number its devices in another way: `device` is ours."""
        arguments = list(self.arguments)
        arguments[_DEVICE] = device
        ring: torch.Tensor = reductions.rebuild_cuda_tensor(*arguments)
        if ring.dtype != torch.uint8:
            raise ProtocolError(f"the ring is of {ring.dtype}, not of bytes")
        return ring


@dataclass(frozen=True)
class Listed:
    """A tensor of a list, and where it is in the ring."""

    tensor: Tensor
    dtype: torch.dtype
    shape: torch.Size

    def view(self, ring: torch.Tensor) -> torch.Tensor:
        end = self.tensor.offset + self.tensor.bytes
        if self.tensor.offset < 0 or end > ring.numel():
            raise ProtocolError(f"{self.tensor.name} is not in the ring: bytes {self.tensor.offset} to {end} of {ring.numel()}")
        return ring[self.tensor.offset : end].view(self.dtype).view(self.shape)


Message = Handle | list[Listed] | DaemonError | None


def read_message(body: bytes) -> Message:
    """@raises ProtocolError: it is none of them"""
    try:
        value = _Unpickler(io.BytesIO(body)).load()
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a message of {len(body)} bytes cannot be read: {error}") from error
    if value is None:
        return None
    if isinstance(value, Exception):
        return DaemonError(*value.args)
    if isinstance(value, list):
        return [_listed(item) for item in value]
    if isinstance(value, tuple) and len(value) == 2 and len(value[1]) == _HANDLE_ARGUMENTS:
        return Handle(tuple(value[1]))
    raise ProtocolError(f"a message is a {type(value).__name__}")


class _Unpickler(pickle.Unpickler):
    """A pickle can call whatever it names: this one names torch's types, and the function that maps the ring."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.multiprocessing.reductions", "rebuild_cuda_tensor"):
            return reductions.rebuild_cuda_tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in _NAMES:
            return super().find_class(module, name)
        raise ProtocolError(f"a message names {module}.{name}")


def _listed(item: Any) -> Listed:
    try:
        name, dtype, offset = item["name"], item["dtype"], int(item["offset"])
        shape = torch.Size(item["shape"])
        size = dtype.itemsize * shape.numel()
    except Exception as error:
        raise ProtocolError(f"an item of a list cannot be read: {error}") from error
    return Listed(Tensor(str(name), offset, size), dtype, shape)
