"""A container engine over its unix socket: how a node asks it something.

Owns the transport (HTTP of the Docker API) and its two ways to fail. Only the standard library, as `contain` runs
isolated with it. What is asked is in `contain` (one container), `images` and `docker`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

TIMEOUT_S = 30.0
CREATE_S = 120.0
"""to create or start: a disk that is busy with other images makes it slow"""


class Away(Exception):
    """The engine does not answer; the text says why."""


class Refused(Exception):
    """The engine answered no; `status` is that of HTTP, the text is the engine's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Engine:
    """One engine; every question is a connection of its own, so it may be used from threads.

    Args:
        path: the engine's unix socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = TIMEOUT_S,
    ) -> Any:
        """The JSON that is answered; None for an empty answer. `body`: bytes of a tar file, or what becomes JSON.

        Raises Away, Refused.
        """
        with self._asked(method, path, body, query, headers or {}, timeout_s) as response:
            data = response.read()
        try:
            return json.loads(data) if data.strip() else None
        except ValueError:
            return None  # /_ping answers a word

    def stream(
        self, method: str, path: str, *, query: Mapping[str, object], headers: Mapping[str, str], timeout_s: float
    ) -> Iterator[dict[str, Any]]:
        """Objects as they come; to leave early ends what the engine does. `timeout_s`: between two of them.

        Raises Away, Refused.
        """
        with self._asked(method, path, None, query, headers, timeout_s) as response:
            while line := response.readline():
                if line.strip():
                    yield json.loads(line)

    def attach(self, container: str) -> tuple[socket.socket, bytes]:
        """A container's two streams as frames (see `frames`), and the first bytes of them. Raises Away, Refused."""
        query = "stream=1&stdout=1&stderr=1"
        head = f"POST /containers/{container}/attach?{query} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\n"
        sock: socket.socket | None = None
        try:
            sock = _connect(self.path, TIMEOUT_S)
            # By hand: http.client would read ahead into the stream, where no poll sees it.
            sock.sendall(f"{head}Upgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode())
            data = b""
            while b"\r\n\r\n" not in data:
                chunk = sock.recv(4096)
                if not chunk:
                    raise Away("the engine closed the connection")
                data += chunk
            head_bytes, _, rest = data.partition(b"\r\n\r\n")
            status = int(head_bytes.split(b" ", 2)[1])
            if status not in (101, 200):
                raise Refused(status, rest.decode("utf-8", "replace").strip()[:500])
            sock.settimeout(None)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError):
                raise Away(error.strerror or str(error)) from error
            raise
        return sock, rest

    @contextlib.contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, object] | None,
        headers: Mapping[str, str],
        timeout_s: float | None,
    ) -> Iterator[http.client.HTTPResponse]:
        sent = dict(headers)
        data = body
        if isinstance(body, bytes):
            sent["Content-Type"] = "application/x-tar"
        elif body is not None:
            sent["Content-Type"] = "application/json"
            data = json.dumps(body)
        connection = _Connection(self.path, timeout_s)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has answered before it took all
                connection.request(method, f"{path}?{urlencode(query)}" if query else path, data, sent)  # type: ignore[arg-type]
            response = connection.getresponse()
            if response.status >= 400:
                raise Refused(response.status, _message(response.read()))
            yield response
        except OSError as error:
            raise Away(error.strerror or str(error)) from error
        except http.client.HTTPException as error:
            raise Away(f"{type(error).__name__} {error}") from error
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("engine")
        self._path, self._timeout_s = path, timeout_s

    def connect(self) -> None:
        self.sock = _connect(self._path, self._timeout_s)


def frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """(stream, bytes) of each whole frame at the start of `data`, and what is left of it. 1 is stdout, 2 stderr."""
    found = []
    at = 0
    while len(data) - at >= 8:
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        if len(data) - at < 8 + size:
            break
        found.append((data[at], data[at + 8 : at + 8 + size]))
        at += 8 + size
    return found, data[at:]


def _connect(path: str, timeout_s: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _message(data: bytes) -> str:
    text = data.decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["message"])
    return " ".join(text.split())
