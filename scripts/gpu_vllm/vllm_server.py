"""A real vLLM as a process, and its RPC."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from server import EngineServer

_CACHE_BYTES = 2 * 2**30
_HERE = Path(__file__).parent
_WORKER = _HERE.parent.parent / "python/ckpt_worker"


class VllmServer(EngineServer):
    """@param model: folder with a `config.json`, and with weights unless it is to begin with dummies"""

    def __init__(self, model: Path, port: int, log: Path, arguments: list[str]):
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--skip-tokenizer-init"]
        # a fixed cache: no profiling, which fails where another server starts at the same time
        command += ["--max-model-len", "2048", "--gpu-memory-utilization", "0.2", "--kv-cache-memory-bytes", str(_CACHE_BYTES)]
        command += ["--worker-extension-cls", "extension.MeasuredExtension", *arguments]
        env = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DEEP_GEMM_WARMUP": "skip",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        }
        super().__init__("vLLM", port, "/health", command, env, [_HERE, _WORKER], log)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """A method of every worker. Returns what each has returned."""
        answer = self.post("/collective_rpc", {"method": method, "args": list(arguments), "timeout": 300.0})
        results: list[Any] = (answer or {}).get("results", [])
        return results
