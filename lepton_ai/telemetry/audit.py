"""Who changed what: appended to, never changed; only its age ends an entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select

from lepton_ai.spec.base import uuid7
from lepton_ai.store import Store
from lepton_ai.store.document import dump
from lepton_ai.store.tables import audit


@dataclass(frozen=True, slots=True)
class Entry:
    """One change by `actor` (the name of a token, or of a part of the cell)."""

    uid: str
    workspace: str
    actor: str
    action: str
    kind: str
    name: str
    details: dict[str, Any]
    time_ms: int


class Audit:
    """The audit log of a cell."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(
        self,
        workspace: str,
        actor: str,
        action: str,
        kind: str,
        name: str,
        details: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Appends an entry; `details` must not hold secrets. Raises Invalid when they are not JSON."""
        entry = Entry(uuid7(), workspace, actor, action, kind, name, dict(details or {}), self._store.now_ms())
        values = {field: getattr(entry, field) for field in Entry.__slots__}
        with self._store.writing() as connection:
            connection.execute(insert(audit).values(**{**values, "details": dump(entry.details)}))
        return entry

    def list(self, workspace: str, *, limit: int = 100, before: str | None = None) -> list[Entry]:
        """The newest `limit` entries, newest first; `before` the uid of an entry, to page back."""
        query = select(audit).where(audit.c.workspace == workspace).order_by(audit.c.uid.desc()).limit(max(0, limit))
        if before is not None:
            query = query.where(audit.c.uid < before)
        with self._store.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [Entry(**{**row, "details": json.loads(row["details"])}) for row in rows]

    def prune(self, before_ms: int) -> int:
        """Drops entries older than `before_ms`; how many."""
        with self._store.writing() as connection:
            return connection.execute(delete(audit).where(audit.c.time_ms < before_ms)).rowcount
