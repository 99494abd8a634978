"""uvicorn's HTTP protocol with one difference: the head of an answer and its body leave in one write.

Two writes are two packets, and a process that is killed between them leaves half an answer at the gateway, which may
not ask another replica any more: one in six kills under load cost a request. It also spares a system call.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=Protocol)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, Joined(transport, self.loop)))


class Joined:
    """A transport that holds back a first write until a second one, or until the loop's next turn."""

    __slots__ = ("_first", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._first = b""

    def write(self, data: bytes) -> None:
        first = self._first
        if first:
            self._first = b""
            self._transport.write(first + data)
        elif data.startswith(b"HTTP/1.1 "):
            self._first = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
