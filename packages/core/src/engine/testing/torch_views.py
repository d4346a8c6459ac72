"""Applies tensor lists to a buffer as checkpoint-engine's worker does, with torch, and writes pickles as its server does.

stdin: one JSON line each: {"list": hex, "ring": bytes} or {"write": "handle" | "list" | "none" | "error", "protocol": n}.
stdout: one JSON line each: the views' dtypes, shapes and first bytes, or the pickle in hex.
"""

import json
import pickle
import sys

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor


def views(body, ring_bytes):
    ring = torch.arange(ring_bytes, dtype=torch.int64).to(torch.uint8)
    shown = []
    for item in pickle.loads(body):
        shape = torch.Size(item["shape"])
        count = item["dtype"].itemsize * shape.numel()
        view = ring[item["offset"] : item["offset"] + count].view(item["dtype"]).view(shape)
        raw = view.contiguous().view(-1).view(torch.uint8) if count else torch.empty(0)
        shown.append(
            {
                "name": item["name"],
                "dtype": str(view.dtype),
                "shape": list(view.shape),
                "first": int(raw[0]) if count else None,
                "bytes": count,
            }
        )
    return shown


def message(kind):
    if kind == "handle":
        handle = bytes([3, ord("c")]) + bytes(range(64))
        size = torch.Size([4096])
        storage = torch.storage.TypedStorage
        arguments = (torch.Tensor, size, (1,), 0, storage, torch.uint8, 0, handle, 4096, 0)
        return (rebuild_cuda_tensor, arguments + (False, b"/x", 0, b"\0" * 64, True))
    if kind == "list":
        dtypes = [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.bfloat16]
        offset = 0
        items = []
        for index, dtype in enumerate(dtypes * 600):
            shape = torch.Size([index % 5] * (index % 6))
            name = f"model.layers.{index}.weight"
            items.append({"name": name, "dtype": dtype, "shape": shape, "offset": offset})
            offset += 2**21
        return items
    if kind == "none":
        return None
    return RuntimeError("Some workers failed to update weights")


for line in sys.stdin:
    job = json.loads(line)
    if "list" in job:
        print(json.dumps(views(bytes.fromhex(job["list"]), job["ring"])), flush=True)
    else:
        print(json.dumps(pickle.dumps(message(job["write"]), job["protocol"]).hex()), flush=True)
