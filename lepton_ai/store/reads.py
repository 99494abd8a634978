"""What can be asked of the records: one, some, how many, what they are called. Owns no writes and no connections."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select, union_all

from lepton_ai.errors import NotFound
from lepton_ai.store.document import record_of, storable
from lepton_ai.store.record import Record
from lepton_ai.store.tables import records

COLUMNS = [records.c[name] for name in Record.__slots__]
FETCH = 500


class Reads:
    """The part of a Store that reads records."""

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection to read with; database errors come out as ours."""
        raise AssertionError("a store says how it connects")

    def get(self, workspace: str, kind: str, name: str) -> Record:
        """The record; raises NotFound."""
        record = self.find(workspace, kind, name)
        if record is None:
            raise NotFound(f"no {kind} {name!r} in workspace {workspace!r}", details={"kind": kind, "name": name})
        return record

    def find(self, workspace: str, kind: str, name: str) -> Record | None:
        """The record, or None."""
        where = (records.c.workspace == workspace) & (records.c.kind == kind) & (records.c.name == name)
        return self._one(select(*COLUMNS).where(where)) if storable(workspace, kind, name) else None

    def get_uid(self, uid: str) -> Record:
        """The record with this uid; raises NotFound."""
        record = self._one(select(*COLUMNS).where(records.c.uid == uid)) if storable(uid) else None
        if record is None:
            raise NotFound(f"nothing has uid {uid!r}", details={"uid": uid})
        return record

    def list(
        self,
        kind: str,
        *,
        workspace: str | None = None,
        owner_uid: str | None = None,
        but: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> builtins.list[Record]:
        """The records of a kind in the order of their uid (UUIDv7: of creation); `after` a uid, to page.

        `but`: not those whose status has this "state" or "phase". It has an index, so that what has ended long ago
        costs nothing: list("replica", but="exited").
        """
        query = select(*COLUMNS).where(*_of(kind, workspace, but)).order_by(records.c.uid)
        if owner_uid is not None:
            query = query.where(records.c.owner_uid == owner_uid)
        if after is not None:
            query = query.where(records.c.uid > after)
        if limit is not None:
            query = query.limit(max(0, limit))
        with self.reading() as connection:
            return [record_of(row) for row in connection.execute(query)]

    def fetch(self, uids: Iterable[str]) -> builtins.list[Record]:
        """The records with these uids, in their order; those that are gone are left out."""
        wanted = [uid for uid in uids if storable(uid)]
        found: dict[str, Record] = {}
        with self.reading() as connection:
            for start in range(0, len(wanted), FETCH):
                query = select(*COLUMNS).where(records.c.uid.in_(wanted[start : start + FETCH]))
                found |= {record.uid: record for record in map(record_of, connection.execute(query))}
        return [found[uid] for uid in wanted if uid in found]

    def names(self, kind: str, *, workspace: str | None = None) -> builtins.list[str]:
        """What the records of a kind are called, in order: without reading them."""
        query = select(records.c.name).where(*_of(kind, workspace, None)).order_by(records.c.name)
        with self.reading() as connection:
            return [str(name) for name in connection.execute(query).scalars()]

    def count(self, kind: str, *, workspace: str | None = None, but: str | None = None) -> int:
        """How many records of a kind there are; `but` as in `list`."""
        query = select(func.count()).select_from(records).where(*_of(kind, workspace, but))
        with self.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def counts(self, kind: str) -> dict[str, int]:
        """How many records of a kind there are in each workspace that has any."""
        each = select(records.c.workspace, func.count()).where(records.c.kind == kind).group_by(records.c.workspace)
        with self.reading() as connection:
            return {str(workspace): int(count) for workspace, count in connection.execute(each)}

    def _one(self, query: Select[Any]) -> Record | None:
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else record_of(row)


def _of(kind: str, workspace: str | None, but: str | None) -> builtins.list[ColumnElement[bool]]:
    where = [records.c.kind == kind]
    if workspace is not None:
        where.append(records.c.workspace == workspace)
    if but is not None:
        # As two ranges of the index, which go around `but`: with <> both engines would read every row.
        sides = (select(records.c.uid).where(*where, side) for side in (records.c.state < but, records.c.state > but))
        where.append(records.c.uid.in_(union_all(*sides)))
    return where
