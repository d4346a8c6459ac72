"""The trainer of the bench `trainer`: registers versions of its tensors with a daemon and times each call.

    python trainer.py < job.json

The job is `{daemon, checkpoint, device, tensors: [{name, dtype, shape, bytes}], versions}`, with torch's names of device and
dtypes. It prints one line of JSON, `{seconds, d2h_gb_per_s, sha256}`: the time of each call, with tensors on a GPU the rate of
copies before each, and what the last version is.
"""

import ctypes
import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from ckpt_client import Daemon

COPY_BYTES = 1 << 30
COPIES = 4
DAEMON_SECONDS = 120.0
# odd: the products of different 64-bit integers differ (Knuth's multiplicative hashing)
FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)


class PinnedCopies:
    """What registering tensors of a GPU cannot beat: copies of 1 GiB into 4 GiB of pinned memory, more than the processor's
    caches hold."""

    def __init__(self, device):
        self.source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
        self.targets = [torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(COPIES)]

    def gb_per_second(self):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for target in self.targets:
            target.copy_(self.source, non_blocking=True)
        torch.cuda.synchronize()
        return COPIES * COPY_BYTES / (time.perf_counter() - begin) / 1e9


def make_memory(tensors, device):
    """The bytes of each tensor; no 64-bit word of them is there twice."""
    memory, word = {}, 0
    for tensor in tensors:
        words = -(-tensor["bytes"] // 8)
        filled = torch.arange(word, word + words, dtype=torch.int64, device=device).mul_(FACTOR)
        memory[tensor["name"]] = filled.view(torch.uint8)[: tensor["bytes"]]
        word += words
    return memory


def time_call(call, on_gpu):
    if on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def sha256(memory):
    """Both the copy and hashing leave the interpreter to other threads."""
    held = memory.cpu()
    return hashlib.sha256((ctypes.c_char * held.numel()).from_address(held.data_ptr())).hexdigest()


def run(job):
    device = torch.device(job["device"])
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    memory = make_memory(job["tensors"], device)
    tensors = {t["name"]: memory[t["name"]].view(getattr(torch, t["dtype"])).view(t["shape"]) for t in job["tensors"]}
    copies = PinnedCopies(device) if on_gpu else None
    seconds, rates = [], []
    with Daemon(job["daemon"], timeout=DAEMON_SECONDS) as daemon:
        for version in range(job["versions"]):
            for held in memory.values():
                held.add_(1)  # a version that was not written shows
            if copies is not None:
                rates.append(copies.gb_per_second())
            seconds.append(
                time_call(lambda: daemon.register_tensors(job["checkpoint"], tensors, version=str(version)), on_gpu)
            )
    with ThreadPoolExecutor() as threads:
        digests = dict(zip(memory, threads.map(sha256, memory.values())))
    return {"seconds": seconds, "d2h_gb_per_s": rates, "sha256": digests}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))), flush=True)
