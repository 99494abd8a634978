"""Holds requests of deployments that are scaled to zero, and passes them on once a replica is there.

A process of its own, reached only by the gateway's Envoys over a unix socket (they turn to it when a route has no
endpoint). It learns of endpoints from a file, so it works while the control plane is down. Imports the standard
library only: it must be small, and it is in the request path.

Each connection carries one request: the head is read, the request waits, then both directions are copied as they
are, so that streams, uploads and websockets pass. While a request waits at most one buffer of its body is held; the
rest stays with the caller. Admission shares the places between routes by dynamic thresholds (Choudhury and Hahne,
1998): a route may hold as many requests as there are free places, so one route never takes all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import json
import logging
import os
import ssl
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

_HEAD_BYTES = 96 << 10
_BODY_BUFFER_BYTES = 128 << 10
_LOOK_S = 0.01
_CONNECT_S = 2.0
_COPY_BYTES = 64 << 10

Address = tuple[str, int, str]
"""Address, port, and the name in the certificate of a replica on another host; empty: it is on this machine."""


@dataclass(frozen=True)
class Limits:
    """What is held at most; beyond it a caller gets 503, after `seconds` 504, both with Retry-After."""

    count: int = 1024
    bytes: int = 64 << 20
    seconds: float = 120.0


@dataclass(frozen=True)
class Proof:
    """Files (PEM) of the cell's authority, and of the certificate that is shown to other hosts."""

    ca: str
    cert: str
    key: str

    def context(self) -> ssl.SSLContext:
        """Believes the cell's authority only. Raises OSError, of which ssl.SSLError is one."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.load_verify_locations(self.ca)
        made.load_cert_chain(self.cert, self.key)
        return made


class Activator:
    """Serves the unix socket `socket`; knows the routes and their endpoints from the file `routes`."""

    def __init__(self, socket: Path, routes: Path, limits: Limits | None = None, proof: Proof | None = None) -> None:
        self._socket, self._proof = socket, proof
        self._table = Table(routes)
        self._limits = limits or Limits()
        self._held: dict[str, int] = defaultdict(int)
        self._held_bytes = 0
        self._turn = itertools.count()
        self._changed = asyncio.Event()

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; then held requests lose their connection (Envoy answers them with 503)."""
        self._socket.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._handle, str(self._socket), limit=_HEAD_BYTES, backlog=1024)
        finally:
            os.umask(before)
        await stop.wait()
        server.close()

    def held(self) -> dict[str, int]:
        """Requests held now, by "WORKSPACE/NAME"."""
        return {name: count for name, count in self._held.items() if count}

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = Head.parse(await reader.readuntil(b"\r\n\r\n"))
            if head.route is None:
                await self._answer_status(head, writer)
            else:
                await self._pass_on(head, reader, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, ConnectionError, TimeoutError):
            pass  # the caller went away, or is no Envoy
        except Exception:  # noqa: BLE001 - one request must not end the process that holds the others
            _log.exception("a request could not be passed on")
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)

    async def _answer_status(self, head: Head, writer: asyncio.StreamWriter) -> None:
        """GET /-/held; with ?wait_s=N it answers as soon as a request begins to be held."""
        path, _, query = head.target.partition("?")
        if path != "/-/held":
            await _reply(writer, 404, "NotFound", "no such page", "GET /-/held")
            return
        wait_s = float(query.removeprefix("wait_s=")) if query.startswith("wait_s=") else 0.0
        if wait_s > 0 and not self.held():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(wait_s, 60.0))
        body = json.dumps({"held": self.held()}).encode()
        await _send(writer, b"200 OK", body)

    async def _pass_on(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert head.route is not None
        weight = len(head.raw) + _BODY_BUFFER_BYTES
        free = self._limits.count - sum(self._held.values())
        if self._held[head.route] >= free or self._held_bytes + weight > self._limits.bytes:
            hint = "try again in a second"
            await _reply(writer, 503, "Unavailable", "too many requests wait for a replica to start", hint)
            return
        self._held[head.route] += 1
        self._held_bytes += weight
        self._changed.set()
        self._changed.clear()
        try:
            upstream = await self._wait(head.route, writer)
        finally:
            self._held[head.route] -= 1
            self._held_bytes -= weight
            if not self._held[head.route]:
                del self._held[head.route]
        if upstream is None:
            message = f"no replica was ready within {self._limits.seconds:g} s"
            await _reply(writer, 504, "Timeout", message, "run: lepton ps, then lepton logs NAME")
            return
        await _relay(head, reader, writer, *upstream)

    async def _wait(
        self, route: str, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to a replica of `route`, as soon as one takes it. A listed one that is dead is not taken."""
        deadline = time.monotonic() + self._limits.seconds
        while time.monotonic() < deadline:
            addresses = self._table.endpoints(route)
            first = next(self._turn)
            for step in range(len(addresses)):
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    return await asyncio.wait_for(self._open(*addresses[(first + step) % len(addresses)]), _CONNECT_S)
            if writer.transport.is_closing():
                raise ConnectionResetError("the caller went away")
            await asyncio.sleep(_LOOK_S)
        return None

    async def _open(self, address: str, port: int, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises OSError, also where something plain would leave this machine."""
        if not host:
            if not ipaddress.ip_address(address).is_loopback:
                raise ConnectionRefusedError(f"{address} has no certificate")
            return await asyncio.open_connection(address, port, limit=_HEAD_BYTES)
        if self._proof is None:
            raise ConnectionRefusedError("there is no certificate to show")
        secure = self._proof.context()
        return await asyncio.open_connection(address, port, limit=_HEAD_BYTES, ssl=secure, server_hostname=host)


class Table:
    """The routes file, read again when it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark: tuple[int, int] | None = None
        self._endpoints: dict[str, list[Address]] = {}

    def endpoints(self, route: str) -> list[Address]:
        """Addresses of `route` now; a file that cannot be read leaves the last known ones."""
        try:
            facts = self._path.stat()
            mark = (facts.st_mtime_ns, facts.st_ino)
            if mark != self._mark:
                document = json.loads(self._path.read_text("utf-8"))
                self._endpoints = {
                    name: [(str(address), int(port), "".join(host)) for address, port, *host in entry["endpoints"]]
                    for name, entry in document.items()
                }
                self._mark = mark
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("cannot read %s: %s", self._path, error)
        return self._endpoints.get(route, [])


@dataclass(frozen=True)
class Head:
    """The head of one request, as Envoy wrote it."""

    raw: bytes
    target: str
    route: str | None
    upgrade: bool

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        lines = raw.decode("latin-1").split("\r\n")
        _, target, _ = lines[0].split(" ", 2)
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return cls(raw, target, fields.get("x-lepton-route"), "upgrade" in fields)


async def _relay(
    head: Head,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    upstream_reader: asyncio.StreamReader,
    upstream_writer: asyncio.StreamWriter,
) -> None:
    """Sends the request, then copies both ways until the answer ends or one side goes away."""
    upstream_writer.write(head.raw if head.upgrade else _closing(head.raw))
    sending = asyncio.create_task(_copy(reader, upstream_writer))
    answering = asyncio.create_task(_answer(upstream_reader, writer))
    try:
        # When sending ends first the caller is gone: Envoy keeps its side open until it has the answer.
        await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, answering):
            task.cancel()
        results = await asyncio.gather(sending, answering, return_exceptions=True)
        upstream_writer.close()
    if isinstance(results[1], _NoAnswer):
        # Envoy sends it again where that is allowed (idempotent routes retry 503).
        await _reply(writer, 503, "Unavailable", "the replica ended before it answered", "run: lepton logs NAME")


class _NoAnswer(Exception):
    """The replica closed the connection before the head of an answer."""


async def _answer(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copies the answer. Its head gets `Connection: close`, so that Envoy asks us once per connection."""
    while True:
        try:
            head = await source.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _NoAnswer from error
        status = head[9:12]
        interim = status.startswith(b"1") and status != b"101"
        sink.write(head if interim or status == b"101" else _closing(head))
        if not interim:
            break
    await _copy(source, sink)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_COPY_BYTES):
        sink.write(data)
        await sink.drain()


def _closing(head: bytes) -> bytes:
    """The head with its Connection header replaced by `close`."""
    first, *rest = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept: Iterable[bytes] = (line for line in rest if line.partition(b":")[0].strip().lower() not in _HOP)
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


_HOP = (b"connection", b"keep-alive", b"proxy-connection")


async def _reply(writer: asyncio.StreamWriter, status: int, code: str, message: str, hint: str) -> None:
    phrase = {404: b"404 Not Found", 503: b"503 Service Unavailable", 504: b"504 Gateway Timeout"}[status]
    await _send(writer, phrase, json.dumps({"code": code, "message": message, "hint": hint}).encode())


async def _send(writer: asyncio.StreamWriter, status: bytes, body: bytes) -> None:
    retry = b"Retry-After: 1\r\n" if status.startswith(b"5") else b""
    writer.write(
        b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%sConnection: close\r\n\r\n%s"
        % (status, len(body), retry, body)
    )
    await writer.drain()
