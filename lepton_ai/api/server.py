"""The API's HTTP server: uvicorn, with bounds that hold against slow, silent and greedy clients.

Owns how long a head may take and how large it may be, how many connections there are and which one makes room, and
how long an answer waits for its reader. What a body may be is call.py's, how many requests a workspace has shares.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

FILES_WANTED = 16_384


class Connection(HttpToolsProtocol):
    """One connection.

    Idle ones make room, the oldest first, when there are too many. Whoever has a token cannot hold all of them:
    requests under way are bounded by workspace, and without a token a request is answered at once.
    """

    head_s = 15.0
    """from a connection's or a request's first byte to the end of its head"""
    head_bytes_max = 64 * 1024
    linger_s = 5.0
    """A client that still sends a body which was refused is cut off after this."""
    reader_s = 60.0
    """An answer of which nobody reads anything for so long is broken off."""
    connections_max = 4096

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._after("head", self.head_s)
        if len(self.connections) > self.connections_max:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if "head" in self._timers:
            self._head_bytes += len(data)
            if self._head_bytes > self.head_bytes_max:
                self._refuse(b"431 Request Header Fields Too Large", b"TooLarge", b"the request's head is too long")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if "head" not in self._timers:
            self._head_bytes = 0
            self._after("head", self.head_s)

    def on_headers_complete(self) -> None:
        self._stop("head")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._after("linger", self.linger_s)
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._stop("linger")
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._after("reader", self.reader_s)

    def resume_writing(self) -> None:
        self._stop("reader")
        super().resume_writing()

    @property
    def is_idle(self) -> bool:
        """Whether no request of this connection is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _make_room(self) -> None:
        """Closes the connection that has been idle longest; this one when every other is at work."""
        others = (item for item in self.connections if isinstance(item, Connection) and item is not self)
        idle = [item for item in others if item.is_idle and not item.transport.is_closing()]
        # A set has no order: the one whose timer for a head, or for its next request, runs out first is the oldest.
        oldest = min(idle, key=lambda item: item.ends_s, default=self)
        oldest.transport.abort()

    @property
    def ends_s(self) -> float:
        """When an idle connection would be closed anyway."""
        timers = [*self._timers.values()]
        if self.timeout_keep_alive_task is not None:
            timers.append(self.timeout_keep_alive_task)
        return min((timer.when() for timer in timers), default=0.0)

    def _after(self, name: str, delay_s: float) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(delay_s, self.transport.abort)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _refuse(self, status: bytes, code: bytes, message: bytes) -> None:
        if self.transport.is_closing():
            return
        body = b'{"code":"%s","message":"%s","hint":"send less","details":{}}' % (code, message)
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()


def config(app: ASGIApp, *, protocol: type[Connection] = Connection, **options: Any) -> uvicorn.Config:
    """How `app` is served; `options` of uvicorn on top (TLS). Raises the number of files this process may open."""
    files = _files()
    protocol.connections_max = max(16, min(protocol.connections_max, files // 2))
    values = {
        "loop": "uvloop", "ws": "none", "lifespan": "on", "log_config": None, "access_log": False,
        "server_header": False, "timeout_graceful_shutdown": 3, "backlog": 2048,
    }  # fmt: skip
    return uvicorn.Config(app, http=protocol, **{**values, **options})


def _files() -> int:
    """How many files this process may open, after asking for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return FILES_WANTED if soft == resource.RLIM_INFINITY else soft
