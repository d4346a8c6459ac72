"""Daemons that bring weights into engines, as processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ckpt_client import Daemon

_ROOT = Path(__file__).parent.parent.parent
_READY_SECONDS = 120
_LOG_CHARACTERS = 3000


def start_ckpt(stack: ExitStack, folder: Path, name: str, devices: int = 1, host_gib: int | None = None) -> Daemon:
    """`ckpt serve` with a rank for each of the first devices; it ends with the stack.

    @param name: of its log in `folder`
    @param host_gib: most memory that it pins; by default its own, which goes by how much the machine says that it has
    """
    address = folder / f"{name}.sock"
    command = [os.environ.get("BUN", "bun"), str(_ROOT / "packages/server/src/cli/main.ts"), "serve", "--uds", str(address)]
    named = ",".join(str(number) for number in range(devices))
    command += ["--state-dir", str(folder / f"{name}-state"), "--devices", f"cuda:{named}", "--ranks", str(devices)]
    command += [] if host_gib is None else ["--host-memory-gib", str(host_gib)]
    start(stack, command, folder / f"{name}.log", {}, address)
    return Daemon(str(address))


def update_plainly(daemon: str, files: Path, engine: str, ranks: int) -> dict[str, Any]:
    """`ckpt update` with nothing but what it must be told. Returns the report of its update."""
    command = [os.environ.get("BUN", "bun"), str(_ROOT / "packages/server/src/cli/main.ts"), "update", "--daemon", daemon, "--json"]
    command += ["--checkpoint-path", str(files), "--endpoint", engine, "--inference-parallel-size", str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_READY_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"ckpt update: {done.stdout[-_LOG_CHARACTERS:]} {done.stderr[-_LOG_CHARACTERS:]}")
    report: dict[str, Any] = json.loads(done.stdout)["updates"][0]
    return report


def start(stack: ExitStack, command: list[str], log: Path, env: dict[str, str], address: Path) -> None:
    """Waits until it listens at the socket; ends it with the stack."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=output, stderr=output)

    def stop() -> None:
        process.terminate()
        process.wait(_READY_SECONDS)

    stack.callback(stop)
    end = time.monotonic() + _READY_SECONDS
    while not _listens(address):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{command[:4]} did not start:\n{log.read_text(errors='replace')[-_LOG_CHARACTERS:]}")
        time.sleep(0.1)


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        return address.exists() and one.connect_ex(str(address)) == 0
