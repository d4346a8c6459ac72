"""Updates a real vLLM in one way after another, and prints what each takes; `scripts/gpu-vllm --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from command import common_options, model_of, working_folder
from measure import DeviceMemory, header, pinned_rate
from models import Model
from vllm_server import VllmServer
from ways import CkptWay, DirectWay, NativeRefusedWay, NativeWay, PeerWay, PeerWorkerWay, PlainWay, VllmIpcWay

_WAYS = {
    "checkpoint-engine": PeerWay,
    "vllm-ipc": VllmIpcWay,
    "native": NativeWay,
    "native-refused": NativeRefusedWay,
    "peer-worker": PeerWorkerWay,
    "plain": PlainWay,
    "ordinary": CkptWay,
    "layerwise": CkptWay,
    "recorded": CkptWay,
    "direct": DirectWay,
}
# vLLM refuses the one, the daemon the other
_UNQUANTISED = ("ordinary", "direct")
# of an engine whose every layer can be loaded as it is there is no need
_QUANTISED = ("layerwise",)
# these know one rank
_ONE_RANK = ("checkpoint-engine", "vllm-ipc", "native", "native-refused")
_IPC = ["--weight-transfer-config", '{"backend":"ipc"}']
_COLUMNS = ("round", "s", "GB/s", "percent", "apart s", "MiB", "us/tensor", "replayed", "wrong")
# its own 51 sizes take longer than everything else
_GRAPHS = ["--cudagraph-capture-sizes", "1", "8", "64"]
_DUMMY = ["--load-format", "dummy"]


@dataclass
class Row:
    """Of one update. `seconds`: of the whole call, the engine paused before, without the reset of its caches, which is
    `apart_seconds`. `wrong`: tensors of the model that differ from those of the server that has loaded the files itself, or
    without one from those of the first update."""

    way: str
    round: int
    seconds: float
    apart_seconds: float
    gb_per_s: float
    percent: float
    device_mib: float
    busy_us_per_tensor: float | None
    replayed: int
    wrong: int
    compared: int
    report: dict[str, Any]


def main() -> int:
    parser = common_options(__doc__)
    parser.add_argument("--ways", help="default: all that the model admits")
    graphs = "with CUDA graphs of a few batch sizes instead of --enforce-eager"
    parser.add_argument("--graphs", action="store_true", help=graphs)
    parser.add_argument("--fresh", action="store_true", help="compare with a server that has loaded the files itself")
    parser.add_argument("--port", type=int, default=8123, help="of the server; the next one is used too")
    options = parser.parse_args()
    model = model_of(options)
    left_out = {*(_UNQUANTISED if model.quantised else _QUANTISED), *(_ONE_RANK if options.tensor_parallel > 1 else ())}
    options.ways = options.ways or ",".join(way for way in _WAYS if way not in left_out)
    # the servers end with the stack, before the folder
    with working_folder("gpu-vllm-", options) as folder, ExitStack() as stack:
        rows, limit, failed = _run(stack, model, folder, options)
    document = {
        "header": header("scripts/gpu-vllm", "vllm", "torch", "checkpoint-engine"),
        "model": model.name,
        "bytes": model.bytes,
        "tensors": len(model.shapes),
        "limit_gb_per_s": limit,
    }
    if options.json is not None:
        server = {"graphs": options.graphs, "tensor_parallel": options.tensor_parallel}
        whole = {**document, **server, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    return 1 if failed or any(row.wrong for row in rows) else 0


def _run(stack: ExitStack, model: Model, folder: Path, options: argparse.Namespace) -> tuple[list[Row], float, list[str]]:
    config = model.write_config(folder / "model")
    if options.fresh:
        # other weights of the same files: what neither of them has is then the same too
        model.write_files(config, 2)
    arguments = _GRAPHS if options.graphs else ["--enforce-eager"]
    if options.tensor_parallel > 1:
        arguments = [*arguments, "--tensor-parallel-size", str(options.tensor_parallel), "--disable-custom-all-reduce"]
    load = [] if options.fresh else _DUMMY
    ipc = _IPC if {"vllm-ipc", "native", "native-refused"} & {*options.ways.split(",")} else []
    server = stack.enter_context(VllmServer(config, options.port, folder / "vllm.log", [*load, *ipc, *arguments]))
    # while the server starts
    files = model.write_files(folder / "files", 1)
    expected = _fresh_sums(model, folder, files, options.port + 1, arguments) if options.fresh else {}
    server.wait()
    limit = pinned_rate()
    print(f"# {model.name}: {model.bytes / 1e9:.2f} GB in {len(model.shapes)} tensors; pinned H2D {limit:.1f} GB/s", flush=True)
    print(f"{'way':18}" + "".join(f"{column:>10}" for column in _COLUMNS), flush=True)
    server.post("/pause?mode=abort")
    measured = Measured(server, model, limit, expected)
    failed: list[str] = []
    for way in options.ways.split(","):
        try:
            with ExitStack() as of_way:
                daemon = _WAYS[way](of_way, server, files, folder, options.tensor_parallel)
                server.call("measured_way", way)
                # the first one pins, compiles or records
                for number in range(options.rounds + 1):
                    measured.update(way, number, daemon)
        except Exception as error:
            # a peer may fail where we do not
            if issubclass(_WAYS[way], CkptWay):
                failed.append(way)
            print(f"{way:18} FAILED: {type(error).__name__}: {str(error)[-3000:]}", flush=True)
    return measured.rows, limit, failed


def _fresh_sums(model: Model, folder: Path, files: list[Path], port: int, arguments: list[str]) -> dict[str, str]:
    """Of a server that was started with the files."""
    config = model.write_config(folder / "fresh")
    for path in files:
        (config / path.name).hardlink_to(path)
    with VllmServer(config, port, folder / "fresh.log", arguments) as server:
        server.wait()
        return _sums(server)


def _sums(server: VllmServer) -> dict[str, str]:
    """Of every tensor of every rank."""
    ranks = server.call("ckpt_checksum")
    return {f"{rank}:{name}": value for rank, sums in enumerate(ranks) for name, value in sums.items()}


class Measured:
    def __init__(self, server: VllmServer, model: Model, limit: float, expected: dict[str, str]):
        self.rows: list[Row] = []
        self._server = server
        self._model = model
        self._limit = limit
        self._expected = expected

    def update(self, way: str, number: int, daemon: CkptWay | PeerWay | VllmIpcWay) -> None:
        self._server.call("measured_zero")
        with DeviceMemory() as memory:
            begin = time.perf_counter()
            report = daemon.update(number)
            whole = time.perf_counter() - begin
        parts = report.get("seconds", {})
        apart = parts.get("post", 0.0) + parts.get("resume", 0.0)
        seconds = whole - apart
        sums = _sums(self._server)
        self._expected = self._expected or sums
        different = [name for name, value in self._expected.items() if sums.get(name) != value]
        # the ranks load the same tensors
        state = self._server.call("ckpt_state")[0]
        last = state.get("last") or {}
        tensors = last.get("replayed", 0) + last.get("ordinary", 0)
        rate = self._model.bytes / seconds / 1e9
        # another way's worker may have told it before
        told = isinstance(daemon, CkptWay) and daemon.tells
        busy = last["busy_seconds"] / tensors * 1e6 if tensors and told else None
        row = Row(
            way,
            number,
            seconds,
            apart,
            rate,
            100 * rate / self._limit,
            memory.bytes / 2**20,
            busy,
            last.get("replayed", 0) if told else 0,
            len(different),
            len(self._expected),
            {"report": report, "state": state, "different": different[:20]},
        )
        self.rows.append(row)
        numbers = (f"{seconds:.3f}", f"{rate:.1f}", f"{row.percent:.1f}", f"{apart:.3f}", f"{row.device_mib:.0f}")
        shown = "-" if busy is None else f"{busy:.1f}"
        columns = (str(number), *numbers, shown, str(row.replayed), str(row.wrong))
        print(f"{way:18}" + "".join(f"{column:>10}" for column in columns), flush=True)
        for reason, count in last.get("reasons", {}).items():
            print(f"  {count} tensors loaded by the engine: {reason}", flush=True)
        if different:
            print(f"  different: {', '.join(different[:5])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
