"""Updates a real LMDeploy, and compares its answers with those of servers started from the same files; `scripts/gpu-lmdeploy --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckpt_client import Daemon
from command import common_options, model_of, working_folder
from daemons import start_ckpt
from lmdeploy_server import Answers, LmdeployServer, write_tokenizer
from measure import DeviceMemory, header, pinned_rate
from models import Model
from safetensors import safe_open

# with other contents, in turn
_VERSIONS = 2
_UPDATE_SECONDS = 120
# of the daemon, beyond the weights
_HOST_GIB = 4
_COLUMNS = ("round", "version", "s", "GB/s", "percent", "apart s", "MiB")


@dataclass
class Row:
    """Of one update. `seconds`: of the whole call without `apart_seconds`, in which the server is put to sleep and woken up.
    `same`: it answers as a server does that was started from the same files."""

    round: int
    version: int
    seconds: float
    apart_seconds: float
    gb_per_s: float
    percent: float
    device_mib: float
    same: bool
    report: dict[str, Any]


def main() -> int:
    parser = common_options(__doc__)
    parser.add_argument("--port", type=int, default=23333, help="of the server")
    parser.add_argument("arguments", nargs="*", help="more of the server's, after --")
    options = parser.parse_args()
    model = model_of(options)
    # the servers end with the stack, before the folder
    with working_folder("gpu-lmdeploy-", options) as folder:
        files = [_write_version(model, folder / f"files-{version}", version) for version in range(_VERSIONS)]
        limit = pinned_rate()
        with _server(files[1], folder, options) as server:
            server.wait()
            second = server.answers()
        with _server(files[0], folder, options) as server:
            server.wait()
            expected = [server.answers(), second]
            rows = _measure(server, model, files, limit, expected, folder, options)
    if options.json is not None:
        told = {"model": model.name, "bytes": model.bytes, "tensors": len(model.shapes), "limit_gb_per_s": limit}
        head = header("scripts/gpu-lmdeploy", "lmdeploy", "torch", "checkpoint-engine")
        document = {"header": head, **told, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    problems = [f"update {row.round} answers otherwise" for row in rows if not row.same]
    if expected[0] == expected[1]:
        problems.append("both versions give the same answers, which says nothing")
    print("passed" if not problems else f"FAILED: {'; '.join(problems)}", flush=True)
    return 1 if problems else 0


def _write_version(model: Model, folder: Path, version: int) -> Path:
    paths = model.write_files(folder, version + 1)
    (folder / "config.json").write_text(json.dumps(model.config))
    write_tokenizer(folder)
    places: dict[str, str] = {}
    for path in paths:
        with safe_open(path, framework="pt") as shard:
            places |= dict.fromkeys(shard.keys(), path.name)
    index = {"metadata": {"total_size": model.bytes}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _server(files: Path, folder: Path, options: argparse.Namespace) -> LmdeployServer:
    return LmdeployServer(files, options.port, folder / f"lmdeploy-{files.name}.log", options.arguments)


def _measure(
    server: LmdeployServer,
    model: Model,
    files: list[Path],
    limit: float,
    expected: list[Answers],
    folder: Path,
    options: argparse.Namespace,
) -> list[Row]:
    size, count = model.bytes / 1e9, len(model.shapes)
    print(f"# {model.name}: {size:.2f} GB in {count} tensors; pinned H2D {limit:.1f} GB/s", flush=True)
    print("".join(f"{column:>10}" for column in (*_COLUMNS, "same")), flush=True)
    rows: list[Row] = []
    with ExitStack() as stack:
        daemon = start_ckpt(stack, folder, "ckpt", 1, _VERSIONS * model.bytes // 2**30 + _HOST_GIB)
        for version, of in enumerate(files):
            daemon.register_files(f"version-{version}", [str(path) for path in sorted(of.glob("*.safetensors"))])
        # the first one pins and compiles
        for number in range(options.rounds + 1):
            version = (number + 1) % _VERSIONS
            rows.append(_update(daemon, server, model, number, version, limit, expected[version]))
    return rows


def _update(
    daemon: Daemon, server: LmdeployServer, model: Model, number: int, version: int, limit: float, expected: Answers
) -> Row:
    with DeviceMemory() as memory:
        begin = time.perf_counter()
        # which engine it is the daemon finds out
        engines = [{"url": server.url, "ranks": [0]}]
        report = daemon.update(f"version-{version}", engines=engines, pause="wait", timeout=_UPDATE_SECONDS)
        whole = time.perf_counter() - begin
    apart = sum(report["seconds"].get(phase, 0.0) for phase in ("pause", "post", "resume"))
    seconds = whole - apart
    rate = model.bytes / seconds / 1e9
    same = server.answers() == expected
    row = Row(number, version, seconds, apart, rate, 100 * rate / limit, memory.bytes / 2**20, same, report)
    numbers = (f"{seconds:.3f}", f"{rate:.1f}", f"{row.percent:.1f}", f"{apart:.3f}", f"{row.device_mib:.0f}")
    columns = (str(number), str(version), *numbers, "yes" if same else "NO")
    print("".join(f"{column:>10}" for column in columns), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
