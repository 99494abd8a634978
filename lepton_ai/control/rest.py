"""Jobs that rest: finished, with nothing of them running. What is remembered of them is when they are to go.

A cell keeps thousands of them, and the loops have nothing to do for them until that time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from lepton_ai.store import Record

ENDED = frozenset({"succeeded", "failed", "stopped"})


class Rest:
    """The uids of resting jobs, and of those with a time to live, when it is over (UTC milliseconds)."""

    def __init__(self) -> None:
        self._due: dict[str, int | None] = {}
        self._heap: list[tuple[int, str]] = []

    def __contains__(self, uid: object) -> bool:
        return uid in self._due

    def __iter__(self) -> Iterator[str]:
        return iter(self._due)

    def __len__(self) -> int:
        return len(self._due)

    def add(self, record: Record) -> None:
        """The job rests; what was remembered of it before holds no more."""
        due = due_ms(record)
        if due is not None and self._due.get(record.uid) != due:
            heapq.heappush(self._heap, (due, record.uid))
        self._due[record.uid] = due

    def drop(self, uid: str) -> None:
        self._due.pop(uid, None)

    def over(self, now_ms: int, limit: int) -> list[str]:
        """At most `limit` jobs whose time is over. They are named again until they are dropped or added anew."""
        found: list[str] = []
        kept: list[tuple[int, str]] = []
        while self._heap and self._heap[0][0] <= now_ms and len(found) < limit:
            entry = heapq.heappop(self._heap)
            if self._due.get(entry[1]) == entry[0]:
                found.append(entry[1])
                kept.append(entry)
        for entry in kept:
            heapq.heappush(self._heap, entry)
        return found


def finished(record: Record) -> bool:
    """Whether a job has ended for good: nobody wants it removed or, when it was stopped, started again."""
    state = record.status.get("state")
    if record.deleting or state not in ENDED:
        return False
    return state != "stopped" or record.spec.get("stopped") is True


def due_ms(record: Record) -> int | None:
    """When an ended job is to go; None: not by itself."""
    ttl_s, ended_ms = record.spec.get("ttl_s"), record.status.get("ended_ms")
    if not isinstance(ttl_s, int) or not isinstance(ended_ms, int) or not ended_ms:
        return None
    return ended_ms + ttl_s * 1000
