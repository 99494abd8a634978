"""Logs of ended replicas: archived as gzip segments under one folder, found through an index in the store.

The index is a table of its own in the store's database: records would wake every watcher at each segment, and a
query by time needs an index that records do not have. A segment is renamed into place before its row is written;
a crash between the two leaves a file without a row, which `prune` removes.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import RowMapping, Select, delete, func, insert, select

from lepton_ai.errors import Corrupt, Invalid
from lepton_ai.spec.base import is_name, uuid7
from lepton_ai.store import Store
from lepton_ai.store.tables import segments
from lepton_ai.telemetry import segment

log = logging.getLogger(__name__)
MAX_LINES = 100_000
ORPHAN_AGE_S = 3600.0
EXCESS = 16
"""What is kept is over its size by this part of it at most."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line; `stream` is "o" (output) or "e" (error), `ns` UTC nanoseconds, distinct within a replica."""

    ns: int
    stream: str
    text: str
    owner_kind: str
    owner: str
    replica: str
    replica_uid: str


class Logs:
    """The archive at `root`, kept `retention_days` and within `retention_mib`."""

    def __init__(self, root: Path, store: Store, *, retention_days: int = 14, retention_mib: int = 2048) -> None:
        self._root = root
        self._store = store
        self._retention_days = retention_days
        self._retention_bytes = retention_mib * 1024 * 1024
        self._archiving = threading.Lock()
        self._added_bytes = 0

    def archive(
        self,
        workspace: str,
        owner_kind: str,
        owner: str,
        replica_uid: str,
        replica_name: str,
        lines: Iterable[tuple[int, str, str]],
    ) -> Path | None:
        """Writes a replica's lines, (ns, stream, text) in ascending ns, as one segment; its file, or None if empty.

        Lines up to the last one that is archived already are skipped, so repeating it is harmless. Raises Invalid
        (workspace), DiskFull, Unavailable; then nothing was kept.
        """
        if not is_name(workspace):
            raise Invalid(f"{workspace!r} is not a workspace", hint="use lower-case letters, digits and '-'")
        with self._archiving:
            last = select(func.max(segments.c.last_ns)).where(
                segments.c.workspace == workspace, segments.c.replica_uid == replica_uid
            )
            with self._store.reading() as connection:
                done_ns = connection.execute(last).scalar() or 0
            uid = uuid7()
            path = self._root / workspace / f"{_safe(replica_uid)}-{uid}.log.gz"
            written = segment.write(path, (line for line in lines if line[0] > done_ns))
            if not written.lines:
                path.unlink()
                return None
            row = {
                "uid": uid, "workspace": workspace, "owner_kind": owner_kind, "owner": owner,
                "replica_uid": replica_uid, "replica_name": replica_name, "path": f"{workspace}/{path.name}",
                "first_ns": written.first_ns, "last_ns": written.last_ns, "lines": written.lines,
                "size_bytes": written.size_bytes,
            }  # fmt: skip
            try:
                with self._store.writing() as connection:
                    connection.execute(insert(segments).values(**row))
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            self._added_bytes += written.size_bytes
            if self._added_bytes > self._retention_bytes // EXCESS:
                # Not left to the next `prune`: many loud replicas that end would fill the disk until then.
                self._added_bytes = 0
                self._trim(0)
        return path

    def query(
        self,
        workspace: str,
        *,
        owner_kind: str | None = None,
        owner: str | None = None,
        replica: str | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        direction: Literal["forward", "backward"] = "forward",
        limit: int = 1000,
        substring: str | None = None,
    ) -> list[LogLine]:
        """Lines of [start_ns, end_ns) that contain `substring`, of an owner and/or a replica (name or uid).

        forward: the earliest `limit` lines, oldest first. backward: the latest `limit`, newest first. At most
        100,000. A damaged segment is left out with a warning in our log. Raises Invalid for a wrong direction.
        """
        if direction not in ("forward", "backward"):
            raise Invalid(f"direction {direction!r} is not known", hint="use forward or backward")
        limit = max(0, min(limit, MAX_LINES))
        backward = direction == "backward"
        with self._store.reading() as connection:
            found = _select(workspace, owner_kind, owner, replica, start_ns, end_ns, backward)
            rows = connection.execute(found).mappings().all()
        best = _Best(limit, backward)
        for row in rows:
            if best.is_beyond(row["last_ns"] if backward else row["first_ns"]):
                break
            for ns, stream, text in self._lines(row):
                if (start_ns is not None and ns < start_ns) or (end_ns is not None and ns >= end_ns):
                    continue
                if not backward and best.is_beyond(ns):
                    break
                if substring and substring not in text:
                    continue
                best.add(_line(row, ns, stream, text))
        return best.sorted()

    def prune(self, now_ms: int) -> int:
        """Removes segments over the age or the size that is kept, oldest first, and files without a row; how many."""
        removed, known = self._trim((now_ms - self._retention_days * 86_400_000) * 1_000_000)
        return removed + self._sweep(known)

    def _trim(self, oldest_ns: int) -> tuple[int, set[str]]:
        """Removes what ended before `oldest_ns` or is over the size; how many, and what was known before."""
        columns = (segments.c.uid, segments.c.path, segments.c.size_bytes, segments.c.last_ns)
        with self._store.reading() as connection:
            rows = connection.execute(select(*columns).order_by(segments.c.last_ns.desc())).all()
        gone, total_bytes = [], 0
        for row in rows:
            total_bytes += row.size_bytes
            if row.last_ns < oldest_ns or total_bytes > self._retention_bytes:
                gone.append(row)
        self._remove(gone)
        return len(gone), {row.path for row in rows}

    def forget(self, workspace: str) -> int:
        """Removes every segment of a workspace; how many."""
        query = select(segments.c.uid, segments.c.path).where(segments.c.workspace == workspace)
        with self._store.reading() as connection:
            gone = connection.execute(query).all()
        self._remove(gone)
        return len(gone)

    def _remove(self, rows: Sequence[Any]) -> None:
        for first in range(0, len(rows), 500):
            part = rows[first : first + 500]
            with self._store.writing() as connection:
                connection.execute(delete(segments).where(segments.c.uid.in_([row.uid for row in part])))
            for row in part:
                (self._root / row.path).unlink(missing_ok=True)

    def _sweep(self, known: set[str]) -> int:
        # Young files are left alone: their row may be on its way.
        swept = 0
        for path in self._root.glob("*/*.log.gz*"):
            if path.relative_to(self._root).as_posix() in known:
                continue
            try:
                if time.time() - path.stat().st_mtime > ORPHAN_AGE_S:
                    path.unlink()
                    swept += 1
            except FileNotFoundError:
                continue
        return swept

    def _lines(self, row: RowMapping) -> Iterator[tuple[int, str, str]]:
        try:
            yield from segment.read(self._root / row["path"])
        except Corrupt as error:
            log.warning("%s", error)


class _Best:
    """The earliest (or latest) `limit` lines of those added, in bounded memory."""

    def __init__(self, limit: int, backward: bool) -> None:
        self._limit = limit
        self._sign = 1 if backward else -1
        self._heap: list[tuple[int, int, LogLine]] = []
        self._order = 0

    def is_beyond(self, ns: int) -> bool:
        """Whether a line at `ns`, and so every later one in reading order, can no longer be among the best."""
        if len(self._heap) < self._limit:
            return False
        return not self._heap or self._sign * ns < self._heap[0][0]

    def add(self, line: LogLine) -> None:
        self._order += 1
        item = (self._sign * line.ns, self._sign * self._order, line)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, item)
        elif self._heap:
            heapq.heappushpop(self._heap, item)

    def sorted(self) -> list[LogLine]:
        return [line for _, _, line in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def _select(
    workspace: str,
    owner_kind: str | None,
    owner: str | None,
    replica: str | None,
    start_ns: int | None,
    end_ns: int | None,
    backward: bool,
) -> Select[Any]:
    query = select(segments).where(segments.c.workspace == workspace)
    if owner_kind is not None:
        query = query.where(segments.c.owner_kind == owner_kind)
    if owner is not None:
        query = query.where(segments.c.owner == owner)
    if replica is not None:
        query = query.where((segments.c.replica_uid == replica) | (segments.c.replica_name == replica))
    if start_ns is not None:
        query = query.where(segments.c.last_ns >= start_ns)
    if end_ns is not None:
        query = query.where(segments.c.first_ns < end_ns)
    return query.order_by(segments.c.last_ns.desc() if backward else segments.c.first_ns, segments.c.uid)


def _line(row: RowMapping, ns: int, stream: str, text: str) -> LogLine:
    return LogLine(ns, stream, text, row["owner_kind"], row["owner"], row["replica_name"], row["replica_uid"])


def _safe(uid: str) -> str:
    # A uid is an identity, not a path: anything but a plain one is named by its digest.
    return uid if re.fullmatch(r"[A-Za-z0-9-]{1,64}", uid) else hashlib.sha256(uid.encode()).hexdigest()[:32]
