"""A real vLLM as a process, and its routes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

_READY_SECONDS = 300
_STOP_SECONDS = 20
_CACHE_BYTES = 2 * 2**30
_LOG_CHARACTERS = 4000
_HERE = Path(__file__).parent
_WORKER = _HERE.parent.parent / "python/ckpt_worker"


class VllmServer:
    """Use it as a context: the server, which starts at once, ends with it.

    @param model: folder with a `config.json`, and with weights unless it is to begin with dummies
    """

    def __init__(self, model: Path, port: int, log: Path, arguments: list[str]):
        self._begin = time.monotonic()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--skip-tokenizer-init"]
        # a fixed cache: no profiling, which fails where another server starts at the same time
        command += ["--max-model-len", "2048", "--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", str(_CACHE_BYTES)]
        command += ["--worker-extension-cls", "extension.MeasuredExtension", *arguments]
        paths = [str(_HERE), str(_WORKER), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DEEP_GEMM_WARMUP": "skip",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)

    def __enter__(self) -> VllmServer:
        return self

    def wait(self) -> None:
        """Until it serves. @raises RuntimeError: with its last words"""
        while True:
            try:
                self.get("/health")
                print(f"# vLLM is up after {time.monotonic() - self._begin:.0f} s", flush=True)
                return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > self._begin + _READY_SECONDS:
                raise RuntimeError(f"vLLM did not start:\n{self.log()}")
            time.sleep(0.5)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_CHARACTERS:]

    def get(self, path: str) -> Any:
        return self._request("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        return self._request("POST", path, body)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """A method of every worker. Returns what each has returned."""
        answer = self.post("/collective_rpc", {"method": method, "args": list(arguments), "timeout": 300.0})
        results: list[Any] = (answer or {}).get("results", [])
        return results

    def _request(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=330) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read()[:2000]!r}") from error
        return json.loads(text) if text else None
