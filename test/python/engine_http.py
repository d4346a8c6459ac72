"""What the engines of these tests have in common: answers in JSON, and a ring in POSIX shared memory."""

import json
import mmap
import os
from http.server import BaseHTTPRequestHandler

import torch


class JsonHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def body(self):
        return json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))) or b"{}")

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def map_shared_memory(handle, handle_bytes):
    """The allocation that a raw 64-byte handle of libckpt_host.so names, to be read only."""
    fd = os.open("/dev/shm" + handle.rstrip(b"\0").decode("ascii"), os.O_RDONLY)
    try:
        view = mmap.mmap(fd, handle_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)
    return torch.frombuffer(view, dtype=torch.uint8)
