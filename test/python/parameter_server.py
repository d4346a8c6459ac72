"""checkpoint-engine's own ParameterServer 0.4.2, unmodified, one rank, which updates engines that speak its protocol.

    python parameter_server.py --device shm|cuda [--uuid UUID] [--port N]

It prints `ready` on standard output, reads jobs from standard input, one JSON object a line, and answers each with one:
{"url", "files": [...], "timeout"} -> {"ok", "error": "..." if it is not ok, "messages", "held", "device_bytes"}; `messages` is
what went to the worker, in hexadecimal, `held` counts the buffers that it has shared and that somebody has not given back,
`device_bytes` is what it still has allocated on a GPU, which such buffers are a part of.

With `--device cuda` nothing is replaced. With `--device shm` there is no CUDA: its device manager is replaced, its buffers are
POSIX shared memory that libckpt_host.so can open, and torch's `reduce_tensor` is told that they are on a GPU, at an offset in
their allocation. What it makes of that, and everything that is sent, is torch's and checkpoint-engine's own.
"""

import argparse
import gc
import json
import mmap
import os
import secrets
import struct
import sys
import types
import weakref
from contextlib import contextmanager
from unittest import mock

import torch
import zmq
from checkpoint_engine import api, device_utils, pin_memory, ps
from torch.multiprocessing import reductions

# where a ring begins in its allocation: torch's caching allocator gives out parts of what it has
RING_OFFSET = 4096
# torch's file of reference counters: a header, then as many int64
COUNTERS = 10_000
COUNTERS_HEADER = 64
# what torch puts before a handle since 2.13: a version, and the kind of cudaMalloc
HANDLE_PREFIX = b"\x03c"
HANDLE_BYTES = 64


def shared_memory(size):
    """Zeros, and a name that libckpt_host.so takes, and clears away when this process was killed."""
    name = f"/ckpt-{os.getpid()}-0-{secrets.token_hex(8)}"
    path = "/dev/shm" + name
    with open(path, "xb+") as file:
        file.truncate(size)
        memory = mmap.mmap(file.fileno(), size)
    weakref.finalize(memory, os.unlink, path)
    return name, memory


class Counters:
    """As torch's producer keeps them: 1 while the consumer has not given a buffer back."""

    def __init__(self):
        self.name, self.memory = shared_memory(COUNTERS_HEADER + 8 * COUNTERS)
        struct.pack_into("<q", self.memory, 0, 1)
        self.used = 0

    def next(self):
        index, self.used = self.used, self.used + 1
        struct.pack_into("<q", self.memory, COUNTERS_HEADER + 8 * index, 1)
        return index

    def held(self):
        return sum(struct.unpack_from(f"<{self.used}q", self.memory, COUNTERS_HEADER))


class HostTorch(types.ModuleType):
    """torch, but that its buffers are not on a GPU, nor pinned."""

    def __init__(self):
        super().__init__("torch")
        self.names = {}
        self.counters = Counters()

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, size, *, dtype=torch.float32, device=None, pin_memory=False):
        if device is None:
            return torch.empty(size, dtype=dtype)
        assert dtype == torch.uint8 and not pin_memory, (dtype, pin_memory)
        name, memory = shared_memory(RING_OFFSET + size)
        buffer = torch.frombuffer(memory, dtype=torch.uint8, offset=RING_OFFSET)
        self.names[buffer.data_ptr()] = name
        return buffer

    def share(self, storage):
        """What `_share_cuda_` of a storage on a GPU returns."""
        name = self.names[storage.data_ptr()].encode()
        handle = HANDLE_PREFIX + name.ljust(HANDLE_BYTES, b"\0")
        counter = (self.counters.name.encode(), self.counters.next())
        return 0, handle, storage.nbytes(), RING_OFFSET, *counter, secrets.token_bytes(HANDLE_BYTES), True

    def reduce_tensor(self, tensor):
        on_gpu = mock.patch.object(torch.UntypedStorage, "device", torch.device("cuda", 0), create=True)
        shared = mock.patch.object(torch.UntypedStorage, "_share_cuda_", lambda storage: self.share(storage), create=True)
        with on_gpu, shared:
            return reductions.reduce_tensor(tensor)


class HostModule:
    """What the ParameterServer calls of `torch.cuda`."""

    def __init__(self, uuid):
        self.properties = types.SimpleNamespace(uuid=uuid)

    def get_device_properties(self, index):
        assert index == 0, index
        return self.properties

    def device_count(self):
        return 1

    def mem_get_info(self):
        return 2**28, 2**30

    def memory_allocated(self):
        return 0

    memory_reserved = memory_allocated

    def synchronize(self):
        pass

    ipc_collect = empty_cache = synchronize

    def set_device(self, index):
        assert index == 0, index


def replace_device(uuid):
    host = HostTorch()
    manager = types.SimpleNamespace(device_type="cpu", device_module=HostModule(uuid), backend="gloo")
    ps.torch = pin_memory.torch = host
    ps.reduce_tensor = host.reduce_tensor
    ps.DeviceManager = lambda: manager
    return host


class RecordingSocket(zmq.Socket):
    messages = []

    def send(self, data, *args, **options):
        self.messages.append(bytes(data).hex())
        return super().send(data, *args, **options)


class RecordingContext(zmq.Context):
    _socket_class = RecordingSocket


@contextmanager
def registered(server, files):
    # in place it would remove the files
    server.register_checkpoint("recorded", files=files, use_inplace_pin_memory=False)
    try:
        yield
    finally:
        server.unregister_checkpoint("recorded")


def left(host):
    if host is not None:
        return {"held": host.counters.held(), "device_bytes": 0}
    gc.collect()
    torch.cuda.ipc_collect()
    return {"held": None, "device_bytes": torch.cuda.memory_allocated()}


def update(server, job):
    def request(socket_paths):
        api.request_inference_to_update(job["url"], dict(socket_paths), timeout=job["timeout"])

    RecordingSocket.messages.clear()
    try:
        with registered(server, job["files"]):
            server.gather_metas("recorded")
            server.update("recorded", request)
    except Exception as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": True}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["shm", "cuda"], required=True)
    parser.add_argument("--uuid", help="of the device, without GPU-, with --device shm")
    parser.add_argument("--port", type=int, required=True, help="of the store of its process group")
    args = parser.parse_args()
    # nothing of one rank leaves this host
    ps.get_ip = device_utils.get_ip = lambda: "127.0.0.1"
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    host = replace_device(args.uuid) if args.device == "shm" else None
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
    server = ps.ParameterServer(master_addr="127.0.0.1", master_port=args.port)
    server._zmq_ctx = RecordingContext()
    # its addresses are names that others on this host may have
    server._zmq_addr_counter = os.getpid()
    print("ready", flush=True)
    for line in sys.stdin:
        answer = update(server, json.loads(line))
        answer |= {"messages": RecordingSocket.messages, **left(host)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
