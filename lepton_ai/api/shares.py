"""Threads and open requests by workspace: one tenant's heavy questions never hold up another's.

Owns the bounds. A handler runs on one of its workspace's threads; what a stream reads later (in tasks of its own)
finds the same threads through the context. A workspace over its bounds gets Busy (429), others notice nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

import anyio
import anyio.to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lepton_ai.errors import Busy

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 8
"""Handlers of one workspace that run at once; more wait their turn."""
OPEN = 256
"""Requests of one workspace that are under way at once, streams and waiting ones included."""
_limiter: ContextVar[anyio.CapacityLimiter | None] = ContextVar("limiter", default=None)


async def run_in_threadpool(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work` on one of the threads of the workspace whose request this is."""
    return await anyio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=_limiter.get())


def outside() -> None:
    """From here on nobody's threads: a connection's next request may be another workspace's."""
    _limiter.set(None)


class Share:
    """What one workspace has. `enter` before its work, `leave` once for each that entered."""

    def __init__(self, workspace: str) -> None:
        self._workspace = workspace
        self._threads = anyio.CapacityLimiter(THREADS)
        self._open = 0

    def enter(self) -> None:
        """Raises Busy."""
        if self._open >= OPEN:
            hint = "wait for some of them to end, then try again"
            raise Busy(f"workspace {self._workspace} has {OPEN} requests under way", hint=hint)
        self._open += 1
        _limiter.set(self._threads)

    def leave(self) -> None:
        self._open -= 1

    def until_sent(self, response: Response) -> Response:
        """`response`, which leaves when its last byte was sent or its reader went away."""
        return cast(Response, _Sending(response, self))


class Shares:
    """The shares of an application, by workspace."""

    def __init__(self) -> None:
        self._by_workspace: dict[str, Share] = {}

    def of(self, workspace: str) -> Share:
        return self._by_workspace.setdefault(workspace, Share(workspace))


class _Sending:
    def __init__(self, response: Any, share: Share) -> None:
        self._response, self._share = response, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._share.leave()
