"""An inference engine whose worker is checkpoint-engine's own, unmodified, of the version that Python finds: 0.1.1 to 0.4.2.

HTTP in front (`/health`, `/collective_rpc` as vLLM answers it, `/v1/weights` as the reference engine answers it), and behind
it `checkpoint_engine.worker.update_weights_from_ipc`, one thread for each key of the posted map.

    python checkpoint_engine_worker.py --device shm|cuda --listen 127.0.0.1:0 [--fault FAULT] [--worker ckpt_worker]

It prints `ready http://HOST:PORT` on standard output. With `--device shm` the 64-byte handle is the name of POSIX shared memory
(libckpt_host.so): only torch's `rebuild_cuda_tensor` and checkpoint-engine's device module are replaced. With `--device cuda`
nothing is replaced at all. `--server` says whether our daemon makes the pickles or checkpoint-engine's ParameterServer
(`parameter_server.py`). With `--worker ckpt_worker` it is our own worker instead, which replays what it has recorded.

A fault is `handle` (the ring cannot be mapped), `error@K` (list K is refused), `hang@K` (in list K, until there is another
fault or none) or `post` (the post hook fails), of the worker of every key or of one: `error@1#0`. `POST /v1/faults
{"faults": ["post"]}` puts another in its place, `[]` none.
"""

import argparse
import hashlib
import os
import struct
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer

import torch
import torch.multiprocessing.reductions as reductions
import zmq
from checkpoint_engine import worker
from engine_http import JsonHandler, map_shared_memory

DTYPE_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


# the worker of a key with this device cannot map the ring
NO_DEVICE = 99


class HostModule:
    """What checkpoint-engine's worker calls of `torch.cuda`, on a machine without one."""

    def synchronize(self):
        pass

    def ipc_collect(self):
        pass

    def empty_cache(self):
        pass


class HostDeviceManager:
    device_type = "cuda"
    device_module = HostModule()


def replace_device(server):
    """In place of CUDA's device there is the host library's."""
    reductions.rebuild_cuda_tensor = rebuild_from_shared_memory if server == "ckpt" else rebuild_as_shared_by_torch
    if hasattr(worker, "DeviceManager"):
        worker.DeviceManager = HostDeviceManager
    else:
        # before 0.2.1 the worker calls torch.cuda itself
        torch.cuda.synchronize, torch.cuda.empty_cache = HostModule().synchronize, HostModule().empty_cache


def rebuild_from_shared_memory(*args):
    """Maps the allocation that the raw 64-byte handle names; args are the 15 of torch's rebuild_cuda_tensor."""
    assert len(args) == 15, len(args)
    check_device(args[6])
    size, dtype, handle, handle_bytes = args[1], args[5], args[7], args[8]
    assert dtype is torch.uint8 and size == (handle_bytes,), (dtype, size, handle_bytes)
    assert len(handle) == 64, len(handle)
    check_refcounter(args[11])
    return map_shared_memory(handle, handle_bytes)


def rebuild_as_shared_by_torch(*args):
    """The same of what torch's own `reduce_tensor` makes: a part of the allocation, and a counter that goes down at its end."""
    size, stride, offset, storage, dtype, device, handle, size_bytes, place = args[1:10]
    check_device(device)
    counters, index, event, must_wait = args[11:]
    assert (size, stride, offset, dtype) == (torch.Size([size_bytes]), (1,), 0, torch.uint8), args
    assert storage is torch.storage.TypedStorage and handle[:2] == b"\x03c" and len(handle) == 66, (storage, handle)
    assert len(event) == 64 and must_wait is True, (event, must_wait)
    allocation = map_shared_memory(handle[2:], place + size_bytes)
    # the tensors that are made of it hold its storage, and not it
    weakref.finalize(allocation.untyped_storage(), count_down, counters, index)
    return allocation[place:]


def count_down(counters, index):
    with open("/dev/shm" + counters.decode("ascii"), "rb+") as file:
        file.seek(64 + 8 * index)
        (count,) = struct.unpack("<q", file.read(8))
        file.seek(-8, os.SEEK_CUR)
        file.write(struct.pack("<q", count - 1))


def check_device(device):
    if device == NO_DEVICE:
        raise RuntimeError("the ring cannot be mapped")


def check_refcounter(name):
    """torch maps this file read-write and decrements a counter when the tensor dies: it must be there and long enough."""
    with open("/dev/shm" + name.decode("ascii"), "rb") as file:
        body = file.read()
    counters = torch.frombuffer(bytearray(body), dtype=torch.int64)
    assert counters[0] == 1 and (counters[8:] == 1).all() and counters.numel() == 8 + 10_000, counters[:9]


class Fault:
    """What goes wrong, in which of the engine's workers."""

    def __init__(self, text):
        self.over = threading.Event()
        kind, _, rank = text.partition("#")
        self.kind, _, at = kind.partition("@")
        self.at = int(at) if at else None
        self.rank = int(rank) if rank else None

    def strikes(self, kind, rank, at=None):
        return self.kind == kind and self.at == at and self.rank in (None, rank)


class Engine:
    def __init__(self, device, fault, in_place, own):
        self.device, self.in_place, self.own = device, in_place or own, own
        self.fault = Fault(fault)
        self.ranks, self.updates, self.torn = {}, 0, False
        self.reloads, self.results = {}, {}

    def arm(self, fault):
        before, self.fault = self.fault, Fault(fault)
        before.over.set()

    def run(self, key, timeout, address, rank):
        held = self.ranks.get(key, {}) if self.in_place else {}
        tensors, lists, fault = {}, 0, self.fault

        def load(weights):
            nonlocal lists
            if fault.strikes("error", rank, lists):
                raise ValueError("the engine refuses this bucket")
            if fault.strikes("hang", rank, lists):
                fault.over.wait()
                raise TimeoutError("hung")
            lists += 1
            self.torn = True
            for name, tensor in weights:
                parameter = held.get(name)
                if parameter is None:
                    parameter = torch.empty_like(tensor)
                parameter.copy_(tensor)
                tensors[name] = parameter

        def post_hook():
            if fault.strikes("post", rank):
                raise RuntimeError("the post hook failed")
            # what was replayed did not come by
            self.ranks[key] = {**held, **tensors}

        device = NO_DEVICE if fault.strikes("handle", rank) else 0
        if not self.own:
            return worker.update_weights_from_ipc(zmq.Context.instance(), address, device, run=load, post_hook=post_hook)
        import ckpt_worker

        reload = self.reloads.get(key)
        if reload is None:
            reload = self.reloads[key] = ckpt_worker.Reload(lambda: list(self.ranks.get(key, {}).items()))
        tally = ckpt_worker.Tally()
        ckpt_worker.update_weights_from_ipc(
            zmq.Context.instance(), address, device, run=load, post_hook=post_hook, reload=reload,
            limits=ckpt_worker.Limits(total=timeout), tally=tally,
        )
        self.results[key] = {"ok": True, **vars(tally)}

    def update(self, handles, timeout):
        errors = []

        def target(rank, key, address):
            try:
                self.run(key, timeout, address, rank)
            except BaseException as error:  # noqa: BLE001 - the test wants every reason
                errors.append(f"{type(error).__name__}: {error}")

        pairs = enumerate(handles.items())
        threads = [threading.Thread(target=target, args=(rank, *pair), daemon=True) for rank, pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if not errors:
            self.updates += 1
            self.torn = False
        return errors

    def weights(self):
        ranks = []
        for key, tensors in self.ranks.items():
            # hashing leaves the interpreter to other threads
            with ThreadPoolExecutor() as threads:
                described = dict(zip(tensors, threads.map(describe, tensors.values())))
            ranks.append({"uuid": key, "tensors": described})
        reloads = [vars(reload.tally) for reload in self.reloads.values()]
        return {"version": None, "updates": self.updates, "torn": self.torn, "ranks": ranks, "reloads": reloads}


def describe(tensor):
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return {
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(flat).hexdigest(),
    }


def handler_of(engine):
    class Handler(JsonHandler):
        def do_GET(self):
            if self.path == "/health":
                return self.answer(200, {})
            if self.path == "/v1/weights":
                return self.answer(200, engine.weights())
            return self.answer(404, {"error": "no such route"})

        def do_POST(self):
            body = self.body()
            if self.path == "/v1/faults":
                engine.arm("".join(body["faults"]))
                return self.answer(200, {})
            if self.path != "/collective_rpc":
                return self.answer(404, {"error": "no such route"})
            assert body["method"] == "update_weights_from_ipc", body
            errors = engine.update(body["args"][0], float(body.get("timeout", 300)))
            if errors:
                return self.answer(500, {"error": "; ".join(errors)})
            return self.answer(200, {"results": [engine.results.get(key) for key in body["args"][0]]})

    return Handler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["shm", "cuda"], required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--fault", default="")
    parser.add_argument("--server", choices=["ckpt", "checkpoint_engine"], default="ckpt", help="who makes the pickles, of shm")
    parser.add_argument("--in-place", action="store_true", help="copy into the parameters of the update before")
    parser.add_argument("--worker", choices=["checkpoint_engine", "ckpt_worker"], default="checkpoint_engine")
    args = parser.parse_args()
    if args.device == "shm":
        replace_device(args.server)
    else:
        torch.cuda.init()
    host, _, port = args.listen.rpartition(":")
    engine = Engine(args.device, args.fault, args.in_place, args.worker == "ckpt_worker")
    server = ThreadingHTTPServer((host, int(port)), handler_of(engine))
    print(f"ready http://{host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
