"""What a way has cost: seconds, device memory, and what copies of the same size would take."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import date
from importlib.metadata import version
from types import TracebackType

import torch

_PINNED_BYTES = 2**30
_COPIES = 12
_SAMPLE_SECONDS = 0.002


def header(script: str, *packages: str) -> dict[str, str]:
    """What a document of figures begins with.

    @param packages: whose versions it says
    """
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    command = " ".join([script, *sys.argv[1:]])
    return {
        "date": date.today().isoformat(),
        "command": command,
        "device": torch.cuda.get_device_name(),
        "driver": driver,
        **{name: version(name) for name in packages},
    }


def pinned_rate() -> float:
    """GB/s of copies of 1 GiB from pinned host memory to the device, the median."""
    source = torch.empty(_PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_PINNED_BYTES, dtype=torch.uint8, device="cuda")
    rates = []
    for _ in range(_COPIES):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        rates.append(_PINNED_BYTES / (time.perf_counter() - begin) / 1e9)
    del source, target
    torch.cuda.empty_cache()
    return sorted(rates)[len(rates) // 2]


class DeviceMemory:
    """Most bytes of the device's memory that were in use while the context lasted, beyond those at its beginning."""

    def __enter__(self) -> DeviceMemory:
        self._before = self._most = _used()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self._most - self._before

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._most = max(self._most, _used())


def _used() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free
