"""Who sees which work: what is private is there only for its maker and the workspace's admins and owners.

Owns that rule, also for what is left of work that is gone: archived jobs say it themselves, a private deployment that
is removed leaves a note (kind "tombstone"), so that its logs and events do not become everybody's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from lepton_ai.api.cell import Cell
from lepton_ai.errors import Conflict, NotFound
from lepton_ai.store import Record
from lepton_ai.tenancy import Principal

WORK = ("deployment", "job")
ARCHIVE = "archive"
TOMBSTONE, REPLICA = "tombstone", "replica"
SEES_ALL = frozenset({"owner", "admin"})
DAY_MS = 86_400_000
SWEEP = 20


def may(who: Principal, owned: Mapping[str, Any]) -> bool:
    """Whether `who` sees work whose spec (or what is remembered of it) is `owned`."""
    return owned.get("visibility") != "private" or who.role in SEES_ALL or owned.get("created_by") == who.token_name


def sees(cell: Cell, who: Principal, record: Record) -> bool:
    """Whether `record` is there for `who`: work by its own word, a replica by its owner's, anything else is."""
    if record.kind in WORK or record.kind == TOMBSTONE:
        return may(who, record.spec)
    if record.kind == ARCHIVE:
        return may(who, record.spec.get("spec") or {})
    if record.kind != REPLICA or who.role in SEES_ALL:
        return True
    try:
        owner = cell.store.get_uid(str(record.owner_uid))
    except NotFound:
        return False  # nobody can say whose it was
    return may(who, owner.spec)


def seen(cell: Cell, who: Principal, records: Iterable[Record]) -> list[Record]:
    """Those of `records` (work) that are there for `who`."""
    return [record for record in records if sees(cell, who, record)]


def names(cell: Cell, who: Principal, kind: str) -> list[str]:
    """What the records of a kind are called, as far as `who` may know."""
    if who.role in SEES_ALL or kind not in (*WORK, ARCHIVE, REPLICA):
        return cell.store.names(kind, workspace=who.workspace)
    shelf = {"deployment": cell.work, "job": cell.jobs, ARCHIVE: cell.archives}.get(kind)
    if shelf is not None:
        return sorted(short["id"] for _, short in shelf.list(who.workspace) if may(who, short))
    hidden = hidden_names(cell, who)
    records = cell.store.list(kind, workspace=who.workspace, but="exited")
    return sorted(record.name for record in records if _owner(record) not in hidden)


def since_ms(cell: Cell, who: Principal, kind: str, name: str) -> int | None:
    """From when on `who` may read what the work (kind, name) left: lines, events. None: it is not there for `who`.

    Names are used again: what a private deployment left before another took its name stays its maker's.
    """
    if kind not in WORK or who.role in SEES_ALL:
        return 0
    record = cell.store.find(who.workspace, kind, name)
    if record is not None:
        if not may(who, record.spec):
            return None
        return record.created_ms if _buried(cell, who, kind, name) else 0
    if kind == "job":
        archive = cell.store.find(who.workspace, ARCHIVE, name)
        return 0 if archive is None or sees(cell, who, archive) else None
    return None if _buried(cell, who, kind, name) else 0


def since_of_replica_ms(cell: Cell, who: Principal, name: str) -> int | None:
    """The same for one replica, also when only its lines are left: its name begins with its owner's."""
    if who.role in SEES_ALL:
        return 0
    record = cell.store.find(who.workspace, REPLICA, name)
    if record is not None:
        return 0 if sees(cell, who, record) else None
    owner = name.rsplit("-", 2)[0]
    found = [since_ms(cell, who, kind, owner) for kind in WORK]
    return None if None in found else max(ms for ms in found if ms is not None)


def hidden_names(cell: Cell, who: Principal) -> frozenset[tuple[str, str]]:
    """(kind, name) of the work that is not there for `who`, for lists of what belongs to work (events, workloads)."""
    if who.role in SEES_ALL:
        return frozenset()
    found: set[tuple[str, str]] = set()
    for kind, shelf in (("deployment", cell.work), ("job", cell.jobs), ("job", cell.archives)):
        found |= {(kind, short["id"]) for _, short in shelf.list(who.workspace) if not may(who, short)}
    for item in cell.store.list(TOMBSTONE, workspace=who.workspace):
        if not may(who, item.spec):
            found.add((str(item.spec["kind"]), str(item.spec["name"])))
    return frozenset(found)


def bury(cell: Cell, record: Record) -> None:
    """Leaves the note of a private deployment that is being removed; old ones go."""
    if record.kind != "deployment" or record.spec.get("visibility") != "private":
        return
    store = cell.store
    horizon_ms = store.now_ms() - cell.settings.log_retention_days * DAY_MS
    with contextlib.suppress(Conflict):
        for item in store.list(TOMBSTONE, workspace=record.workspace, limit=SWEEP):
            if item.updated_ms < horizon_ms:
                store.delete(item)
    spec = {
        "kind": record.kind,
        "name": record.name,
        "visibility": "private",
        "created_by": record.spec.get("created_by") or "",
    }
    with contextlib.suppress(Conflict):  # the note of this very record is there already
        store.create(record.workspace, TOMBSTONE, f"{record.name}.{record.uid}", spec)


def _buried(cell: Cell, who: Principal, kind: str, name: str) -> bool:
    notes = cell.store.list(TOMBSTONE, workspace=who.workspace)
    return any((item.spec["kind"], item.spec["name"]) == (kind, name) and not may(who, item.spec) for item in notes)


def _owner(record: Record) -> tuple[str, str]:
    spec = record.spec.get("replica") or {}
    return str(spec.get("owner_kind") or ""), str(spec.get("owner") or "")
