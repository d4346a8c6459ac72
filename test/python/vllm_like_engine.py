"""An engine of several tensor-parallel workers that use `ckpt_worker`'s extension as vLLM's workers do, on the CPU.

    python vllm_like_engine.py --ranks N --layout SEED --like FILE.safetensors

HTTP in front (`/health`, `/collective_rpc` as vLLM answers it, `POST /v1/wrong {"file": ...}`), and behind it one thread for each
worker, whose parameters lie in POSIX shared memory: what another process opens in place of CUDA IPC (libckpt_host.so). vLLM's
own modules and torch's `rebuild_cuda_tensor` are replaced, nothing of `ckpt_worker` but which allocation an address is in.

The model is made for the tensors of FILE: fused rows of q, k and v; experts whose halves are fused, sliced in rows and in columns;
scales of a few bytes; a padded head; and the others whole, sliced, transposed or ignored, as SEED decides.

It prints `ready http://HOST:PORT` on standard output. `/v1/wrong` answers with the parameters that are not what loading that file
into empty ones makes.
"""

import argparse
import contextlib
import mmap
import os
import random
import sys
import threading
import types
from http.server import ThreadingHTTPServer

import torch
import torch.multiprocessing.reductions as reductions
from engine_http import JsonHandler, map_shared_memory
from safetensors.torch import load_file

from ckpt_worker import WorkerExtension
from ckpt_worker import vllm as extension
from ckpt_worker.placement import Allocation

HANDLE_BYTES = 64
GAP_BYTES = 64
PADDING_ROWS = 3
ALLOCATIONS = 3


class SharedMemory:
    """One allocation for several tensors, each some bytes after the one before, in an order that is not theirs."""

    made = []

    def __init__(self, bytes_):
        self.name = f"/ckpt-like-{os.getpid()}-{len(self.made)}"
        self.bytes, self.used = bytes_, GAP_BYTES
        fd = os.open("/dev/shm" + self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(fd, bytes_)
        self.whole = torch.frombuffer(mmap.mmap(fd, bytes_), dtype=torch.uint8)
        os.close(fd)
        self.made.append(self)

    def tensor(self, shape, dtype):
        size = torch.empty(shape, dtype=dtype, device="meta").nbytes
        at, self.used = self.used, self.used + -(-size // GAP_BYTES) * GAP_BYTES + GAP_BYTES
        return self.whole[at : at + size].view(dtype).view(shape)

    @classmethod
    def allocation_of(cls, address):
        for one in cls.made:
            begin = one.whole.data_ptr()
            if begin <= address < begin + one.bytes:
                return Allocation(one.name.encode().ljust(HANDLE_BYTES, b"\0"), begin, one.bytes)
        raise AssertionError(f"no allocation has {address:#x}")

    @classmethod
    def remove_all(cls):
        for one in cls.made:
            os.unlink("/dev/shm" + one.name)


class DriverMemory:
    """In place of `CudaMemory`."""

    def allocation_of(self, address):
        return SharedMemory.allocation_of(address)


def rebuild_from_shared_memory(*args):
    """Maps the ring that the raw 64-byte handle names; args are the 15 of torch's rebuild_cuda_tensor."""
    return map_shared_memory(args[7], args[8])


class Layout:
    """Which part of a tensor goes where on one rank."""

    def __init__(self, like, rank, ranks, seed):
        self.rank, self.ranks, self.seed = rank, ranks, seed
        self.experts = sum(name.endswith(".w1") for name in like)
        self.shapes = {}
        for name, tensor in like.items():
            for parameter, shape in self.needs(name, tensor):
                self.shapes[parameter] = (shape, tensor.dtype)

    def cut(self, tensor, dim):
        size = tensor.shape[dim] // self.ranks
        return tensor.narrow(dim, size * self.rank, size)

    def kind(self, name, tensor):
        kinds = ["whole", "ignored"]
        if tensor.dim() == 2:
            kinds += ["transposed", *(kind for dim, kind in enumerate(("rows", "columns")) if tensor.shape[dim] % self.ranks == 0)]
        return random.Random(f"{self.seed} {name}").choice(kinds)

    def needs(self, name, tensor):
        if name in "qkv":
            rows = tensor.shape[0] // self.ranks
            return [("qkv", (3 * rows, *tensor.shape[1:]))]
        if name.startswith("experts."):
            part = name.rpartition(".")[2]
            if part == "w2":
                return [("w2", (self.experts, *self.cut(tensor, 1).shape))]
            if part == "scale":
                return [("scales", (self.experts, *tensor.shape))]
            rows, columns = self.cut(tensor, 0).shape
            return [("w13", (self.experts, 2 * rows, columns))]
        if name == "head":
            return [("head", (tensor.shape[0] + PADDING_ROWS, *tensor.shape[1:]))]
        part = self.part(name, tensor)
        return [] if part is None else [(name, tuple(part.shape))]

    def part(self, name, tensor):
        kind = self.kind(name, tensor)
        if kind == "ignored":
            return None
        if kind == "transposed":
            return tensor.t()
        return tensor if kind == "whole" else self.cut(tensor, ("rows", "columns").index(kind))

    def load(self, parameters, name, tensor):
        if name in "qkv":
            mine = self.cut(tensor, 0)
            parameters["qkv"].narrow(0, "qkv".index(name) * len(mine), len(mine)).copy_(mine)
        elif name.startswith("experts."):
            _, expert, part = name.split(".")
            if part == "w2":
                parameters["w2"][int(expert)].copy_(self.cut(tensor, 1))
            elif part == "scale":
                parameters["scales"][int(expert)].copy_(tensor)
            else:
                mine = self.cut(tensor, 0)
                parameters["w13"][int(expert)].narrow(0, (part == "w3") * len(mine), len(mine)).copy_(mine)
        elif name == "head":
            parameters["head"][len(tensor) :].zero_()
            parameters["head"][: len(tensor)].copy_(tensor)
        elif name in parameters:
            parameters[name].copy_(self.part(name, tensor))


class Model(torch.nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        shapes = list(layout.shapes.items())
        random.Random(layout.seed).shuffle(shapes)
        sizes = [torch.empty(shape, dtype=dtype, device="meta").nbytes for _, (shape, dtype) in shapes]
        room = 2 * sum(sizes) + GAP_BYTES * 3 * (len(sizes) + 1)
        memories = [SharedMemory(room) for _ in range(ALLOCATIONS)]
        for index, (name, (shape, dtype)) in enumerate(shapes):
            tensor = memories[index % ALLOCATIONS].tensor(shape, dtype)
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(tensor, requires_grad=False))
        self.names = [name for name, _ in shapes]

    def tensors(self):
        return {name: getattr(self, name.replace(".", "_")).data for name in self.names}

    def load_weights(self, weights):
        parameters = self.tensors()
        for name, tensor in weights:
            self.layout.load(parameters, name, tensor)

    def wrong(self, file):
        wanted = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self.layout.shapes.items()}
        for name, tensor in load_file(file).items():
            self.layout.load(wanted, name, tensor)
        held = self.tensors()
        return [name for name, value in wanted.items() if not torch.equal(as_bytes(value), as_bytes(held[name]))]


def as_bytes(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


class Worker(WorkerExtension):
    def __init__(self, model, rank):
        self.model = model
        self.device = types.SimpleNamespace(index=rank, type="cpu")
        self.model_config = types.SimpleNamespace(quantization=None)
        self.vllm_config = types.SimpleNamespace(parallel_config=types.SimpleNamespace(enable_eplb=False))

    def get_model(self):
        return self.model


class Engine:
    def __init__(self, like, ranks, seed):
        self.workers = [Worker(Model(Layout(like, rank, ranks, seed)), rank) for rank in range(ranks)]
        self.keys = []

    def call(self, method, args):
        # as the devices of one host: in the order of the ranks
        self.keys = sorted(args[0], key=lambda key: (len(key), key))
        results = [None] * len(self.workers)

        def one(rank):
            results[rank] = getattr(self.workers[rank], method)(*args)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(self.workers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def play_vllm(self):
        info = types.SimpleNamespace(restore_metadata=({}, {}), can_load=lambda: False, load_numel=0, loaded_weights=[])
        layerwise = types.SimpleNamespace(get_layerwise_info=lambda _layer: info)
        utils = types.SimpleNamespace(process_weights_after_loading=lambda _model, _config, _device: None)
        platform = types.SimpleNamespace(get_device_uuid=lambda index: self.keys[index])
        loader = "vllm.model_executor.model_loader"
        for name in ("vllm", "vllm.model_executor", loader, f"{loader}.reload"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules[f"{loader}.reload.layerwise"] = layerwise
        sys.modules[f"{loader}.utils"] = utils
        sys.modules["vllm.config"] = types.SimpleNamespace(set_current_vllm_config=lambda _config: contextlib.nullcontext())
        sys.modules["vllm.platforms"] = types.SimpleNamespace(current_platform=platform)


def handler_of(engine):
    class Handler(JsonHandler):
        def do_GET(self):
            return self.answer(200 if self.path == "/health" else 404, {})

        def do_POST(self):
            body = self.body()
            if self.path == "/v1/wrong":
                return self.answer(200, [worker.model.wrong(body["file"]) for worker in engine.workers])
            if self.path != "/collective_rpc":
                return self.answer(404, {})
            return self.answer(200, {"results": engine.call(body["method"], body["args"])})

    return Handler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--layout", type=int, default=0)
    parser.add_argument("--like", required=True)
    args = parser.parse_args()
    reductions.rebuild_cuda_tensor = rebuild_from_shared_memory
    extension.CudaMemory = DriverMemory
    engine = Engine(load_file(args.like), args.ranks, args.layout)
    engine.play_vllm()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(engine))
    print(f"ready http://127.0.0.1:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    finally:
        SharedMemory.remove_all()


if __name__ == "__main__":
    main()
