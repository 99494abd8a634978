"""Work that takes long gets few threads of its own, so that short requests never wait behind it.

Owns the bounds of uploads, registrations and queries, and the query workers (one a workspace, started when needed).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

import anyio
import anyio.to_thread
from starlette.requests import Request

from lepton_ai.errors import Busy
from lepton_ai.lake.query import QueryWorker

T = TypeVar("T")
QUERIES_WAITING = 16
UPLOADS, UPLOADS_WAITING = 8, 64
IDLE_S = 60.0
"""A query worker that nobody asked for so long is ended: it holds a data engine in memory."""


class Lane:
    """At most `width` at once, and `waiting` more that wait; others get Busy."""

    def __init__(self, what: str, width: int, waiting: int) -> None:
        self._what, self._most = what, width + waiting
        self._limiter = anyio.CapacityLimiter(width)
        self._inside = 0
        self._left_s = time.monotonic()

    @property
    def idle_s(self) -> float:
        """For how long nothing has been under way."""
        return 0.0 if self._inside else time.monotonic() - self._left_s

    async def run(self, work: Callable[[], T]) -> T:
        """`work` on a thread. Raises Busy, and what `work` raises."""
        if self._inside >= self._most:
            raise Busy(f"{self._inside} {self._what} are under way already", hint="try again in a moment")
        self._inside += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._inside -= 1
            self._left_s = time.monotonic()


class Lanes:
    """The lanes of one application; `close` ends its query workers."""

    def __init__(self) -> None:
        self.registering = threading.Semaphore(2)
        self._uploads: dict[str, Lane] = {}
        self._queries: dict[str, tuple[QueryWorker, Lane]] = {}
        self._lock = threading.Lock()

    def uploads(self, workspace: str) -> Lane:
        """The lane of a workspace's uploads: slow ones hold up no other workspace's."""
        return self._uploads.setdefault(workspace, Lane("uploads", UPLOADS, UPLOADS_WAITING))

    def forget(self, workspace: str, lake_url: str) -> None:
        """Ends what a workspace that is removed has here."""
        self._uploads.pop(workspace, None)
        with self._lock:
            worker, _ = self._queries.pop(lake_url, (None, None))
        if worker is not None:
            worker.close()

    def queries(self, lake_url: str) -> tuple[QueryWorker, Lane]:
        """The worker of a lake and its lane: it takes one query at a time, and no lake waits for another's."""
        with self._lock:
            if lake_url not in self._queries:
                self._queries[lake_url] = (QueryWorker(lake_url), Lane("queries", 1, QUERIES_WAITING))
            return self._queries[lake_url]

    def rest(self, idle_s: float = IDLE_S) -> None:
        """Ends the workers that have been idle so long; the next query starts a new one."""
        with self._lock:
            found = list(self._queries.values())
        for worker, lane in found:
            if worker.pid is not None and lane.idle_s >= idle_s:
                worker.close()

    def close(self) -> None:
        with self._lock:
            workers = [worker for worker, _ in self._queries.values()]
            self._queries.clear()
        for worker in workers:
            worker.close()


def lanes(request: Request) -> Lanes:
    """The lanes of the application that serves `request`."""
    return cast(Lanes, request.app.state.lanes)
