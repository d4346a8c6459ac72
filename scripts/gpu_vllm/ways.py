"""Who brings the weights into the engine: this daemon, checkpoint-engine, or vLLM itself."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ckpt_client.connection import UnixConnection
from daemons import start, start_ckpt, update_plainly
from safetensors.torch import load_file
from vllm_server import VllmServer

_CHECKPOINT = "measured"
_REFUSED = "refused"
# in place of a name as long, in the middle of the model
_UNKNOWN = "no_such_weight"
_UPDATE_SECONDS = 300
_PACKED_BYTES = 2**30


class CkptWay:
    """`ckpt serve`, through its ring, with the engine's worker loading in one of the ways of our extension."""

    #: of the first update, and of the others
    first_mode = mode = "pipelined"
    #: None: the daemon's own choice
    method: str | None = None
    #: the engine's worker is ours, which says what it has done
    tells = True

    def __init__(self, stack: ExitStack, server: VllmServer, files: list[Path], folder: Path, ranks: int):
        self._server = server
        self._ranks = list(range(ranks))
        self._daemon = start_ckpt(stack, folder, "ckpt", ranks)
        self._daemon.register_files(_CHECKPOINT, [str(path) for path in files])

    def update(self, number: int) -> dict[str, Any]:
        """@param number: 0: the first one, which may be of another kind"""
        return self._update(_CHECKPOINT, self.mode if number > 0 else self.first_mode)

    def _update(self, checkpoint: str, mode: str) -> dict[str, Any]:
        url = f"{self._server.url}/collective_rpc"
        engines = [{"url": url, "ranks": self._ranks, "engine": "vllm"}]
        method = {} if self.method is None else {"engine_method": self.method}
        return self._daemon.update(checkpoint, engines=engines, pause="none", timeout=_UPDATE_SECONDS, mode=mode, **method)

    def close(self) -> None:
        self._daemon.delete(_CHECKPOINT, force=True)
        self._daemon.close()


class DirectWay(CkptWay):
    """As the daemon chooses: straight into the parameters, after one update through the ring has told where they lie."""

    first_mode = mode = "auto"

    def update(self, number: int) -> dict[str, Any]:
        report = super().update(number)
        if number > 0 and report["mode"] != "direct":
            raise RuntimeError(f"the update was not direct: {report['mode_reason']}")
        return report


class NativeWay(CkptWay):
    """`ckpt serve`, through its ring and vLLM's own weight transfer: no extension takes part."""

    method = "native-ipc"
    tells = False


class NativeRefusedWay(NativeWay):
    """The same, each time after an update that vLLM refuses in the middle: what that has loaded must not stay."""

    def __init__(self, stack: ExitStack, server: VllmServer, files: list[Path], folder: Path, ranks: int):
        super().__init__(stack, server, files, folder, ranks)
        self._daemon.register_files(_REFUSED, [str(path) for path in _with_unknown_name(files, folder / "refused")])

    def update(self, number: int) -> dict[str, Any]:
        refused = ""
        try:
            self._update(_REFUSED, self.mode)
        except Exception as error:
            refused = str(error)
        if _UNKNOWN not in refused:
            raise RuntimeError(f"a tensor that the model does not have was not refused: {refused!r}")
        print(f"  refused: {refused[:200]}", flush=True)
        return super().update(number)


class PeerWorkerWay(CkptWay):
    """`ckpt serve`, with checkpoint-engine's extension in the engine."""

    tells = False


class PlainWay(CkptWay):
    """`ckpt update` with nothing but where the files and the engine are; the daemon runs."""

    def __init__(self, stack: ExitStack, server: VllmServer, files: list[Path], folder: Path, ranks: int):
        super().__init__(stack, server, files, folder, ranks)
        self._address = str(folder / "ckpt.sock")
        self._files = files[0].parent

    def update(self, _number: int) -> dict[str, Any]:
        return update_plainly(self._address, self._files, self._server.url, len(self._ranks))


class PeerWay:
    """checkpoint-engine's own server, its registration and its extension."""

    def __init__(self, stack: ExitStack, server: VllmServer, files: list[Path], folder: Path, _ranks: int):
        self._server = server
        address = folder / "peer.sock"
        port = _free_port()
        env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        start(stack, [sys.executable, "-m", "checkpoint_engine", "--uds", str(address)], folder / "peer.log", env, address)
        self._address = str(address)
        # it deletes files in shared memory once it has pinned them
        links = folder / "peer-files"
        links.mkdir()
        for path in files:
            os.link(path, links / path.name)
        self._post("files", {"files": [str(links / path.name) for path in files]})
        self._post("gather-metas", {})

    def update(self, _number: int) -> dict[str, Any]:
        self._post("update", {"update_url": f"{self._server.url}/collective_rpc", "timeout": _UPDATE_SECONDS})
        return {}

    def _post(self, action: str, body: dict[str, Any]) -> None:
        connection = UnixConnection(self._address, _UPDATE_SECONDS)
        path = f"/v1/checkpoints/{_CHECKPOINT}/{action}"
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {text[:2000]}")


class VllmIpcWay:
    """vLLM's own transfer: this process is a trainer whose tensors are on the same GPU, so that nothing goes over PCIe."""

    def __init__(self, _stack: ExitStack, server: VllmServer, files: list[Path], _folder: Path, _ranks: int):
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

        self._server = server
        self._send = IPCWeightTransferEngine.trainer_send_weights
        self._tensors = {name: tensor for path in files for name, tensor in load_file(path, device="cuda").items()}
        # its own default, or the largest tensor
        self._packed_bytes = max(_PACKED_BYTES, *(tensor.nbytes for tensor in self._tensors.values()))
        server.post("/init_weight_transfer_engine", {"init_info": {}})

    def update(self, _number: int) -> dict[str, Any]:
        self._server.post("/start_weight_update", {"is_checkpoint_format": True})
        how = {"send_mode": "http", "url": self._server.url, "packed": True, "packed_buffer_size_bytes": self._packed_bytes}
        self._send(iter(self._tensors.items()), how)
        self._server.post("/finish_weight_update", {})
        return {}


def _with_unknown_name(files: list[Path], folder: Path) -> list[Path]:
    """Links to the files, and a copy of the one in the middle that has a tensor which the model does not."""
    folder.mkdir()
    paths = [folder / path.name for path in files]
    middle = len(files) // 2
    for index, (path, link) in enumerate(zip(files, paths, strict=True)):
        if index != middle:
            os.link(path, link)
            continue
        content = path.read_bytes()
        size = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:size])
        names = [name for name in header if name.endswith(".self_attn.o_proj.weight")]
        known = names[len(names) // 2]
        unknown = known[: -len(_UNKNOWN)] + _UNKNOWN
        link.write_bytes(content[:size].replace(f'"{known}"'.encode(), f'"{unknown}"'.encode()) + content[size:])
    return paths


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
