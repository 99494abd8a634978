"""Reservations of nodes as the public client knows them: records with a phase that their times decide."""

from __future__ import annotations

from lepton_ai.errors import Invalid
from lepton_ai.wire.record import Json, Record, table, whole
from lepton_ai.wire.storage import texts

MAX_S = 253_402_300_799
"""The last second of the year 9999."""


def phase(spec: Json, now_ms: int) -> str:
    """WaitingEffective before its time, Reserving within it, Expired after it."""
    if now_ms < spec["start_s"] * 1000:
        return "WaitingEffective"
    return "Reserving" if spec["end_s"] is None or now_ms < spec["end_s"] * 1000 else "Expired"


def shown(record: Record, now_ms: int) -> Json:
    spec = record.spec
    rule = {"start_timestamp": spec["start_s"]}
    held = record.status.get("nodes")
    names = [str(name) for name in held] if isinstance(held, list) else []
    if spec["end_s"] is not None:
        rule["end_timestamp"] = spec["end_s"]
    return {
        "metadata": {"id": record.name, "name": record.name, "created_at": record.created_ms},
        "spec": {
            "users": list(spec["users"]),
            "desired_nodes": spec["nodes"],
            "approved_nodes": spec["nodes"],
            "time_rule": rule,
            "created_by": spec["created_by"],
            "display_name": spec["title"] or record.name,
        },
        "status": {"phase": phase(spec, now_ms), "reserved_count": len(names), "reserved_nodes": names},
    }


def given(body: object, now_ms: int) -> Json:
    """The fields of a new reservation (the client's form: metadata.name and spec). Raises Invalid."""
    spec = table(table(body, "the body").get("spec"), "spec")
    rule = table(spec.get("time_rule"), "spec.time_rule")
    start_s = whole(rule.get("start_timestamp"), "time_rule.start_timestamp", now_ms // 1000)
    end = rule.get("end_timestamp")
    end_s = None if end is None else whole(end, "time_rule.end_timestamp", 0)
    if not 0 <= start_s <= MAX_S or (end_s is not None and not start_s < end_s <= MAX_S):
        raise Invalid("the times of a reservation are not in order", hint="seconds since 1970: start before end")
    nodes = whole(spec.get("desired_nodes"), "spec.desired_nodes", 1)
    if not 1 <= nodes <= 10_000:
        raise Invalid(f"spec.desired_nodes is {nodes}", hint="use 1 or more")
    title = spec.get("display_name") or ""
    if not isinstance(title, str) or len(title) > 128:
        raise Invalid("spec.display_name is not a text of at most 128 characters", hint="leave it out")
    return {
        "title": title,
        "users": texts(spec.get("users"), "spec.users"),
        "nodes": nodes,
        "start_s": start_s,
        "end_s": end_s,
    }
