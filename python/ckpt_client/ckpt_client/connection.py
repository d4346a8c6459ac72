"""HTTP to the daemon over its Unix socket or TCP."""

from __future__ import annotations

import http.client
import json
import os
import socket
import weakref
from typing import Any, Optional

from .errors import CkptError

DETAIL_CHARACTERS = 200


def default_address() -> str:
    """`$CKPT_DAEMON`, else where `ckpt serve` listens when it is not told: `$XDG_RUNTIME_DIR/ckpt/ckpt.sock`, else
    `/tmp/ckpt-<uid>/ckpt.sock`."""
    told = os.environ.get("CKPT_DAEMON", "")
    if told:
        return told
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return os.path.join(runtime, "ckpt/ckpt.sock")
    return f"/tmp/ckpt-{os.getuid()}/ckpt.sock"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: Optional[float]):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class HeldAnswer:
    """An answer whose connection stays open until `close`, or until this process has ended."""

    # connections and responses: either may be what holds the socket
    _open: "weakref.WeakSet[Any]" = weakref.WeakSet()

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, body: dict):
        self.body = body
        self._connection = connection
        self._response = response
        self._open.add(response)

    @classmethod
    def expect(cls, connection: http.client.HTTPConnection) -> None:
        """From before the request is sent: another thread may fork meanwhile."""
        cls._open.add(connection)

    @classmethod
    def close_in_child(cls) -> None:
        """A child of fork() must not keep open what stands for its parent."""
        for one in list(cls._open):
            one.close()

    def close(self) -> None:
        self._response.close()
        self._connection.close()


os.register_at_fork(after_in_child=HeldAnswer.close_in_child)


class Address:
    """`/path`, `unix:/path`, `host:port` or `http://host:port`. Every request has a connection of its own, so that threads
    and forked processes do not share one."""

    def __init__(self, text: str, token: Optional[str]):
        self._token = token
        self._host: Optional[str] = None
        self._port = 0
        self._path = ""
        place = text[len("http://") :].rstrip("/") if text.startswith("http://") else text
        if text.startswith("unix:") or ("/" in place and "://" not in place):
            self._path = os.path.abspath(text[len("unix:") :] if text.startswith("unix:") else text)
            self.text = f"unix:{self._path}"
            return
        host, _, port = place.rpartition(":")
        if not host or "/" in host or not port.isdigit():
            raise CkptError("bad_request", f"'{text}' is neither a socket's path nor HOST:PORT")
        self._host, self._port = host.strip("[]"), int(port)
        self.text = f"http://{host}:{port}"

    def request(self, method: str, path: str, body: Any, timeout: Optional[float]) -> dict:
        connection = self._connect(timeout)
        try:
            with self._send(connection, method, path, body) as response:
                return json.loads(self._read(response.read))
        finally:
            connection.close()

    def request_held(self, method: str, path: str, body: Any, timeout: Optional[float]) -> HeldAnswer:
        """The first line of an answer that does not end."""
        connection = self._connect(timeout)
        HeldAnswer.expect(connection)
        try:
            response = self._send(connection, method, path, body)
            return HeldAnswer(connection, response, json.loads(self._read(response.readline)))
        except BaseException:
            connection.close()
            raise

    def _connect(self, timeout: Optional[float]) -> http.client.HTTPConnection:
        if self._host is None:
            return UnixConnection(self._path, timeout)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> http.client.HTTPResponse:
        headers = {"content-type": "application/json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        text = None if body is None else json.dumps(body)

        def send() -> http.client.HTTPResponse:
            connection.request(method, path, text, headers)
            return connection.getresponse()

        response = self._read(send)
        if response.status >= 400:
            raise _error(response.status, self._read(response.read), self.text)
        return response

    def _read(self, call):
        try:
            return call()
        except socket.timeout:
            raise CkptError("daemon_unreachable", f"the daemon at {self.text} did not answer in time") from None
        except (OSError, http.client.HTTPException) as error:
            reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
            raise CkptError("daemon_unreachable", f"no daemon answers at {self.text}: {reason}") from None


def _error(status: int, text: bytes, address: str) -> CkptError:
    try:
        failure = json.loads(text)["error"]
        known = {key: failure.get(key) for key in ("rank", "phase", "tensor")}
        return CkptError(failure["code"], failure["message"], http_status=status, **known)
    except (ValueError, KeyError, TypeError):
        detail = text[:DETAIL_CHARACTERS].decode("utf-8", "replace")
        message = f"what answers at {address} is not a ckpt daemon: {status} {detail}"
        return CkptError("daemon_unreachable", message, http_status=status)
