"""Shared memory of the daemon, mapped into this process."""

from __future__ import annotations

import ctypes
import mmap
import os
import warnings
from typing import Any, Dict, Iterable, Optional

from .errors import CkptError

CUDA_HOST_REGISTER_PORTABLE = 1


class Region:
    """One mapping. It stays, and stays pinned, for as long as the daemon keeps the memory: a version after the next gets it
    again."""

    def __init__(self, path: str):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            message = f"{path} of the daemon cannot be mapped ({error.strerror}): tensors are registered from its own host"
            raise CkptError("not_supported", message) from None
        try:
            status = os.fstat(descriptor)
            self.inode = status.st_ino
            self.bytes = status.st_size
            self.map = mmap.mmap(descriptor, self.bytes)
        finally:
            os.close(descriptor)
        self.path = path
        self._anchor: Optional[ctypes.c_char] = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(self._anchor)
        self._pinned_on: Any = None
        self._pinned_by = 0
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self.map.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without huge pages

    @property
    def lives(self) -> bool:
        """Whether the daemon still has it."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    def pin(self, torch: Any, device: Any) -> None:
        """Registers the mapping with CUDA for copies of this process. Without it they work too, slower."""
        if self._pinned_on is not None:
            return
        # a thread starts on device 0, where the trainer may want no context
        with torch.cuda.device(device):
            status = int(torch.cuda.cudart().cudaHostRegister(self.address, self.bytes, CUDA_HOST_REGISTER_PORTABLE))
            if status == 0:
                self._pinned_on, self._pinned_by = device, os.getpid()
                return
            try:
                torch.empty(1, device=device).fill_(0)
            except RuntimeError:
                pass  # the error that CUDA keeps for whoever launches a kernel next
        warnings.warn(f"cudaHostRegister of {self.bytes} bytes: CUDA error {status}; copies are slower", stacklevel=2)

    def close(self) -> None:
        # CUDA does not work in a child of fork(), which has no registration of its own either
        if self._pinned_on is not None and self._pinned_by == os.getpid():
            import torch

            with torch.cuda.device(self._pinned_on):
                torch.cuda.cudart().cudaHostUnregister(self.address)
        self._pinned_on = None
        self._anchor = None
        try:
            self.map.close()
        except BufferError:
            pass  # the traceback of a copy that failed refers to it: it goes with that


class Regions:
    """The mappings of one daemon's memory, by path."""

    def __init__(self) -> None:
        self._regions: Dict[str, Region] = {}

    def open(self, path: str, wanted_bytes: int) -> Region:
        region = self._regions.get(path)
        if region is None:
            region = self._regions[path] = Region(path)
        if region.bytes < wanted_bytes:
            raise CkptError("internal", f"{path} has {region.bytes} bytes, {wanted_bytes} were asked for")
        return region

    def sweep(self) -> None:
        """Unmaps what the daemon has freed, so that its memory is."""
        self.discard([path for path, region in self._regions.items() if not region.lives])

    def discard(self, paths: Iterable[str]) -> None:
        for path in paths:
            region = self._regions.pop(path, None)
            if region is not None:
                region.close()

    def close(self) -> None:
        self.discard(list(self._regions))
