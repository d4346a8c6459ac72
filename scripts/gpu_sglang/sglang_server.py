"""A real SGLang as a process, and its routes. Facts of SGLang 0.5.16."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from measured_plugin import FOLDER
from server import EngineServer

_HERE = Path(__file__).parent
_WORKER = _HERE.parent.parent / "python/ckpt_worker"
# nothing that is compiled when the server starts, and one token less to wait for
_ARGUMENTS = (
    "--load-format dummy --skip-tokenizer-init --attention-backend triton --sampling-backend pytorch --grammar-backend none "
    "--disable-cuda-graph --skip-server-warmup --moe-runner-backend triton --mem-fraction-static 0.5 --context-length 2048"
)
_TOKENS = 1500
_RUNNING_SECONDS = 1.0

Sums = dict[str, str]


class SglangServer(EngineServer):
    """@param model: folder with a `config.json`
    @param folder: an empty one, for what the server and the measurement tell each other
    """

    def __init__(self, model: Path, port: int, tensor_parallel: int, folder: Path, log: Path, arguments: list[str]):
        self._folder = folder
        self.take("checkpoint-engine")
        # what an installed package has, so that SGLang finds the plugin
        installed = folder / "measured-0.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: measured\nVersion: 0\n")
        (installed / "entry_points.txt").write_text("[sglang.srt.plugins]\nmeasured = measured_plugin:plugin\n")
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--tp-size", str(tensor_parallel), *_ARGUMENTS.split(), *arguments]
        env = {"SGLANG_PLUGINS": "measured", FOLDER: str(folder)}
        # GET /health is itself a request, which a paused server never answers
        super().__init__("SGLang", port, "/ping", command, env, [_HERE, _WORKER, folder], log)

    def take(self, way: str) -> None:
        """The next updates, as `--ways` names it."""
        (self._folder / "way").write_text(way)

    def tallies(self) -> list[dict[str, Any]]:
        """What our worker has counted since this was called last, of each rank. Empty: the updates were not its."""
        found = []
        for path in sorted(self._folder.glob("tally.*")):
            found.append(json.loads(path.read_text()))
            path.unlink()
        return found

    def checksums(self) -> Sums:
        """Of each parameter and buffer of each rank."""
        answer = self.post("/weights_checker", {"action": "checksum"})
        sums: Sums = {}
        for rank in answer["ranks"]:
            number = rank["parallelism_info"]["tp_rank"]
            sums |= {f"{number}:{name}": value for name, value in rank["checksums"].items()}
        return sums

    def load(self, folder: Path) -> None:
        """SGLang's own way: it reads the files."""
        self.post("/pause_generation", {"mode": "abort"})
        body = {"model_path": str(folder), "load_format": "auto", "flush_cache": False}
        answer = self.post("/update_weights_from_disk", body)
        self.post("/continue_generation", {})
        if not answer["success"]:
            raise RuntimeError(f"/update_weights_from_disk: {answer['message']}")

    def generate(self) -> threading.Thread:
        """A long request, which a pause with `abort` ends. Joins when it has been answered, with an error then."""

        def request() -> None:
            parameters = {"max_new_tokens": _TOKENS, "ignore_eos": True, "temperature": 0.0}
            with suppress(RuntimeError):
                self.post("/generate", {"input_ids": [1, 2, 3, 4], "sampling_params": parameters})

        thread = threading.Thread(target=request, daemon=True)
        thread.start()
        time.sleep(_RUNNING_SECONDS)
        return thread
