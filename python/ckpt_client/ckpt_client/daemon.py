from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any, Dict, List, Mapping, Optional, Sequence
from urllib.parse import quote

from .connection import Address, default_address
from .layout import arrange, natural_key
from .regions import Regions
from .sources import Source, describe
from .write import write_tensors

# of the daemon's own default for an update, and what it may take beyond its timeout
UPDATE_TIMEOUT_SECONDS = 300.0
UPDATE_GRACE_SECONDS = 30.0
THREADS_MAX = 16


class Daemon:
    """A running `ckpt serve`.

        daemon = Daemon()
        daemon.register_tensors("policy", model.state_dict(), version="step 7")
        daemon.update("policy", update_url="http://localhost:19730/collective_rpc")

    @param address: its Unix socket or `HOST:PORT`; by default `$CKPT_DAEMON`, else the socket of a `ckpt serve` that was told none
    @param token: for TCP, what its `--token-file` holds
    @param timeout: seconds without an answer after which a call gives up; an update has its own
    @param threads: that copy; by default one for each core, at most 16

    Every method raises CkptError. Mappings of the daemon's memory are kept from version to version until `close`, or until
    the daemon has freed them and another call is made.
    """

    def __init__(
        self,
        address: Optional[str] = None,
        token: Optional[str] = None,
        timeout: float = 600.0,
        threads: Optional[int] = None,
    ):
        self.timeout = timeout
        self._address = Address(address or default_address(), token)
        self._threads = threads or min(THREADS_MAX, len(os.sched_getaffinity(0)))
        self._regions = Regions()
        self._writing = threading.Lock()
        self._finalizer = weakref.finalize(self, self._regions.close)
        # at exit CUDA may be gone already, and the kernel unmaps everything
        self._finalizer.atexit = False

    def register_tensors(
        self, name: str, tensors: Mapping[str, Any], version: Optional[str] = None, replace: bool = True
    ) -> dict:
        """Writes the tensors into memory of the daemon and registers them as a new version of `name`. When it has returned,
        they may be changed.

        Tensors are torch's (CPU or CUDA), numpy's, or buffers; each name is registered, also where several share memory.
        Returns the daemon's answer, with `write_seconds`, what writing alone took.
        """
        sources = sorted(describe(tensors), key=lambda source: natural_key(source.name))
        layout = arrange([source.bytes for source in sources])
        with self._writing:
            try:
                return self._write(name, sources, layout, {"replace": replace, **_given(version=version)})
            finally:
                self._regions.sweep()

    def _write(self, name: str, sources: Sequence[Source], layout: Any, options: dict) -> dict:
        path = _checkpoint(name)
        if not layout.buffer_bytes:
            return self.request("POST", f"{path}/tensors", {"buffers": [], **options})
        wanted = {"bytes": layout.buffer_bytes, "hold": True, "replace": options["replace"]}
        held = self._address.request_held("POST", f"{path}/buffers", wanted, self.timeout)
        buffers = held.body["buffers"]
        try:
            regions = [self._regions.open(b["path"], size) for b, size in zip(buffers, layout.buffer_bytes)]
            begin = time.perf_counter()
            placed = [(s, regions[index], offset) for s, (index, offset) in zip(sources, layout.places)]
            write_tensors(placed, self._threads)
            seconds = time.perf_counter() - begin
            tables: List[List[dict]] = [[] for _ in buffers]
            for source, (index, offset) in zip(sources, layout.places):
                row = {"name": source.name, "dtype": f"torch.{source.dtype}", "shape": source.shape, "offset": offset}
                tables[index].append(row)
            rows = [{"id": buffer["id"], "tensors": table} for buffer, table in zip(buffers, tables)]
            answer = self.request("POST", f"{path}/tensors", {"buffers": rows, **options})
        except BaseException:
            self._regions.discard([buffer["path"] for buffer in buffers])
            raise
        finally:
            # the daemon frees what is not registered now
            held.close()
        dropped = {key: held.body[key] for key in ("previous_dropped", "evicted") if held.body.get(key)}
        return {**answer, **dropped, "write_seconds": seconds}

    def register_files(
        self,
        name: str,
        files: Sequence[str],
        version: Optional[str] = None,
        replace: bool = True,
        in_place: Optional[bool] = None,
        consume: Optional[bool] = None,
    ) -> dict:
        """Registers safetensors files that the daemon can read, as `POST .../files` does."""
        body = {"files": [os.path.abspath(file) for file in files], "replace": replace}
        body.update(_given(version=version, in_place=in_place, consume=consume))
        return self.request("POST", f"{_checkpoint(name)}/files", body)

    def update(self, name: str, **body: Any) -> dict:
        """Brings the newest version of `name` into the engines and returns the report. The keyword arguments are the fields of
        `POST .../update`: `update_url` or `engines`, `timeout` (seconds, 300), `pause`, `weight_version` and so on.

        A failed update raises CkptError with the rank, the phase and the engine's own words. An update goes on when this
        call is interrupted.
        """
        seconds = float(body.get("timeout") or UPDATE_TIMEOUT_SECONDS) + UPDATE_GRACE_SECONDS
        return self.request("POST", f"{_checkpoint(name)}/update", body, timeout=seconds)

    def checkpoints(self) -> List[dict]:
        return self.request("GET", "/v1/checkpoints")["checkpoints"]

    def status(self) -> dict:
        return self.request("GET", "/v1/status")

    def delete(self, name: str, force: bool = False) -> dict:
        """Drops `name`; `force` gives its memory back to the system."""
        answer = self.request("DELETE", _checkpoint(name) + ("?force=true" if force else ""))
        with self._writing:
            self._regions.sweep()
        return answer

    def request(self, method: str, path: str, body: Any = None, timeout: Optional[float] = None) -> dict:
        """Any route of `GET /v1/openapi.json`."""
        return self._address.request(method, path, body, timeout or self.timeout)

    def close(self) -> None:
        """Unmaps the daemon's memory. The object can be used again."""
        with self._writing:
            self._regions.close()

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _checkpoint(name: str) -> str:
    return f"/v1/checkpoints/{quote(name, safe='')}"


def _given(**fields: Any) -> Dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
