"""Lines of an owner's replicas as one trail: what is archived and what their nodes still hold, each line once.

Owns the merging and the following. A line is known by (replica uid, ns); archiving keeps both.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass

from lepton_ai.api.cell import Cell
from lepton_ai.api.shares import run_in_threadpool
from lepton_ai.api.view import has_ended
from lepton_ai.errors import LeptonError
from lepton_ai.store import Record
from lepton_ai.telemetry.logs import MAX_LINES

LOOK_S = 0.25
"""How often a follower looks for new replicas and for the owner's end."""
LOOKBACK_S = (60, 3600, 86_400)
QUEUE = 1000
LIVE_AT_ONCE = 64
"""At most so many replicas' live logs are read for one question."""


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One line of a replica; `stream` is "o" or "e"."""

    ns: int
    uid: str
    replica: str
    stream: str
    text: str


@dataclass(frozen=True)
class Source:
    """Whose lines: an owner with its replicas, or one replica. What is archived from before `since_ns` is another's."""

    workspace: str
    owner_kind: str | None
    owner: str | None
    replica: str | None
    owner_uid: str | None
    since_ns: int = 0


class Trail:
    """The lines of `source` in `cell`."""

    def __init__(self, cell: Cell, source: Source, grep: str | None = None) -> None:
        self._cell, self._source, self._grep = cell, source, grep

    async def tail(self, count: int) -> list[Line]:
        """The last `count` lines, oldest first."""
        best: list[Line] = []
        for record in (await run_in_threadpool(self._records))[-LIVE_AT_ONCE:]:
            last = await self._last_of(record, count)
            best = await run_in_threadpool(_merged, best, last, count, backward=True)
        # The archive after the nodes: a log is archived before its node lets go of it, so that one of them has it.
        archived = await run_in_threadpool(self._archived, None, None, count, backward=True)
        best = await run_in_threadpool(_merged, archived, best, count, backward=True)
        return best[::-1]

    async def window(self, start_ns: int, end_ns: int, limit: int, *, backward: bool = False) -> list[Line]:
        """The earliest `limit` lines of [start_ns, end_ns) in order; `backward`: the latest, newest first."""
        best: list[Line] = []
        for record in (await run_in_threadpool(self._records))[-LIVE_AT_ONCE:]:
            kept: Iterable[Line]
            if backward:
                kept = deque[Line](maxlen=limit)
                async for line in self._live(record, start_ns, end_ns):
                    kept.append(line)
            else:
                kept = []
                async for line in self._live(record, start_ns, end_ns):
                    kept.append(line)
                    if len(kept) >= limit:
                        break
            best = await run_in_threadpool(_merged, best, kept, limit, backward=backward)
        archived = await run_in_threadpool(self._archived, start_ns, end_ns, limit, backward=backward)
        return await run_in_threadpool(_merged, archived, best, limit, backward=backward)

    async def follow(self, tail: list[Line], *, cut: bool) -> AsyncGenerator[Line]:
        """The lines after `tail` as they come, until no more can come. `cut`: `tail` leaves out older ones.

        That is when the owner has ended or is gone and its replicas' logs are read to their end.
        """
        after: dict[str, int] = {line.uid: line.ns for line in tail}
        # Of a replica with no line in the tail, all that is older than the tail was left out on purpose.
        floor_ns = tail[0].ns if cut and tail else 0
        queue: asyncio.Queue[Line] = asyncio.Queue(QUEUE)
        pumps: dict[str, asyncio.Task[None]] = {}
        clock = asyncio.get_running_loop().time
        look_s = clock()
        try:
            while True:
                if clock() >= look_s:
                    # First whether it is over, then its replicas: after its end there are no new ones.
                    over = await run_in_threadpool(self._is_over)
                    for record in (await run_in_threadpool(self._records))[-LIVE_AT_ONCE:]:
                        if record.uid not in pumps:
                            pump = self._pump(record, after.get(record.uid, floor_ns), queue)
                            pumps[record.uid] = asyncio.create_task(pump)
                    if over and all(task.done() for task in pumps.values()) and queue.empty():
                        return
                    look_s = clock() + LOOK_S
                try:
                    line = await asyncio.wait_for(queue.get(), max(0.001, look_s - clock()))
                except TimeoutError:
                    continue
                yield line
        finally:
            for task in pumps.values():
                task.cancel()
            await asyncio.gather(*pumps.values(), return_exceptions=True)

    async def _pump(self, record: Record, last_ns: int, queue: asyncio.Queue[Line]) -> None:
        """Every line of one replica after `last_ns`, through broken connections, until it has ended."""
        while True:
            current = await run_in_threadpool(self._again, record)
            # Asked before reading: what was written until its end is read then.
            ended = current is None or current.status.get("phase") == "exited"
            try:
                async for line in self._lines(record, last_ns + 1, None, True):
                    last_ns = line.ns
                    await queue.put(line)
            except LeptonError:
                if ended:
                    for line in await run_in_threadpool(self._archived_of, record, last_ns + 1):
                        await queue.put(line)
            if ended:
                return
            await asyncio.sleep(LOOK_S)

    # -- what is where

    def _records(self) -> list[Record]:
        """The replicas that may have lines, oldest first."""
        store, source = self._cell.store, self._source
        if source.replica is not None:
            found = store.find(source.workspace, "replica", source.replica)
            return [found] if found is not None else []
        if source.owner_uid is None:
            return []
        return store.list("replica", workspace=source.workspace, owner_uid=source.owner_uid)

    def _again(self, record: Record) -> Record | None:
        return self._cell.store.find(record.workspace, "replica", record.name)

    def _is_over(self) -> bool:
        source, store = self._source, self._cell.store
        if source.replica is not None:
            found = store.find(source.workspace, "replica", source.replica)
            return found is None or found.status.get("phase") == "exited"
        if source.owner_kind is None or source.owner is None:
            return True
        owner = store.find(source.workspace, source.owner_kind, source.owner)
        if owner is None or owner.uid != source.owner_uid:
            return True
        return owner.kind == "job" and has_ended(owner)

    def _archived(self, start_ns: int | None, end_ns: int | None, limit: int, *, backward: bool) -> list[Line]:
        source = self._source
        start_ns = max(start_ns or 0, source.since_ns) or start_ns
        found = self._cell.logs.query(
            source.workspace, owner_kind=source.owner_kind, owner=source.owner, replica=source.replica,
            start_ns=start_ns, end_ns=end_ns, direction="backward" if backward else "forward", limit=limit,
            substring=self._grep,
        )  # fmt: skip
        return [Line(item.ns, item.replica_uid, item.replica, item.stream, item.text) for item in found]

    def _archived_of(self, record: Record, start_ns: int) -> list[Line]:
        found = self._cell.logs.query(
            record.workspace, replica=record.uid, start_ns=start_ns, limit=MAX_LINES, substring=self._grep
        )
        return [Line(item.ns, item.replica_uid, item.replica, item.stream, item.text) for item in found]

    async def _last_of(self, record: Record, count: int) -> deque[Line]:
        """The last `count` lines on its node: looks back step by step, so that a long log is rarely read whole."""
        now_ns = self._cell.store.now_ms() * 1_000_000
        starts = [now_ns - back_s * 1_000_000_000 for back_s in LOOKBACK_S] if count < MAX_LINES else []
        found: deque[Line] = deque(maxlen=count)
        for start_ns in (*starts, 0):
            found.clear()
            async for line in self._live(record, max(0, start_ns), None):
                found.append(line)
            if len(found) == count:
                break
        return found

    async def _live(self, record: Record, start_ns: int, end_ns: int | None) -> AsyncIterator[Line]:
        """What its node holds now; nothing when the node is away or knows it no more."""
        try:
            async for line in self._lines(record, start_ns, end_ns, False):
                yield line
        except LeptonError:
            return

    async def _lines(self, record: Record, start_ns: int, end_ns: int | None, follow: bool) -> AsyncIterator[Line]:
        stream = self._cell.live_log(str(record.spec["node"]), record.uid, start_ns, end_ns, follow)
        async for ns, kind, text in stream:
            if not self._grep or self._grep in text:
                yield Line(ns, record.uid, record.name, kind, text)


def _merged(one: Iterable[Line], other: Iterable[Line], count: int, *, backward: bool) -> list[Line]:
    """The earliest `count` lines of both in order; `backward`: the latest, newest first. Each line once."""
    lines = {(line.uid, line.ns): line for part in (one, other) for line in part}
    return heapq.nlargest(count, lines.values()) if backward else heapq.nsmallest(count, lines.values())
