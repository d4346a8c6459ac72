"""CUDA memory as another process can open it: which allocation an address is in, and the handle of that."""

from __future__ import annotations

import ctypes
from bisect import bisect_right, insort
from typing import Any

from .placement import Allocation, NotPlaced
from .regions import driver

_HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE
_EXPANDABLE = "it is of expandable segments or sleep mode, or not of this device"


class CudaMemory:
    """Asks the driver once for each allocation: an instance is for the making of one map, because memory may be freed after it.

    The device's context has to be current in this thread; torch has made it so.

    @param library: has the functions of `libcuda.so.1`; None: that library, loaded when it is needed
    """

    def __init__(self, library: Any = None):
        self._library = library
        # by address
        self._known: list[tuple[int, Allocation]] = []

    def allocation_of(self, address: int) -> Allocation:
        """@raises NotPlaced: another process cannot open it"""
        index = bisect_right(self._known, address, key=lambda one: one[0])
        if index:
            begin, allocation = self._known[index - 1]
            if address < begin + allocation.bytes:
                return allocation
        allocation = self._ask(address)
        insort(self._known, (allocation.address, allocation), key=lambda one: one[0])
        return allocation

    def _ask(self, address: int) -> Allocation:
        if self._library is None:
            try:
                self._library = driver()
            except OSError as error:
                raise NotPlaced(f"memory that cannot be exported: there is no CUDA driver ({error})") from error
        base, size = ctypes.c_ulonglong(0), ctypes.c_size_t(0)
        pointer = ctypes.c_ulonglong(address)
        self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), pointer)
        handle = ctypes.create_string_buffer(_HANDLE_BYTES)
        self._call("cuIpcGetMemHandle", handle, base)
        return Allocation(handle.raw, base.value, size.value)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise NotPlaced(f"memory that cannot be exported: {_EXPANDABLE} ({function}: {self._name_of(status)})")

    def _name_of(self, status: int) -> str:
        name = ctypes.c_char_p()
        if self._library.cuGetErrorName(status, ctypes.byref(name)) != 0 or name.value is None:
            return f"error {status}"
        return name.value.decode()
