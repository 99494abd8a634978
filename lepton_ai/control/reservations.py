"""Reservations: which nodes are kept for work that names one, and from when to when.

Owns the status of records of kind "reservation": {nodes, reason}. A node that a reservation has it keeps until the
reservation ends, whatever its owner wishes elsewhere; more are taken as nodes become usable, those with the least on
them first. What runs there already runs on; from then on only work that names the reservation is placed there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Op, Record, changed

KIND = "reservation"
_HELD = re.compile(r"reserved: for ([a-zA-Z0-9._-]+)")
_HOLDER = re.compile(r"is taken by ([a-z0-9-]+)/([a-z0-9-]+)")


def reconcile(ctx: Context) -> None:
    """Before anything is placed: who has which nodes now. Fills `ctx.reservations` and `ctx.lent`."""
    records = ctx.mirror.list(KIND)
    ctx.weights = {item.name: _weight(item) for item in ctx.mirror.list("workspace") if "weight" in item.spec}
    ctx.reservations = {record.name: str(record.spec.get("workspace") or "") for record in records}
    if not records:
        return
    now_s, mine = ctx.now_ms / 1000, dict[str, list[str]]()
    for record in records:  # oldest first: who came first keeps what it has
        taken = {name for names in mine.values() for name in names}
        kept = [name for name in held_by(record.status) if name in ctx.nodes and name not in taken]
        mine[record.name] = kept[: _count(record)] if effective(record.spec, now_s) else []
    load: dict[str, int] = dict.fromkeys(ctx.nodes, 0)
    for copy in ctx.mirror.running():
        load[str(copy.spec.get("node"))] = load.get(str(copy.spec.get("node")), 0) + 1
    ops: list[Op] = []
    for record in records:
        names, taken = mine[record.name], {name for names in mine.values() for name in names}
        free = sorted(ctx.usable_nodes - taken, key=lambda name: (load[name], name))
        if effective(record.spec, now_s):
            names += free[: max(0, _count(record) - len(names))]
        ops += _said(ctx, record, names, now_s)
        ctx.lent.update(dict.fromkeys(names, record.name))
    ctx.write_each(ops)


def held_by(status: Mapping[str, Any]) -> list[str]:
    """The nodes that a reservation has, by its status."""
    names = status.get("nodes")
    return [str(name) for name in names] if isinstance(names, list) else []


def masked(text: str, reservations: Mapping[str, str], workspace: str) -> str:
    """`text` of the scheduler, as `workspace` may read it: not what others call their reservations and replicas.

    `reservations`: whose each of them is.
    """

    def held(match: re.Match[str]) -> str:
        return match[0] if reservations.get(match[1], workspace) == workspace else "reserved: for others"

    def holder(match: re.Match[str]) -> str:
        return f"is taken by {match[2] if match[1] == workspace else 'work of another workspace'}"

    return _HOLDER.sub(holder, _HELD.sub(held, text))


def effective(spec: Mapping[str, Any], now_s: float) -> bool:
    """Whether its time is now."""
    start_s, end_s = spec.get("start_s"), spec.get("end_s")
    begun = not isinstance(start_s, int | float) or now_s >= start_s
    return begun and not (isinstance(end_s, int | float) and now_s >= end_s)


def _said(ctx: Context, record: Record, names: list[str], now_s: float) -> list[Op]:
    wanted = _count(record) if effective(record.spec, now_s) else 0
    reason = f"{len(names)} of {wanted} nodes: the others are not there, or reserved" if len(names) < wanted else ""
    ops = list(changed(record, {**record.status, "nodes": names, "reason": reason}))
    if ops and held_by(record.status) != names:
        ctx.event(record, "Reserved", f"has {', '.join(names) or 'no node'}" + (f" ({reason})" if reason else ""))
    return ops


def _count(record: Record) -> int:
    count = record.spec.get("nodes")
    return count if isinstance(count, int) and count > 0 else 0


def _weight(record: Record) -> float:
    found = record.spec.get("weight")
    return float(found) if isinstance(found, int | float) else 1.0
