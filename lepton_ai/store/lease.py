"""Who leads: leases with an epoch that grows by one at every change of holder, so that late writes can be refused.

Whether a lease has run out is judged by the one who wants it, on its own monotonic clock: the lease must have
stood unrenewed for its whole time to live *since this process first saw it so*. A wall clock that jumps, here or
there, can neither cut a lease short nor prolong it; the price is that a newcomer waits one time to live, unless
the holder released it or is known to be dead (`is_dead`). Safety never rests on time: every write that carries a
lease compares its epoch inside the write's own transaction (fencing, as in Kleppmann's "How to do distributed
locking", 2016, and Kubernetes' client-go leader election).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from lepton_ai.errors import Invalid, StaleEpoch
from lepton_ai.store.tables import leases


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to lead. `expires_ms` (wall clock) is for display only; nothing is decided by it."""

    name: str
    holder: str
    epoch: int
    ttl_s: float
    expires_ms: int


class Sightings:
    """When this process first saw each lease in its present state. Thread-safe."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._seen: dict[str, tuple[tuple[object, ...], float]] = {}
        self._lock = threading.Lock()

    def age_s(self, row: RowMapping) -> float:
        """Seconds since this process first saw `row` as it is now (0 when it is new to us)."""
        state = (row["holder"], row["epoch"], row["renewals"])
        now_s = self._monotonic_s()
        with self._lock:
            before = self._seen.get(row["name"])
            if before is None or before[0] != state:
                self._seen[row["name"]] = (state, now_s)
                return 0.0
            return now_s - before[1]


def read(connection: Connection, name: str) -> RowMapping | None:
    """The row of lease `name`, or None when nobody ever held it."""
    return connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()


def check(connection: Connection, lease: Lease) -> None:
    """Raises StaleEpoch unless `lease` is still the current one. Call it inside the transaction that writes."""
    row = read(connection, lease.name)
    if row is None or (row["holder"], row["epoch"]) != (lease.holder, lease.epoch):
        raise stale(lease, row)


def stale(lease: Lease, row: RowMapping | None) -> StaleEpoch:
    now = f"{row['holder'] or 'nobody'} holds epoch {row['epoch']}" if row is not None else "nobody holds it"
    return StaleEpoch(
        f"lease {lease.name!r}: epoch {lease.epoch} of {lease.holder} has passed ({now})",
        hint="stop this loop and acquire the lease again",
        details={"lease": lease.name, "epoch": lease.epoch, "current": row["epoch"] if row is not None else 0},
    )


def take(
    connection: Connection, name: str, holder: str, ttl_s: float, now_ms: int, before: RowMapping | None
) -> Lease | None:
    """Gives the lease to `holder` if it still is as `before`; None when somebody was faster."""
    row = read(connection, name)
    if (dict(row) if row is not None else None) != (dict(before) if before is not None else None):
        return None
    ttl_ms = round(ttl_s * 1000)
    lease = Lease(name, holder, _epoch(row, holder), ttl_s, now_ms + ttl_ms)
    values = {"holder": holder, "epoch": lease.epoch, "ttl_ms": ttl_ms, "expires_ms": lease.expires_ms}
    if row is None:
        connection.execute(insert(leases).values(name=name, renewals=0, **values))
    else:
        connection.execute(update(leases).where(leases.c.name == name).values(renewals=leases.c.renewals + 1, **values))
    return lease


def renew(connection: Connection, lease: Lease, ttl_s: float, now_ms: int) -> Lease:
    """Prolongs `lease`; raises StaleEpoch when it has passed."""
    check(connection, lease)
    ttl_ms = round(ttl_s * 1000)
    values: dict[str, Any] = {"ttl_ms": ttl_ms, "expires_ms": now_ms + ttl_ms, "renewals": leases.c.renewals + 1}
    connection.execute(update(leases).where(leases.c.name == lease.name).values(**values))
    return Lease(lease.name, lease.holder, lease.epoch, ttl_s, now_ms + ttl_ms)


def release(connection: Connection, lease: Lease) -> None:
    """Gives `lease` up if it is still current; else does nothing."""
    where = (leases.c.name == lease.name) & (leases.c.holder == lease.holder) & (leases.c.epoch == lease.epoch)
    connection.execute(update(leases).where(where).values(holder="", renewals=leases.c.renewals + 1))


def validate(name: str, holder: str, ttl_s: float) -> None:
    """Raises Invalid for a lease without name or holder, or with a time to live outside 0.05 s to one day."""
    if not name or not holder:
        raise Invalid("a lease needs a name and a holder", hint="use e.g. BOOT_ID/PID/START_TICKS as the holder")
    if not 0.05 <= ttl_s <= 86_400:
        raise Invalid(f"ttl_s = {ttl_s} is out of range", hint="use 0.05 to 86400 seconds")


def _epoch(row: RowMapping | None, holder: str) -> int:
    if row is None:
        return 1
    return int(row["epoch"]) + int(row["holder"] != holder)
