"""Replicas, their readiness and terminations, and events, as the public client knows them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Protocol

from lepton_ai.wire.record import Json, Record

_READINESS = {
    "ready": "Ready",
    "draining": "Deleting",
    "stopping": "Deleting",
    "unready": "SystemError",
    "unknown": "SystemError",
    "pending": "NoCapacity",
}


class Event(Protocol):
    """The fields of an event that are shown; `telemetry.Event` has them."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def last_ms(self) -> int: ...


def shown(record: Record) -> Json:
    """A replica."""
    node = str(record.spec.get("node") or "")
    return {
        "id": record.name,
        "metadata": {"id": record.name, "name": record.name, "created_at": record.created_ms},
        "status": {"node": {"name": node, "id": node}, "domains": []},
    }


def readiness(records: Iterable[Record]) -> Json:
    """Replica id -> [why it is ready or not], of those that have not ended."""
    found: Json = {}
    for record in records:
        phase = str(record.status.get("phase") or "pending")
        if phase == "exited":
            continue
        reason = _READINESS.get(phase, "InProgress")
        message = str(record.status.get("reason") or phase)
        found[record.name] = [{"reason": reason, "message": message, "creationTimestamp": _iso(record.updated_ms)}]
    return found


def termination(records: Iterable[Record]) -> Json:
    """Replica id -> [how it ended], of those that have."""
    found: Json = {}
    for record in records:
        end = record.status.get("exit")
        if not end:
            continue
        code, signal = end.get("code"), end.get("signal")
        if code is None:
            code = 128 + int(signal) if signal else -1
        reason = "OOMKilled" if end.get("out_of_memory") else ("Completed" if code == 0 else "Error")
        found[record.name] = [
            {
                "started_at": int(end.get("started_ms") or 0) // 1000,
                "finished_at": int(end.get("ended_ms") or 0) // 1000,
                "exit_code": int(code),
                "reason": reason,
                "message": str(record.status.get("last_log") or record.status.get("reason") or ""),
            }
        ]
    return found


def event(item: Event) -> Json:
    """An event. The public client shows `reason` and `regarding`, so that what happened is said there too."""
    return {
        "type": item.type,
        "reason": item.reason,
        "message": item.message,
        "count": item.count,
        "last_observed_time": _iso(item.last_ms),
        "regarding": {"kind": item.kind, "name": item.name, "message": item.message},
    }


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
