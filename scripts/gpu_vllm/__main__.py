"""Updates a real vLLM in one way after another, and prints what each takes; `scripts/gpu-vllm --help`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import DeviceMemory, pinned_rate
from models import MODELS, Model
from vllm_server import VllmServer
from ways import CkptWay, PeerWay

_PORT = 8123
_WAYS = ("checkpoint-engine", "ordinary", "recorded")


@dataclass
class Row:
    """Of one update. `seconds`: of the whole call, the engine paused before. `wrong`: tensors of the model that differ from those
    of the first update, which was an ordinary load by checkpoint-engine's extension."""

    way: str
    round: int
    seconds: float
    gb_per_s: float
    percent: float
    device_mib: float
    busy_us_per_tensor: float | None
    replayed: int
    wrong: int
    compared: int
    report: dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="moe")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--ways", default=",".join(_WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--graphs", action="store_true", help="with CUDA graphs instead of --enforce-eager")
    parser.add_argument("--dir", default="/dev/shm", help="where the files go, and the logs")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    model = MODELS[options.model](**({} if options.layers is None else {"layers": options.layers}))
    folder = Path(tempfile.mkdtemp(prefix="gpu-vllm-", dir=options.dir))
    try:
        with ExitStack() as stack:
            rows, limit = _run(stack, model, folder, options)
    finally:
        for log in folder.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
        shutil.rmtree(folder)
    document = {"model": model.name, "bytes": model.bytes, "tensors": len(model.shapes), "limit_gb_per_s": limit}
    if options.json is not None:
        options.json.write_text(json.dumps({**document, "graphs": options.graphs, "rows": [asdict(row) for row in rows]}))
    return 1 if any(row.wrong for row in rows) else 0


def _run(stack: ExitStack, model: Model, folder: Path, options: argparse.Namespace) -> tuple[list[Row], float]:
    config = model.write_config(folder / "model")
    arguments = [] if options.graphs else ["--enforce-eager"]
    server = VllmServer(config, _PORT, folder / "vllm.log", arguments)
    # while the server starts
    files = model.write_files(folder / "files", 1)
    stack.enter_context(server)
    limit = pinned_rate()
    print(f"# {model.name}: {model.bytes / 1e9:.2f} GB in {len(model.shapes)} tensors; pinned H2D {limit:.1f} GB/s", flush=True)
    print(f"{'way':18} {'round':>5} {'s':>8} {'GB/s':>7} {'%':>6} {'MiB':>7} {'us/tensor':>9} {'replayed':>8} {'wrong':>6}")
    server.post("/pause?mode=abort")
    measured = Measured(server, model, limit)
    for way in options.ways.split(","):
        try:
            with ExitStack() as of_way:
                kind = PeerWay if way == "checkpoint-engine" else CkptWay
                daemon = kind(of_way, server, files, folder)
                server.call("measured_way", way)
                # the first one pins, compiles or records
                for number in range(options.rounds + 1):
                    measured.update(way, number, daemon)
        except Exception as error:
            # a peer may fail where another way does not
            print(f"{way:18} FAILED: {type(error).__name__}: {str(error)[-3000:]}", flush=True)
    return measured.rows, limit


class Measured:
    def __init__(self, server: VllmServer, model: Model, limit: float):
        self.rows: list[Row] = []
        self._server = server
        self._model = model
        self._limit = limit
        self._expected: dict[str, str] = {}

    def update(self, way: str, number: int, daemon: CkptWay | PeerWay) -> None:
        self._server.call("measured_zero")
        with DeviceMemory() as memory:
            begin = time.perf_counter()
            report = daemon.update()
            seconds = time.perf_counter() - begin
        (sums,) = self._server.call("ckpt_checksum")
        self._expected = self._expected or sums
        wrong = sum(sums.get(name) != value for name, value in self._expected.items())
        (state,) = self._server.call("ckpt_state")
        last = state.get("last") or {}
        tensors = last.get("replayed", 0) + last.get("ordinary", 0)
        rate = self._model.bytes / seconds / 1e9
        busy = last["busy_seconds"] / tensors * 1e6 if tensors and way != "checkpoint-engine" else None
        row = Row(
            way,
            number,
            seconds,
            rate,
            100 * rate / self._limit,
            memory.bytes / 2**20,
            busy,
            last.get("replayed", 0),
            wrong,
            len(self._expected),
            {"report": report, "state": state},
        )
        self.rows.append(row)
        shown = "-" if busy is None else f"{busy:.1f}"
        print(
            f"{way:18} {number:5} {seconds:8.3f} {rate:7.1f} {row.percent:6.1f} {row.device_mib:7.0f} {shown:>9}"
            f" {row.replayed:8} {wrong:6}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
