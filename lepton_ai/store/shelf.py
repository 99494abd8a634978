"""The records of a kind in short, in memory, kept current by the store's changes: what long lists are searched by.

Owns what is remembered of each record (the caller says what) and for how long that is true. Whole records are read
by their uid (`Store.fetch`), a page at a time.
"""

from __future__ import annotations

import builtins
import threading
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Generic, TypeVar

from lepton_ai.errors import Invalid
from lepton_ai.store.record import Record
from lepton_ai.store.store import Store

T = TypeVar("T")
PAGE = 1000


class Shelf(Generic[T]):
    """`short(record)` of every record of `kind`, by workspace. Thread-safe; made once and kept.

    Each `list` first takes in what was committed since the last one, so it is as fresh as a query.
    """

    def __init__(self, store: Store, kind: str, short: Callable[[Record], T]) -> None:
        self._store, self._kind, self._short = store, kind, short
        self._lock = threading.Lock()
        self._since = -1
        self._shorts: dict[str, tuple[str, T]] = {}
        self._order: dict[str, builtins.list[str]] = {}

    def list(self, workspace: str) -> builtins.list[tuple[str, T]]:
        """(uid, short) of each record of the workspace, the newest first."""
        with self._lock:
            self._refresh()
            return [(uid, self._shorts[uid][1]) for uid in reversed(self._order.get(workspace, ()))]

    def _refresh(self) -> None:
        if self._since < 0:
            self._reload()
            return
        while True:
            try:
                changes = self._store.changes(self._since, PAGE)
            except Invalid:  # older than what the store keeps
                self._reload()
                return
            latest = {change.uid: change for change in changes if change.kind == self._kind}
            for change in latest.values():
                if change.deleted:
                    self._drop(change.uid)
            for record in self._store.fetch(uid for uid, change in latest.items() if not change.deleted):
                self._keep(record)
            if changes:
                self._since = changes[-1].revision
            if len(changes) < PAGE:
                return

    def _reload(self) -> None:
        since, after = self._store.revision(), ""
        self._shorts.clear()
        self._order.clear()
        while found := self._store.list(self._kind, after=after, limit=PAGE):
            for record in found:
                self._keep(record)
            after = found[-1].uid
        self._since = since

    def _keep(self, record: Record) -> None:
        if record.uid not in self._shorts:
            insort(self._order.setdefault(record.workspace, []), record.uid)
        self._shorts[record.uid] = (record.workspace, self._short(record))

    def _drop(self, uid: str) -> None:
        known = self._shorts.pop(uid, None)
        if known is not None:
            order = self._order[known[0]]
            del order[bisect_left(order, uid)]
