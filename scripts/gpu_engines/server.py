"""A real engine as a process, and its routes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

_READY_SECONDS = 300
_STOP_SECONDS = 20
_CALL_SECONDS = 330
_LOG_CHARACTERS = 4000

_Server = TypeVar("_Server", bound="EngineServer")


class EngineServer:
    """Use it as a context: the server, which starts at once, ends with it.

    @param name: of the engine, for messages
    @param ready: the route that answers when it serves
    @param paths: come before `PYTHONPATH`
    """

    def __init__(self, name: str, port: int, ready: str, command: list[str], env: dict[str, str], paths: list[Path], log: Path):
        self._begin = time.monotonic()
        self.url = f"http://127.0.0.1:{port}"
        self._name = name
        self._ready = ready
        self._log = log
        python_path = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
        whole = {**os.environ, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", **env}
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, env=whole, stdout=output, stderr=output, start_new_session=True)

    def __enter__(self: _Server) -> _Server:
        return self

    def wait(self) -> None:
        """Until it serves. @raises RuntimeError: with its last words"""
        while True:
            try:
                self.get(self._ready)
                print(f"# {self._name} is up after {time.monotonic() - self._begin:.0f} s", flush=True)
                return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > self._begin + _READY_SECONDS:
                raise RuntimeError(f"{self._name} did not start:\n{self.log()}")
            time.sleep(0.5)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        # its workers are in its session
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_CHARACTERS:]

    def get(self, path: str) -> Any:
        return self._request("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_CALL_SECONDS) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read()[:2000]!r}") from error
        return json.loads(text) if text else None
