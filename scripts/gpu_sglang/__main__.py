"""Updates a real SGLang in one way after another, and prints what each takes; `scripts/gpu-sglang --help`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckpt_client import Daemon
from command import common_options, model_of, working_folder
from daemons import start_ckpt, update_plainly
from measure import DeviceMemory, header, pinned_rate
from models import Model
from sglang_server import SglangServer, Sums

_WAYS = ("checkpoint-engine", "ordinary", "recorded")
# with other contents, in turn: what an update leaves as it was is then seen
_VERSIONS = 2
# others derive something of their weights with each list, or may
_PLAIN = ("moe", "dense")
_UPDATE_SECONDS = 120
# of the daemon, beyond the weights
_HOST_GIB = 4
# of a file system, beyond the weights
_FREE_BYTES = 2**30
_JOIN_SECONDS = 60
_SHOWN = 5
_COLUMNS = ("round", "s", "GB/s", "percent", "apart s", "MiB", "us/tensor", "replayed", "ordinary", "wrong")


@dataclass
class Row:
    """Of one update. `seconds`: of the whole call without `apart_seconds`, the pause, the flush of the cache and the resume.
    `replayed`, `ordinary`: tensors, of all ranks; None: checkpoint-engine's worker does not tell. `wrong`: parameters and
    buffers, of `compared`, that differ from what the same version of the files was before."""

    way: str
    round: int
    version: int
    seconds: float
    apart_seconds: float
    gb_per_s: float
    percent: float
    device_mib: float
    busy_us_per_tensor: float | None
    replayed: int | None
    ordinary: int | None
    wrong: int
    compared: int
    report: dict[str, Any]


def main() -> int:
    parser = common_options(__doc__)
    parser.add_argument("--ways", default=",".join(_WAYS))
    parser.add_argument("--from-disk", action="store_true", help="compare with what SGLang has loaded from the files itself")
    parser.add_argument("--plain", action="store_true", help="updates are sent by `ckpt update` with its plain defaults")
    parser.add_argument("--serving", action="store_true", help="a request is running when each update begins")
    parser.add_argument("--port", type=int, default=8123, help="of the server")
    parser.add_argument("arguments", nargs="*", help="more of the server's, after --")
    options = parser.parse_args()
    model = model_of(options)
    needed, free = _VERSIONS * model.bytes + _FREE_BYTES, shutil.disk_usage(options.dir).free
    if free < needed:
        parser.error(f"{options.dir} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} are needed: --dir, or --layers")
    # the servers end with the stack, before the folder
    with working_folder("gpu-sglang-", options) as folder, ExitStack() as stack:
        measured = Measured(stack, model, folder, options)
        measured.run(options.ways.split(","))
    if options.json is not None:
        options.json.write_text(json.dumps(measured.document(), indent=1) + "\n")
    wrong = sum(row.wrong for row in measured.rows)
    problems = [*measured.problems, *([f"{wrong} tensors are wrong"] if wrong else [])]
    print("passed" if not problems else f"FAILED: {'; '.join(problems)}", flush=True)
    return 1 if problems else 0


class Measured:
    """The server, and what became of its updates."""

    def __init__(self, stack: ExitStack, model: Model, folder: Path, options: argparse.Namespace):
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self._begin = time.monotonic()
        self._model = model
        self._folder = folder
        self._options = options
        config = model.write_config(folder / "model")
        (folder / "told").mkdir()
        log = folder / "sglang.log"
        server = SglangServer(config, options.port, options.tensor_parallel, folder / "told", log, options.arguments)
        self._server = stack.enter_context(server)
        # while the server starts
        self._files = [self._write_version(version) for version in range(_VERSIONS)]
        self._say(f"{_VERSIONS} versions of the files are written")
        server.wait()
        self._limit = pinned_rate()
        self._say(f"{len(server.checksums())} parameters and buffers have checksums")
        self._expected: dict[int, Sums] = {}
        if options.from_disk:
            self._expected = {version: self._loaded(version) for version in range(_VERSIONS)}
            self._compare_versions()

    def run(self, ways: list[str]) -> None:
        size, count = self._model.bytes / 1e9, len(self._model.shapes)
        print(f"# {self._model.name}: {size:.2f} GB in {count} tensors; pinned H2D {self._limit:.1f} GB/s", flush=True)
        print(f"{'way':18}" + "".join(f"{column:>10}" for column in _COLUMNS), flush=True)
        for way in ways:
            try:
                self._measure(way)
            except Exception as error:
                self.problems.append(f"{way} has failed")
                print(f"{way:18} FAILED: {type(error).__name__}: {str(error)[-3000:]}", flush=True)
        self._say("done")

    def document(self) -> dict[str, Any]:
        return {
            "header": header("scripts/gpu-sglang", "sglang", "torch", "checkpoint-engine"),
            "model": self._model.name,
            "bytes": self._model.bytes,
            "tensors": len(self._model.shapes),
            "tensor_parallel": self._options.tensor_parallel,
            "serving": self._options.serving,
            "limit_gb_per_s": self._limit,
            "problems": self.problems,
            "rows": [asdict(row) for row in self.rows],
        }

    def _say(self, words: str) -> None:
        print(f"# {time.monotonic() - self._begin:4.0f} s: {words}", flush=True)

    def _write_version(self, version: int) -> list[str]:
        folder = self._folder / f"files-{version}"
        paths = self._model.write_files(folder, version + 1)
        (folder / "config.json").write_text(json.dumps(self._model.config))
        return [str(path) for path in paths]

    def _loaded(self, version: int) -> Sums:
        self._server.load(self._folder / f"files-{version}")
        sums = self._server.checksums()
        self._say(f"SGLang has loaded version {version} itself")
        return sums

    def _compare_versions(self) -> None:
        """A tensor whose checksum is the same in both could be stale, and nobody would see it."""
        first, second = (self._expected[version] for version in range(_VERSIONS))
        same = sorted(name for name, value in first.items() if value == second.get(name))
        apart = f"{len(first) - len(same)} of {len(first)} checksums tell the versions apart"
        self._say(f"{apart}; not: {', '.join(same) or 'none'}")
        if len(same) == len(first) or (same and self._options.model in _PLAIN):
            self.problems.append(f"in both versions the same: {', '.join(same[:_SHOWN])}")

    def _measure(self, way: str) -> None:
        assert way in _WAYS, f"there is no way {way}"
        self._server.take(way)
        with ExitStack() as stack:
            # one for each way: it remembers what an engine's worker speaks
            host_gib = _VERSIONS * self._model.bytes // 2**30 + _HOST_GIB
            daemon = start_ckpt(stack, self._folder, f"ckpt-{way}", self._options.tensor_parallel, host_gib)
            # the plain command does that too
            for version, files in enumerate(self._files if not self._options.plain else []):
                daemon.register_files(f"version-{version}", files)
            # the first one pins, compiles or records
            for number in range(self._options.rounds + 1):
                self._update(way, number, daemon)

    def _update(self, way: str, number: int, daemon: Daemon) -> None:
        request = self._server.generate() if self._options.serving else None
        with DeviceMemory() as memory:
            begin = time.perf_counter()
            report = self._send(way, number, daemon)
            whole = time.perf_counter() - begin
        if request is not None:
            request.join(_JOIN_SECONDS)
            if request.is_alive():
                self.problems.append(f"{way} {number}: a request of before the pause was not answered")
        self._add(way, number, whole, memory.bytes, report)

    def _send(self, way: str, number: int, daemon: Daemon) -> dict[str, Any]:
        version = number % _VERSIONS
        if self._options.plain:
            files = self._folder / f"files-{version}"
            return update_plainly(str(self._folder / f"ckpt-{way}.sock"), files, self._server.url, self._options.tensor_parallel)
        ranks = list(range(self._options.tensor_parallel))
        engines = [{"url": f"{self._server.url}/update_weights_from_ipc", "ranks": ranks, "engine": "sglang"}]
        return daemon.update(
            f"version-{version}",
            engines=engines,
            pause="abort",
            weight_version=f"{way} {number}",
            timeout=_UPDATE_SECONDS,
            mode="pipelined",
        )

    def _add(self, way: str, number: int, whole: float, device_bytes: int, report: dict[str, Any]) -> None:
        version = number % _VERSIONS
        apart = sum(report["seconds"].get(phase, 0.0) for phase in ("pause", "post", "resume"))
        seconds = whole - apart
        sums = self._server.checksums()
        known = version in self._expected
        expected = self._expected.setdefault(version, sums)
        different = sorted(name for name in expected.keys() | sums.keys() if sums.get(name) != expected.get(name))
        tallies = self._server.tallies()
        replayed = sum(tally["replayed"] for tally in tallies) if tallies else None
        ordinary = sum(tally["ordinary"] for tally in tallies) if tallies else None
        rate = self._model.bytes / seconds / 1e9
        busy = None
        if tallies:
            busy = 1e6 * max(tally["busy_seconds"] for tally in tallies) / len(self._model.shapes)
        row = Row(
            way,
            number,
            version,
            seconds,
            apart,
            rate,
            100 * rate / self._limit,
            device_bytes / 2**20,
            busy,
            replayed,
            ordinary,
            len(different),
            len(expected),
            {"report": report, "tallies": tallies, "different": different[:20]},
        )
        self.rows.append(row)
        self._print(row)
        if not known and len(self._expected) == _VERSIONS:
            self._compare_versions()
        if (ordinary is None) != (way == "checkpoint-engine"):
            self.problems.append(f"{way} {number}: it went to the other worker")
        if way == "recorded" and number > 0 and ordinary and self._options.model in _PLAIN:
            self.problems.append(f"recorded {number}: {ordinary} tensors were not replayed")

    def _print(self, row: Row) -> None:
        numbers = (f"{row.seconds:.3f}", f"{row.gb_per_s:.1f}", f"{row.percent:.1f}", f"{row.apart_seconds:.3f}")
        counts = ("-" if count is None else str(count) for count in (row.replayed, row.ordinary))
        busy = "-" if row.busy_us_per_tensor is None else f"{row.busy_us_per_tensor:.1f}"
        columns = (str(row.round), *numbers, f"{row.device_mib:.0f}", busy, *counts, str(row.wrong))
        print(f"{row.way:18}" + "".join(f"{column:>10}" for column in columns), flush=True)
        for tally in row.report["tallies"]:
            for reason, count in tally["reasons"].items():
                print(f"  {count} tensors loaded by the engine: {reason}", flush=True)
        if row.wrong:
            print(f"  different: {', '.join(row.report['different'][:_SHOWN])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
