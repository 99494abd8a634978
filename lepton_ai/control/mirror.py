"""The records of a cell in memory, kept current by the store's changes: what makes a quiet pass almost free.

Owns reading and writing of records for the loops. Every write goes to the store first, with the leader's lease.
What the loops have nothing to do for is not kept: of jobs that rest (see `rest`) when they are to go, of releases
their numbers. It is read when it is needed.
"""

from __future__ import annotations

import builtins
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from lepton_ai.control.rest import Rest, finished
from lepton_ai.errors import Conflict, Invalid, NotFound, StaleEpoch
from lepton_ai.spec.base import Model
from lepton_ai.spec.workload import ReleaseSpec
from lepton_ai.store import Create, Delete, Lease, Op, Record, Store, Update

KINDS = ("node", "deployment", "job", "replica", "ingress", "reservation", "workspace")
RELEASE = "release"
RELEASES_KEPT = 256
BATCH = 256
PAGE = 500

M = TypeVar("M", bound=Model)
_log = logging.getLogger(__name__)


class Mirror:
    """Records of :data:`KINDS` by uid. `refresh` before a pass; `write` during it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._since = -1
        self._records: dict[str, Record] = {}
        self._kinds: dict[str, dict[str, Record]] = {kind: {} for kind in KINDS}
        self._owned: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
        self._running: dict[str, Record] = {}
        self._order: dict[str, builtins.list[str]] = {}
        self._parsed: dict[str, tuple[int, Model]] = {}
        self._releases: dict[str, dict[str, int]] = {}
        self._owner_of: dict[str, str] = {}
        self._release_specs: dict[str, ReleaseSpec] = {}
        self.rest = Rest()

    @property
    def revision(self) -> int:
        """Every change up to this one is in the mirror."""
        return self._since

    def refresh(self) -> None:
        """Take in what was committed since the last refresh; not what others go on writing meanwhile, however much."""
        if self._since < 0:
            self._reload()
            return
        until = self._store.revision()
        while self._since < until:
            try:
                changes = self._store.changes(self._since, limit=1000)
            except Invalid:
                self._reload()
                return
            latest = {change.uid: change for change in changes if change.kind in self._kinds or change.kind == RELEASE}
            stale = []
            for uid, change in latest.items():
                known = self._records.get(uid)
                if change.deleted:
                    self._drop(uid)
                elif known is None or known.revision < change.revision:
                    stale.append(uid)
            self._fetch(*stale)
            if not changes:
                return
            self._since = changes[-1].revision

    def list(self, kind: str) -> builtins.list[Record]:
        """Every record of a kind, oldest first."""
        order = self._order.get(kind)
        if order is None:
            oldest_first = sorted(self._kinds[kind].values(), key=lambda record: (record.created_ms, record.uid))
            order = self._order[kind] = [record.uid for record in oldest_first]
        known = self._kinds[kind]
        return [known[uid] for uid in order]

    def running(self) -> builtins.list[Record]:
        """The replicas that have not ended, oldest first: few among the many that a cell remembers."""
        return sorted(self._running.values(), key=lambda record: (record.created_ms, record.uid))

    def owned(self, kind: str, owner_uid: str) -> builtins.list[Record]:
        """The records of a kind with that owner, oldest first."""
        found = self._owned.get((kind, owner_uid), {})
        return sorted(found.values(), key=lambda record: (record.created_ms, record.uid))

    def get(self, uid: str) -> Record | None:
        return self._records.get(uid)

    def read(self, *uids: str) -> builtins.list[Record]:
        """Records as they are in the store now, also those that are not kept; what is gone is left out."""
        return self._store.fetch(uids)

    def find(self, workspace: str, kind: str, name: str) -> Record | None:
        """One record of any kind, as it is in the store now."""
        return self._store.find(workspace, kind, name)

    def releases(self, owner_uid: str) -> builtins.list[tuple[int, str]]:
        """(number, uid) of the releases of a deployment, oldest first."""
        return sorted((number, uid) for uid, number in self._releases.get(owner_uid, {}).items())

    def release(self, owner_uid: str, number: int) -> ReleaseSpec | None:
        """One release of a deployment; they never change, so the last ones read are remembered."""
        uid = next((uid for known, uid in self.releases(owner_uid) if known == number), None)
        if uid is None:
            return None
        if uid not in self._release_specs:
            if len(self._release_specs) >= RELEASES_KEPT:
                del self._release_specs[next(iter(self._release_specs))]
            for record in self._store.fetch([uid]):
                self._release_specs[uid] = ReleaseSpec.model_validate(record.spec)
        return self._release_specs.get(uid)

    def counts(self, kind: str) -> dict[str, int]:
        """How many records of any kind there are in the store, by workspace."""
        return self._store.counts(kind)

    def oldest(self, kind: str, limit: int, workspace: str | None = None) -> builtins.list[Record]:
        """The oldest records of any kind, from the store."""
        return self._store.list(kind, workspace=workspace, limit=limit)

    def parse(self, record: Record, model: type[M], value: Any = None) -> M:
        """The record's spec as `model`, remembered until it changes. `value`: the part of the spec to read."""
        known = self._parsed.get(record.uid)
        if known is not None and known[0] == record.generation and isinstance(known[1], model):
            return known[1]
        parsed = model.model_validate(record.spec if value is None else value)
        self._parsed[record.uid] = (record.generation, parsed)
        return parsed

    def write(self, ops: Sequence[Op], lease: Lease) -> builtins.list[Record | None]:
        """All of `ops` in one transaction. Raises Conflict (then nothing was written) and StaleEpoch."""
        results = self._store.batch(list(ops), lease=lease)
        for op, result in zip(ops, results, strict=True):
            if isinstance(op, Delete):
                self._drop(op.record.uid)
            elif result is not None:
                self._keep(result)
        return results

    def write_each(self, ops: Sequence[Op], lease: Lease) -> None:
        """Independent writes: in large batches, and one by one where a batch meets a conflict.

        A conflict means that somebody changed the record; the next pass sees it and decides anew.
        """
        for start in range(0, len(ops), BATCH):
            part = ops[start : start + BATCH]
            try:
                self.write(part, lease)
            except StaleEpoch:
                raise
            except (Conflict, NotFound):
                for op in part:
                    self._write_one(op, lease)

    def _write_one(self, op: Op, lease: Lease) -> None:
        try:
            self.write([op], lease)
        except StaleEpoch:
            raise
        except (Conflict, NotFound) as error:
            _log.debug("left for the next pass: %s", error.message)
            if isinstance(op, Update | Delete):
                self._fetch(op.record.uid)

    def _reload(self) -> None:
        since, seen = self._store.revision(), set[str]()
        # Jobs before their replicas: of those that rest the replicas are not kept either.
        for kind in ("node", "deployment", RELEASE, "job", "replica", "ingress", "reservation", "workspace"):
            after = ""
            while page := self._store.list(kind, after=after, limit=PAGE):
                for record in page:
                    seen.add(record.uid)
                    self._keep(record)
                after = page[-1].uid
        for uid in {*self._records, *self._owner_of, *self.rest} - seen:
            self._drop(uid)
        self._since = since

    def _fetch(self, *uids: str) -> None:
        found = {record.uid: record for record in self._store.fetch(uids)}
        for uid in uids:
            if uid not in found:
                self._drop(uid)
        for record in found.values():
            self._keep(record)

    def _keep(self, record: Record) -> None:
        if record.kind == RELEASE:
            self._keep_release(record)
        elif record.kind == "job":
            self._keep_job(record)
        elif record.kind == "replica" and record.owner_uid is not None:
            self._keep_replica(record, record.owner_uid)
        elif record.kind in self._kinds:
            self._hold(record)

    def _keep_release(self, record: Record) -> None:
        number = record.spec.get("number")
        if record.owner_uid is not None and isinstance(number, int):
            self._releases.setdefault(record.owner_uid, {})[record.uid] = number
            self._owner_of[record.uid] = record.owner_uid

    def _keep_job(self, record: Record) -> None:
        if finished(record) and not self._runs(record.uid):
            self._lay_down(record)
            return
        rested = record.uid in self.rest
        self.rest.drop(record.uid)
        self._hold(record)
        if rested:
            for copy in self._store.list("replica", owner_uid=record.uid):
                self._hold(copy)

    def _keep_replica(self, record: Record, owner_uid: str) -> None:
        ended = record.status.get("phase") == "exited"
        if owner_uid in self.rest:
            if ended:
                return
            # Something of a job that rested runs (its node was away): both are looked after again.
            self.rest.drop(owner_uid)
            for item in [*self._store.fetch([owner_uid]), *self._store.list("replica", owner_uid=owner_uid)]:
                self._hold(item)
        self._hold(record)
        owner = self._records.get(owner_uid)
        if ended and owner is not None and owner.kind == "job" and finished(owner) and not self._runs(owner_uid):
            self._lay_down(owner)

    def _runs(self, owner_uid: str) -> bool:
        """Whether a replica of the owner has not ended."""
        owned = self._owned.get(("replica", owner_uid), {})
        return any(copy.status.get("phase") != "exited" for copy in owned.values())

    def _lay_down(self, job: Record) -> None:
        for copy in self.owned("replica", job.uid):
            self._drop(copy.uid)
        self._drop(job.uid)
        self.rest.add(job)

    def _hold(self, record: Record) -> None:
        if record.uid not in self._records:
            self._order.pop(record.kind, None)
        self._records[record.uid] = record
        self._kinds[record.kind][record.uid] = record
        if record.kind == "replica" and record.status.get("phase") != "exited":
            self._running[record.uid] = record
        else:
            self._running.pop(record.uid, None)
        if record.owner_uid is not None:
            self._owned[(record.kind, record.owner_uid)][record.uid] = record

    def _drop(self, uid: str) -> None:
        self.rest.drop(uid)
        owner_uid = self._owner_of.pop(uid, None)
        if owner_uid is not None:
            numbers = self._releases.get(owner_uid, {})
            numbers.pop(uid, None)
            if not numbers:
                self._releases.pop(owner_uid, None)
        record = self._records.pop(uid, None)
        self._parsed.pop(uid, None)
        self._running.pop(uid, None)
        if record is None:
            return
        self._order.pop(record.kind, None)
        self._kinds[record.kind].pop(uid, None)
        if record.owner_uid is not None:
            owned = self._owned.get((record.kind, record.owner_uid), {})
            owned.pop(uid, None)
            if not owned:
                self._owned.pop((record.kind, record.owner_uid), None)


def changed(record: Record, status: dict[str, Any]) -> Iterable[Op]:
    """One Update when `status` differs from what is recorded, else nothing."""
    return () if status == record.status else (Update(record, status=status),)


__all__ = ["Create", "Delete", "Mirror", "Op", "Record", "Update", "changed"]
