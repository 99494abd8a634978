"""Store: records with compare-and-set, all-or-nothing batches, changes to follow and leases to lead by.

Thread-safe; not fork-safe (open a store after a fork, not before). Writers take turns: one lock on the revision
counter makes revisions appear in commit order on both engines, so whoever follows `changes` misses nothing.
A call that returns has been written to the device. When PostgreSQL's connection breaks during a commit the call
raises Unavailable and the outcome is unknown: read the record again.
"""

from __future__ import annotations

import builtins
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from lepton_ai.errors import Conflict, Invalid, Unavailable
from lepton_ai.spec.base import uuid7
from lepton_ai.store import engine as engines
from lepton_ai.store import lease as leasing
from lepton_ai.store.document import change_of, dump, record_of, state_of, validate
from lepton_ai.store.faults import translated
from lepton_ai.store.lease import Lease
from lepton_ai.store.migrate import migrate
from lepton_ai.store.op import Create, Delete, Op, Update
from lepton_ai.store.reads import COLUMNS, Reads
from lepton_ai.store.record import Change, Record
from lepton_ai.store.tables import changes, counter, leases, records
from lepton_ai.store.watch import CHANNEL, Watch

KEEP_CHANGES = 10_000
PRUNE_EVERY = 256
RUN_MOST = 500

# Made once: to build a statement anew costs more than to run it.
_NAMED = select(records.c.name).where(
    records.c.workspace == bindparam("in_workspace"),
    records.c.kind == bindparam("of_kind"),
    records.c.name.in_(bindparam("called", expanding=True)),
)
_BY_UID = select(*COLUMNS).where(records.c.uid.in_(bindparam("uids", expanding=True)))
_CREATE, _LOG = insert(records), insert(changes)
_CHANGE = (
    update(records)
    .where(records.c.uid == bindparam("of_uid"))
    .values(
        {name: bindparam(name) for name in ("spec", "status", "state", "generation", "revision", "updated_ms")}
        | {"deleting_ms": bindparam("deleting_ms")}
    )
)
_DELETE = delete(records).where(records.c.uid == bindparam("of_uid"), records.c.revision == bindparam("at_revision"))


@dataclass(slots=True)
class _Write:
    """A write in progress: its connection, the last revision it has given out, and the changes it will have made."""

    connection: Connection
    start: int
    revision: int
    log: list[dict[str, object]] = field(default_factory=list)


class Store(Reads):
    """What is wanted and what is so. Open one with :meth:`open`; `now_ms` is its wall clock."""

    def __init__(self, url: str, now_ms: Callable[[], int], monotonic_s: Callable[[], float]) -> None:
        self._engine = engines.engine(url)
        self.now_ms = now_ms
        self._sightings = leasing.Sightings(monotonic_s)
        self._watch = Watch(self._engine, self.revision)
        self._turn = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls, url: str, *, now_ms: Callable[[], int] | None = None, monotonic_s: Callable[[], float] | None = None
    ) -> Store:
        """The store at ``sqlite:///PATH`` or ``postgresql://…``, made or migrated when needed.

        `now_ms` gives the times in records, `monotonic_s` the passing of leases; a fake `now_ms` alone drives both.
        Raises Invalid (URL, somebody else's database), Unsupported (newer schema, no driver), Corrupt, DiskFull,
        Busy, Unavailable.
        """
        if monotonic_s is None:
            monotonic_s = time.monotonic if now_ms is None else lambda: now_ms() / 1000
        store = cls(url, now_ms or _system_ms, monotonic_s)
        try:
            migrate(store._engine)
        except BaseException:
            store._engine.dispose()
            raise
        return store

    def close(self) -> None:
        """Ends every wait and closes the connections. A second call does nothing."""
        self._closed = True
        self._watch.close()
        self._close_idle()

    def _close_idle(self) -> None:
        # The pool's dispose, not the engine's: that one leaves a connection in use at the moment to a forgotten pool.
        self._engine.pool.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reads of what changes; those of records are in reads.py

    def revision(self) -> int:
        """The number of the last committed change of a record; 0 in a new store."""
        with self.reading() as connection:
            return _revision(connection)

    def changes(self, since: int, limit: int = 1000) -> builtins.list[Change]:
        """The changes after revision `since`, oldest first, at most `limit`; the last 10,000 are kept.

        Raises Invalid when `since` is older than what is kept, or newer than the store (restored from a backup):
        list everything again and go on from `revision()` as it was before that list.
        """
        query = select(changes).where(changes.c.revision > since).order_by(changes.c.revision).limit(max(0, limit))
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
            # Read after the rows: if nothing after `since` can have been dropped by now, nothing was before.
            now = _revision(connection)
        if not now - KEEP_CHANGES <= since <= now:
            why = "too old" if since < now else "newer than the store"
            raise Invalid(f"revision {since} is {why} (now {now})", hint="list again, then follow from there")
        return [change_of(row) for row in rows]

    def wait(self, since: int, timeout_s: float) -> int:
        """The revision, as soon as it is over `since` or after `timeout_s`. Cheap: see watch.py."""
        self._refuse_closed()
        return self._watch.wait(since, timeout_s)

    # -- writes

    def create(
        self,
        workspace: str,
        kind: str,
        name: str,
        spec: Mapping[str, Any],
        *,
        status: Mapping[str, Any] | None = None,
        owner_uid: str | None = None,
        uid: str | None = None,
        lease: Lease | None = None,
    ) -> Record:
        """A new record at generation 1. Raises Conflict if the name or uid exists, StaleEpoch, Invalid, TooLarge."""
        return self._single(Create(workspace, kind, name, spec, status, owner_uid, uid), lease)

    def update(
        self,
        record: Record,
        *,
        spec: Mapping[str, Any] | None = None,
        status: Mapping[str, Any] | None = None,
        deleting: bool = False,
        lease: Lease | None = None,
    ) -> Record:
        """Writes a new spec, status or the deletion mark if the record is still at `record.revision`.

        The generation grows iff the spec differs. When nothing differs nothing is written and no watcher wakes.
        Raises Conflict when it was changed or deleted since, StaleEpoch, Invalid, TooLarge.
        """
        return self._single(Update(record, spec, status, deleting), lease)

    def delete(self, record: Record, *, lease: Lease | None = None) -> None:
        """Removes the record if it is still at `record.revision`. Raises Conflict, StaleEpoch."""
        self.batch([Delete(record)], lease=lease)

    def batch(self, ops: Sequence[Op], *, lease: Lease | None = None) -> builtins.list[Record | None]:
        """Does all of `ops` in one transaction, or none: the new records in order, None for a Delete.

        Each op sees those before it, so a record changed twice in a batch conflicts with itself. Raises what the
        single calls raise.
        """
        with self._writing(lease) as write:
            done: builtins.list[Record | None] = []
            for run in _runs(ops):
                done += self._apply(write, run)
            return done

    # -- leases

    def acquire(
        self, name: str, holder: str, ttl_s: float, *, is_dead: Callable[[str], bool] | None = None
    ) -> Lease | None:
        """The lease, or None while somebody else holds it. Call it again until it is yours.

        `holder` must be unique to one start of one process. It is given when it is free, when `holder` has it
        already (same epoch), when it was not renewed for its time to live as this process saw it (lease.py), or
        when `is_dead(current holder)`. The epoch grows by one at every change of holder.
        """
        leasing.validate(name, holder, ttl_s)
        with self.reading() as connection:
            before = leasing.read(connection, name)
        if before is not None and before["holder"] not in ("", holder):
            lapsed = self._sightings.age_s(before) * 1000 >= before["ttl_ms"]
            if not lapsed and not (is_dead is not None and is_dead(before["holder"])):
                return None
        with self._writing(None) as write:
            lease = leasing.take(write.connection, name, holder, ttl_s, self.now_ms(), before)
            row = leasing.read(write.connection, name)
        if row is not None:
            self._sightings.age_s(row)
        return lease

    def renew(self, lease: Lease, ttl_s: float) -> Lease:
        """Prolongs the lease by `ttl_s` from now; raises StaleEpoch when it has passed to another."""
        leasing.validate(lease.name, lease.holder, ttl_s)
        with self._writing(None) as write:
            renewed = leasing.renew(write.connection, lease, ttl_s, self.now_ms())
            row = leasing.read(write.connection, lease.name)
        if row is not None:
            self._sightings.age_s(row)
        return renewed

    def release(self, lease: Lease) -> None:
        """Gives the lease up, so that another can have it at once; does nothing when it has passed already."""
        with self._writing(None) as write:
            leasing.release(write.connection, lease)

    def leader(self, name: str) -> Lease | None:
        """Who holds the lease (it may have run out), or None when it is free."""
        with self.reading() as connection:
            row = connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()
        if row is None or not row["holder"]:
            return None
        return Lease(name, row["holder"], row["epoch"], row["ttl_ms"] / 1000, row["expires_ms"])

    # -- transactions, also for the rooms whose tables live in this database (telemetry)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with; database errors come out as ours."""
        self._refuse_closed()
        with translated(self._engine), self._connection() as connection:
            yield connection

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        finally:
            # Who was still inside when the store was closed gave its connection back after the pool was emptied.
            if self._closed:
                self._close_idle()

    @contextmanager
    def writing(self, lease: Lease | None = None) -> Iterator[Connection]:
        """A transaction to write with: all or nothing, one writer at a time, refused when `lease` is stale."""
        with self._writing(lease) as write:
            yield write.connection

    @contextmanager
    def _writing(self, lease: Lease | None) -> Iterator[_Write]:
        self._refuse_closed()
        with self._turn, translated(self._engine):
            with self._connection() as plain:
                connection = plain.execution_options(**{engines.WRITE: True})
                with connection.begin():
                    # FOR UPDATE is PostgreSQL's turn-taking; SQLite took the write lock when it began.
                    start = int(connection.execute(select(counter.c.revision).with_for_update()).scalar_one())
                    if lease is not None:
                        leasing.check(connection, lease)
                    write = _Write(connection, start, start)
                    yield write
                    self._finish(write)
        self._watch.notice(write.revision)

    def _finish(self, write: _Write) -> None:
        if write.revision == write.start:
            return
        if write.log:
            write.connection.execute(_LOG, write.log)
        write.connection.execute(update(counter).values(revision=write.revision))
        if write.revision // PRUNE_EVERY != write.start // PRUNE_EVERY:
            write.connection.execute(delete(changes).where(changes.c.revision <= write.revision - KEEP_CHANGES))
        if self._engine.dialect.name == "postgresql":
            write.connection.execute(select(func.pg_notify(CHANNEL, str(write.revision))))

    def _single(self, op: Op, lease: Lease | None) -> Record:
        record = self.batch([op], lease=lease)[0]
        assert record is not None
        return record

    def _apply(self, write: _Write, run: builtins.list[Op]) -> Sequence[Record | None]:
        """Ops of one kind, no record twice: many records take no more statements than one."""
        creates = [op for op in run if isinstance(op, Create)]
        updates = [op for op in run if isinstance(op, Update)]
        if creates:
            return self._create(write, creates)
        if updates:
            return self._update(write, updates)
        for op in run:
            assert isinstance(op, Delete)
            gone = {"of_uid": op.record.uid, "at_revision": op.record.revision}
            if write.connection.execute(_DELETE, gone).rowcount != 1:
                raise _conflict(write.connection, op.record)
            self._log(write, op.record, deleted=True)
        return [None] * len(run)

    def _create(self, write: _Write, ops: builtins.list[Create]) -> builtins.list[Record]:
        for op in ops:
            validate(op)
        names: dict[tuple[str, str], builtins.list[str]] = {}
        for op in ops:
            names.setdefault((op.workspace, op.kind), []).append(op.name)
        there: set[tuple[str, str, str]] = set()
        for (workspace, kind), called in names.items():
            asked = {"in_workspace": workspace, "of_kind": kind, "called": called}
            there.update((workspace, kind, name) for name in write.connection.execute(_NAMED, asked).scalars())
        found, rows = [], []
        for op in ops:
            if (op.workspace, op.kind, op.name) in there:
                raise Conflict(
                    f"{op.kind} {op.name!r} exists already in workspace {op.workspace!r}",
                    hint="choose another name, or change the one that exists",
                    details={"kind": op.kind, "name": op.name},
                )
            there.add((op.workspace, op.kind, op.name))
            now_ms, spec, status = self.now_ms(), dump(op.spec), dump(op.status or {})
            uid = op.uid or uuid7()
            record = Record(
                op.workspace, op.kind, op.name, uid, 1, write.revision + 1, json.loads(spec), json.loads(status),
                op.owner_uid, now_ms, now_ms, None,
            )  # fmt: skip
            values = {name: getattr(record, name) for name in Record.__slots__}
            rows.append(values | {"spec": spec, "status": status, "state": state_of(record.status)})
            found.append(record)
            self._log(write, record, deleted=False)
        write.connection.execute(_CREATE, rows)
        return found

    def _update(self, write: _Write, ops: builtins.list[Update]) -> builtins.list[Record]:
        asked = {"uids": [op.record.uid for op in ops]}
        rows = {row.uid: row for row in write.connection.execute(_BY_UID, asked)}
        found, changed = [], []
        for op in ops:
            row = rows.get(op.record.uid)
            if row is None or row.revision != op.record.revision:
                raise _conflict(write.connection, op.record)
            before = row.spec, row.status, row.deleting_ms
            spec = row.spec if op.spec is None else dump(op.spec)
            status = row.status if op.status is None else dump(op.status)
            deleting_ms = self.now_ms() if op.deleting and row.deleting_ms is None else row.deleting_ms
            if (spec, status, deleting_ms) == before:
                found.append(record_of(row))
                continue
            values = {**row._asdict(), "spec": spec, "status": status, "deleting_ms": deleting_ms}
            values |= {"revision": write.revision + 1, "updated_ms": self.now_ms()}
            values["generation"] += spec != row.spec
            record = record_of([values[name] for name in Record.__slots__])
            changed.append(
                {
                    "of_uid": record.uid,
                    "spec": spec,
                    "status": status,
                    "state": state_of(record.status),
                    "generation": record.generation,
                    "revision": record.revision,
                    "updated_ms": record.updated_ms,
                    "deleting_ms": deleting_ms,
                }
            )
            found.append(record)
            self._log(write, record, deleted=False)
        if changed:
            write.connection.execute(_CHANGE, changed)
        return found

    def _log(self, write: _Write, record: Record, *, deleted: bool) -> None:
        write.revision += 1
        write.log.append(
            {
                "revision": write.revision,
                "workspace": record.workspace,
                "kind": record.kind,
                "name": record.name,
                "uid": record.uid,
                "deleted": int(deleted),
            }
        )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed", hint="open it again")


def _runs(ops: Sequence[Op]) -> Iterator[list[Op]]:
    """Neighbours of one kind, no record twice and not too many, in order."""
    run: list[Op] = []
    seen: set[str] = set()
    for op in ops:
        uid = "" if isinstance(op, Create) else op.record.uid
        if run and (type(op) is not type(run[0]) or uid in seen or len(run) >= RUN_MOST):
            yield run
            run, seen = [], set()
        run.append(op)
        seen |= {uid} if uid else set()
    if run:
        yield run


def _system_ms() -> int:
    return time.time_ns() // 1_000_000


def _revision(connection: Connection) -> int:
    return int(connection.execute(select(counter.c.revision)).scalar_one())


def _conflict(connection: Connection, record: Record) -> Conflict:
    now = connection.execute(select(records.c.revision).where(records.c.uid == record.uid)).scalar()
    what = "was deleted" if now is None else f"is at revision {now}"
    return Conflict(
        f"{record.kind} {record.name!r} {what}, not at {record.revision}",
        hint="read it again and repeat the change",
        details={"uid": record.uid, "revision": now},
    )
