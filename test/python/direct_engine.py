"""One engine worker whose parameters lie in POSIX shared memory (what `ckpt_memory_open` of libckpt_host.so opens): it records how it
loads one version, and lets a daemon bring the next one straight into them.

    python direct_engine.py ADDRESS FIRST.safetensors NEXT.safetensors

It prints one JSON object: `wrong`, the parameters that are not what loading NEXT would have made, and `events`.
"""

import json
import mmap
import os
import sys

import torch
import zmq
from safetensors.torch import load_file

from ckpt_worker import Limits, Reload, Tally
from ckpt_worker.direct import DirectEngine, update_weights_directly
from ckpt_worker.messages import Listed
from ckpt_worker.placement import Allocation
from ckpt_worker.recorder import Tensor

HANDLE_BYTES = 64
GAP_BYTES = 64
RANK, RANKS = 1, 2


class SharedMemory:
    """Several tensors in one allocation, each some bytes after the one before."""

    def __init__(self, number, sizes):
        self.name = f"/ckpt-direct-{os.getpid()}-{number}"
        self.bytes = sum(sizes) + GAP_BYTES * (len(sizes) + 1)
        fd = os.open("/dev/shm" + self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(fd, self.bytes)
        self.whole = torch.frombuffer(mmap.mmap(fd, self.bytes), dtype=torch.uint8)
        os.close(fd)
        self.begin = self.whole.data_ptr()

    def close(self):
        os.unlink("/dev/shm" + self.name)

    def allocation(self):
        return Allocation(self.name.encode().ljust(HANDLE_BYTES, b"\0"), self.begin, self.bytes)


def shapes_of(files):
    """One of two tensor-parallel ranks: rows of q, k and v fused, columns of down, whole experts transposed, the rest as it is."""
    q, down = files["q"], files["down"]
    experts = sum(name.startswith("expert") for name in files)
    first = files["expert0"]
    return {
        "qkv": ((3 * q.shape[0] // RANKS, q.shape[1]), q.dtype),
        "down": ((down.shape[0], down.shape[1] // RANKS), down.dtype),
        "experts": ((experts, first.shape[1], first.shape[0]), first.dtype),
        "norm": (tuple(files["norm"].shape), files["norm"].dtype),
    }


def load(parameters, weights):
    for name, tensor in weights:
        if name in "qkv":
            rows = tensor.shape[0] // RANKS
            parameters["qkv"].narrow(0, rows * "qkv".index(name), rows).copy_(tensor.narrow(0, rows * RANK, rows))
        elif name == "down":
            columns = tensor.shape[1] // RANKS
            parameters["down"].copy_(tensor.narrow(1, columns * RANK, columns))
        elif name.startswith("expert"):
            parameters["experts"][int(name.removeprefix("expert"))].copy_(tensor.t())
        elif name == "norm":
            parameters["norm"].copy_(tensor)


def record(reload, files, parameters):
    """As the lists of an update through a ring bring it."""
    ring = torch.zeros(sum(-(-value.nbytes // 256) * 256 for value in files.values()), dtype=torch.uint8)
    listed, offset = [], 0
    for name, value in files.items():
        ring[offset : offset + value.nbytes].copy_(value.contiguous().view(-1).view(torch.uint8))
        listed.append(Listed(Tensor(name, offset, value.nbytes), value.dtype, value.shape))
        offset += -(-value.nbytes // 256) * 256
    reload.begin(ring, Tally())
    half = len(listed) // 2
    for number, part in enumerate((listed[:half], listed[half:])):
        reload.load(str(number).encode(), part, ring, lambda weights: load(parameters, weights))
    reload.release()
    reload.process(lambda: None)
    reload.end()


def main():
    address, first, following = sys.argv[1:]
    files, events = load_file(first), []
    shapes = shapes_of(files)
    sizes = [torch.empty(shape, dtype=dtype, device="meta").nbytes for shape, dtype in shapes.values()]
    memories = [SharedMemory(0, sizes[:2]), SharedMemory(1, sizes[2:])]
    try:
        parameters, places = {}, [(memories[0], GAP_BYTES), (memories[0], 2 * GAP_BYTES + sizes[0])]
        places += [(memories[1], GAP_BYTES), (memories[1], 2 * GAP_BYTES + sizes[2])]
        for (name, (shape, dtype)), size, (memory, at) in zip(shapes.items(), sizes, places):
            parameters[name] = memory.whole[at : at + size].view(dtype).view(shape)
        reload = Reload(parameters.items)
        record(reload, files, parameters)
        engine = DirectEngine(
            reload,
            lambda at: next(one for one in memories if one.begin <= at < one.begin + one.bytes).allocation(),
            lambda: events.append("hook"),
            lambda: None,
            lambda torn: events.append("torn" if torn else "whole"),
        )
        update_weights_directly(zmq.Context.instance(), address, engine, Limits(total=30.0))
        wanted = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
        load(wanted, load_file(following).items())
        as_bytes = {name: value.contiguous().view(-1).view(torch.uint8) for name, value in parameters.items()}
        wrong = [name for name, value in wanted.items() if not torch.equal(value.view(-1).view(torch.uint8), as_bytes[name])]
        print(json.dumps({"wrong": wrong, "events": events}))
    finally:
        for memory in memories:
            memory.close()


if __name__ == "__main__":
    main()
