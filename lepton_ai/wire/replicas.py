"""Replicas, their readiness and terminations, and events, as the public client knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from lepton_ai.wire.record import Json, Record

_READINESS = {
    "ready": "Ready",
    "draining": "Deleting",
    "stopping": "Deleting",
    "unready": "SystemError",
    "unknown": "SystemError",
    "pending": "NoCapacity",
}
_WITHOUT_REPLICAS = {"waiting": "NoCapacity", "degraded": "NoCapacity", "failed": "ConfigError"}
"""States of a deployment that have a reason of their own, besides those of its replicas."""


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
    """A replica. `isolation`, `limits` and `image` say how it runs; the client does not read them."""
    status = record.status
    value = {**_placed(str(record.spec.get("node") or "")), "phase": str(status.get("phase") or "pending")}
    if status.get("address"):
        value["public_ip"] = str(status["address"])
    for field in ("isolation", "limits", "image"):
        if status.get(field):
            value[field] = str(status[field])
    return {
        "id": record.name,
        "metadata": {"id": record.name, "name": record.name, "created_at": record.created_ms},
        "status": value,
    }


def archived(item: Mapping[str, Any], created_ms: int) -> Json:
    """A replica of a job that was removed, as its archive keeps it."""
    spec, status = item.get("spec") or {}, item.get("status") or {}
    name = str(item.get("name") or "")
    began_ms = int(status.get("started_ms") or created_ms)
    return {
        "id": name,
        "metadata": {"id": name, "name": name, "created_at": began_ms},
        "status": {**_placed(str(spec.get("node") or "")), "phase": "exited"},
    }


def ordered(records: Iterable[Record]) -> list[Record]:
    """Replicas as they are listed: who shows the first one shows the newest attempt of the first worker."""
    latest: dict[int, tuple[int, int, str]] = {}
    items = list(records)
    for item in items:
        worker = int(item.spec.get("worker") or 0)
        latest[worker] = max(latest.get(worker, (-1, 0, "")), _age(item))
    return sorted(items, key=lambda item: _place(item, latest))


def _place(item: Record, latest: dict[int, tuple[int, int, str]]) -> tuple[bool, int, int, str]:
    worker = int(item.spec.get("worker") or 0)
    return (_age(item) != latest[worker], worker, -item.created_ms, item.name)


def _age(item: Record) -> tuple[int, int, str]:
    return (item.status.get("phase") != "exited", item.created_ms, item.name)


def _placed(node: str) -> Json:
    return {"node": {"name": node, "id": node}, "domains": []}


def readiness(records: Iterable[Record], owner: Record | None = None) -> Json:
    """Replica id -> [why it is ready or not], of those that have not ended.

    What a deployment (`owner`) itself waits for stands under its own name: no replica may be there to say it.
    """
    found: Json = {}
    for record in records:
        phase = str(record.status.get("phase") or "pending")
        if phase == "exited":
            continue
        reason = _READINESS.get(phase, "InProgress")
        message = str(record.status.get("reason") or phase)
        found[record.name] = [{"reason": reason, "message": message, "creationTimestamp": _iso(record.updated_ms)}]
    if owner is not None:
        state = str(owner.status.get("state") or "")
        text = str(owner.status.get("reason") or "")
        lacks = int(owner.status.get("ready") or 0) < int(owner.status.get("wanted") or 0)
        waits = state == "waiting" or (state == "degraded" and lacks and len(found) < int(owner.status["wanted"]))
        if state == "failed" or (waits and text):
            issue = {"reason": _WITHOUT_REPLICAS[state], "message": text or state}
            found[owner.name] = [{**issue, "creationTimestamp": _iso(owner.updated_ms)}]
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
