"""What a trainer does with ckpt_client, one job a process. Prints one line of JSON for the test.

    python trainer.py SOCKET JOB [ARGUMENT...]

Tensors of torch are put on `$CKPT_TRAINER_DEVICE` (cpu).
"""

import array
import ctypes
import functools
import hashlib
import json
import os
import sys
import time

import numpy
import torch

import ckpt_client
from ckpt_client import CkptError, Daemon, daemon, layout, sources, write

DEVICE = os.environ.get("CKPT_TRAINER_DEVICE", "cpu")
SAFETENSORS = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16",
    "int32": "I32", "uint32": "U32", "float32": "F32", "float64": "F64", "int64": "I64", "uint64": "U64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float4_e2m1fn_x2": "F4",
}  # fmt: skip


def random_tensor(dtype, *shape, seed=0):
    """Every bit pattern of the dtype; for bool those that it has."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    count = size
    for dimension in shape:
        count *= dimension
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape).to(DEVICE)


def shown(tensor):
    """What an engine must show, by other means than the client's: elements one after another, then their bytes."""
    if isinstance(tensor, torch.Tensor):
        dtype, shape = str(tensor.dtype).replace("torch.", ""), list(tensor.shape)
        if dtype == "float4_e2m1fn_x2":
            shape[-1] *= 2
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        content = b"" if tensor.numel() == 0 else ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    else:
        view = numpy.asarray(tensor if not isinstance(tensor, bytes) else numpy.frombuffer(tensor, numpy.uint8))
        dtype, shape, content = view.dtype.name, list(view.shape), view.tobytes()
    return {"dtype": SAFETENSORS[dtype], "shape": shape, "sha256": hashlib.sha256(content).hexdigest()}


def everything():
    tensors = {}
    for index, name in enumerate(sorted(SAFETENSORS)):
        dtype = getattr(torch, name)
        tensors[f"dtype.{name}"] = random_tensor(dtype, 37, 6, seed=index)
        tensors[f"transposed.{name}"] = random_tensor(dtype, 12, 34, seed=100 + index).t()
        tensors[f"empty.{name}"] = random_tensor(dtype, 0, 4)
    big = random_tensor(torch.bfloat16, 1024, 700, seed=7)
    tensors.update({
        # larger than a buffer and than a piece of this test
        "layers.10.big": big,
        "layers.9.tied": big,
        "layers.2.view": big[100:200],
        "layers.1.column": big[:, 5],
        "layers.0.every_third": big[::3, ::2],
        "permuted": random_tensor(torch.float32, 5, 6, 7, seed=8).permute(2, 0, 1),
        "expanded": random_tensor(torch.float32, 1, 9, seed=9).expand(4, 9),
        "parameter": torch.nn.Parameter(random_tensor(torch.float32, 8, 8, seed=10).nan_to_num()),
        "conjugate": random_tensor(torch.complex64, 33, seed=11).conj(),
        "negative": random_tensor(torch.complex64, 33, seed=12).conj().imag,
        "scalar": random_tensor(torch.int64, seed=13),
        "größe 𝛼": random_tensor(torch.uint8, 13, seed=14),
        "numpy.plain": numpy.arange(1000, dtype=numpy.float32).reshape(10, 100),
        "numpy.strided": numpy.arange(1000, dtype=numpy.int16).reshape(10, 100)[:, ::7],
        "numpy.scalar": numpy.float64(3.5),
        "numpy.bool": numpy.arange(9) % 2 == 0,
        "numpy.locked": numpy.frombuffer(b"read only", numpy.uint8),
        "buffer.array": array.array("d", [1.5, 2.5]),
        "buffer.array.unsigned": array.array("Q", [2**63 + 1]),
        "buffer.bytes": b"some bytes",
        "buffer.slice": memoryview(b"every other byte")[::2],
        "buffer.ctypes": (ctypes.c_float * 3)(1, 2, 3),
        "buffer.empty": b"",
    })  # fmt: skip
    return tensors


def regions():
    """Mappings of the daemon's memory in this process, by path."""
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[5] for line in maps if "/dev/shm/ckpt-" in line})


def small_pieces():
    """Several buffers, several pieces a tensor and several tensors a piece, with little memory."""
    write.PIECE_BYTES = 100_000
    daemon.arrange = functools.partial(layout.arrange, buffer_bytes=1 << 20)


def register_everything(client, url):
    small_pieces()
    tensors = everything()
    expected = {name: shown(tensor) for name, tensor in tensors.items()}
    answer = client.register_tensors("all", tensors, version="v 1")
    report = client.update("all", update_url=url)
    return {"expected": expected, "answer": answer, "report": report, "regions": regions()}


def register_versions(client, url, count):
    """Two tensors whose contents follow from the version; the last version is larger."""
    small_pieces()
    rounds = []
    for version in range(int(count)):
        rows = 700 if version < int(count) - 1 else 2000
        tensors = {name: random_tensor(torch.bfloat16, rows, 500, seed=version * 2 + i) for i, name in enumerate("ab")}
        expected = {name: shown(tensor) for name, tensor in tensors.items()}
        client.register_tensors("m", tensors, version=str(version))
        for tensor in tensors.values():
            tensor.view(torch.uint8).zero_()  # it may be changed now
        report = client.update("m", update_url=url)
        weights = engine_weights(url)
        rounds.append({
            "expected": expected, "weights": weights, "version": report["version"], "regions": regions(),
            "pinned": client.status()["memory"]["pinned_bytes"],
        })  # fmt: skip
    client.delete("m", force=True)
    return {"rounds": rounds, "regions": regions()}


def engine_weights(url):
    import urllib.request

    with urllib.request.urlopen(url.replace("/collective_rpc", "/v1/weights")) as response:
        return json.load(response)["ranks"][0]["tensors"]


def pause_while_writing(client, flag, child=""):
    """Writes a version; in the middle it prints `writing` and goes on when the file `flag` is there.

    `child`: by then it has forked a process, whose id follows `writing`.
    """
    small_pieces()
    tensors = {f"w{i}": random_tensor(torch.bfloat16, 300, 500, seed=50 + i).cpu() for i in range(20)}
    copied = 0
    copy = write.copy_bytes

    def copy_slowly(*arguments):
        nonlocal copied
        copied += 1
        if copied == 20:
            forked = os.fork() if child else 0
            if child and forked == 0:
                time.sleep(60)
                os._exit(0)
            print("writing", forked, flush=True)
            while not os.path.exists(flag):
                time.sleep(0.01)
        return copy(*arguments)

    write.copy_bytes = copy_slowly
    answer = client.register_tensors("m", tensors, version="second")
    return {"answer": answer, "expected": {name: shown(tensor) for name, tensor in tensors.items()}}


def refusals(client, url):
    held = {"w": torch.zeros(3)}
    client.register_tensors("held", held)
    huge = torch.zeros(1).expand(1 << 40)
    jobs = {
        "unknown dtype": lambda: client.register_tensors("m", {"x": torch.zeros(2, dtype=torch.complex128)}),
        "unknown numpy dtype": lambda: client.register_tensors("m", {"x": numpy.zeros(2, numpy.complex128)}),
        "unknown buffer": lambda: client.register_tensors("m", {"x": memoryview(b"abcd").cast("c")}),
        "other byte order": lambda: client.register_tensors("m", {"x": numpy.zeros(2, ">f4")}),
        "no tensor": lambda: client.register_tensors("m", {"x": [1, 2]}),
        "no name": lambda: client.register_tensors("m", {5: torch.zeros(2)}),
        "sparse": lambda: client.register_tensors("m", {"x": torch.zeros(2, 2).to_sparse()}),
        "meta": lambda: client.register_tensors("m", {"x": torch.zeros(2, device="meta")}),
        "subclass": lambda: client.register_tensors("m", {"x": FakeTensorMode().from_tensor(torch.zeros(2))}),
        "held name": lambda: client.register_tensors("held", held, replace=False),
        "too large": lambda: client.register_tensors("m", {"x": huge}),
        "bad version": lambda: client.register_tensors("m", held, version="x" * 300),
        "bad checkpoint": lambda: client.register_tensors("a/b", held),
        "no such file": lambda: client.register_files("files", ["/none.safetensors"]),
        "no checkpoint": lambda: client.update("none", update_url=url),
        "unknown field": lambda: client.update("held", update_urls=url),
        "engine not there": lambda: client.update("held", update_url="http://127.0.0.1:9/collective_rpc", timeout=5),
        "nobody listens": lambda: Daemon("/nowhere/ckpt.sock").status(),
        "nobody at a port": lambda: Daemon("127.0.0.1:9").status(),
        "no address": lambda: Daemon("nonsense"),
        "not a daemon": lambda: Daemon(url.replace("/collective_rpc", "")).request("GET", "/none"),
    }  # fmt: skip
    answers = {}
    for what, job in jobs.items():
        try:
            answers[what] = {"returned": job()}
        except CkptError as error:
            keys = ("code", "message", "rank", "phase", "tensor", "http_status")
            answers[what] = {key: getattr(error, key) for key in keys if getattr(error, key) is not None}
    return {"answers": answers, "checkpoints": [held["name"] for held in client.checkpoints()], "regions": regions()}


def calls(client, file, url, address, token):
    """Every method once, over TCP too."""
    out = {"files": client.register_files("files", [file], version="f"), "empty": client.register_tensors("empty", {})}
    ckpt_client.register_tensors("module", {"w": torch.arange(5.0)}, version="m")
    out["module"] = ckpt_client.update("module", update_url=url)["engines"]
    with Daemon(address, token=token) as tcp:
        out["tcp"] = tcp.register_tensors("tcp", {"w": torch.arange(5.0), "v": b"x"})
        out["checkpoints"] = {held["name"]: held["version"] for held in tcp.checkpoints()}
        out["mapped"] = len(regions())
    out["unmapped"] = len(regions())
    for wrong in (None, "wrong"):
        try:
            Daemon(address, token=wrong).status()
        except CkptError as error:
            out[f"token {wrong}"] = [error.code, error.http_status]
    out["deleted"] = [client.delete("files"), client.delete("files")]
    return out


def failing_write(client):
    """A copy that fails: the error comes through, nothing stays mapped, and the next call works."""
    small_pieces()
    tensors = {f"w{i}": random_tensor(torch.bfloat16, 300, 500, seed=i).cpu() for i in range(20)}
    copy = write.copy_bytes
    write.copy_bytes = lambda *arguments: 1 / 0
    try:
        client.register_tensors("m", tensors)
        raise AssertionError("it did not fail")
    except ZeroDivisionError:
        left = regions()
    write.copy_bytes = copy
    for _ in range(500):
        pinned = client.status()["memory"]["pinned_bytes"]
        if pinned == 0:
            break
        time.sleep(0.01)
    return {"left": left, "pinned": pinned, "answer": client.register_tensors("m", tensors, replace=False)}


def tight(client):
    """Two versions of which the daemon's memory holds one."""
    answers = [client.register_tensors("m", {"w": torch.full((3 << 20,), i, dtype=torch.int16)}) for i in (1, 2)]
    return {"dropped": ["previous_dropped" in answer for answer in answers], "regions": len(regions())}


def tables(_client):
    names = json.load(sys.stdin)
    return {"order": sorted(names, key=layout.natural_key), "dtypes": sorted(sources.DTYPES)}


JOBS = {
    "everything": register_everything,
    "versions": register_versions,
    "pause": pause_while_writing,
    "refusals": refusals,
    "calls": calls,
    "failing": failing_write,
    "tight": tight,
    "tables": tables,
}

if __name__ == "__main__":
    from torch._subclasses.fake_tensor import FakeTensorMode

    with Daemon(sys.argv[1]) as connected:
        print("answer " + json.dumps(JOBS[sys.argv[2]](connected, *sys.argv[3:])), flush=True)
