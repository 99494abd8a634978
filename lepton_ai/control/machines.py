"""The records of nodes: who they are, what they say of themselves, and whether they are there.

Owns kind "node". A node that is drained or removed keeps its work until it stands elsewhere (see `rollout`).
"""

from __future__ import annotations

from typing import Any

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Delete, Op, Record, changed
from lepton_ai.control.ports import NodeAddress
from lepton_ai.control.transport import NodeTls
from lepton_ai.scheduler.load import Load
from lepton_ai.spec.replica import NodeGauges

AMOUNTS = ("cpu_used_milli", "memory_used_mib", "disk_free_mib")
AMOUNT_MOST = 1e15
CHANGING = ("cpu_used_milli", "memory_used_mib", "disk_free_mib", "seen_ms", "gauges", "load")


def connect(ctx: Context) -> None:
    """Tell the fleet which nodes there are and who leads."""
    ctx.mirror.refresh()
    addresses = [_address(record) for record in ctx.mirror.list("node")]
    ctx.services.fleet.connect(addresses, ctx.lease.epoch)


def reconcile(ctx: Context) -> None:
    """Write down what nodes say: at once when it matters, else every `node_status_s`."""
    ops: list[Op] = []
    ctx.each(ctx.mirror.list("node"), lambda record: _one(ctx, record, ops))
    ctx.write_each(ops)


def _address(record: Record) -> NodeAddress:
    port = record.spec.get("port", 0)
    return NodeAddress(
        record.name,
        str(record.spec.get("address", "127.0.0.1")),
        port if isinstance(port, int) else 0,
        str(record.spec.get("token_file", "")),
        _tls(record.spec.get("tls")),
    )


def _tls(value: object) -> NodeTls | None:
    """{"ca", "cert", "key", "host"} of a node beyond this machine. What cannot be read opens nothing."""
    if not isinstance(value, dict):
        return None
    return NodeTls(*(str(value.get(field, "")) for field in ("ca", "cert", "key", "host")))


def _one(ctx: Context, record: Record, ops: list[Op]) -> None:
    name = record.name
    view = ctx.views.get(name)
    status: dict[str, Any] = dict(record.status)
    if ctx.settled(name) or "reason" not in status:
        status["reason"] = ctx.blocked(record)
    if not ctx.connected(name):
        status["state"] = "unreachable" if ctx.settled(name) else status.get("state", "unreachable")
    else:
        assert view is not None
        assert view.report is not None
        report = view.report
        drained = record.deleting or record.spec.get("unschedulable")
        status["state"] = "draining" if drained else "ready"
        status.update(
            capacity=report.capacity.model_dump(mode="json"),
            boot_id=report.boot_id,
            agent_uid=report.agent_uid,
            address=report.address,
            runtime=report.runtime,
            isolation=report.isolation,
            forwards=report.forwards,
            machine=report.machine.model_dump(mode="json"),
        )
        written_ms, load = ctx.memory.node_written.get(name, -1_000_000), ctx.loads.get(name)
        if load is not None and (status.get("load") or {}).get("mark") != load.mark:
            status["load"] = shown(load)
            if load.mark == "overloaded" or (record.status.get("load") or {}).get("mark") == "overloaded":
                text = f"{load.mark}: {load.s:.2f} of its {load.resource} to plan for, its limit is {load.limit:g}"
                ctx.event(record, "Load", text, warning=load.mark == "overloaded")
        if ctx.tick_ms - written_ms >= ctx.options.node_status_s * 1000:
            ctx.memory.node_written[name] = ctx.tick_ms
            status.update(
                {field: value for field in AMOUNTS if amount(value := getattr(report, field))},
                seen_ms=ctx.now_ms,
                gauges=figures(report.gauges),
                load=None if load is None else shown(load),
            )
    if status.get("state") != record.status.get("state"):
        warning = status["state"] == "unreachable"
        text = f"{record.status.get('state') or 'new'} -> {status['state']}"
        ctx.event(record, "State", text + (f": {status['reason']}" if status["reason"] else ""), warning=warning)
    if record.deleting and not any(_runs_on(item, name) for item in ctx.mirror.list("replica")):
        ops.append(Delete(record))
    else:
        ops.extend(changed(record, status))


def shown(load: Load) -> dict[str, Any]:
    """A load as it is recorded: shares rounded to four digits."""
    parts = {
        part.resource: {"u": round(part.u, 4), "w": round(part.w, 4), "s": round(part.s, 4)} for part in load.parts
    }
    return {
        "u": round(load.u, 4),
        "w": round(load.w, 4),
        "s": round(load.s, 4),
        "limit": load.limit,
        "mark": load.mark,
        "resource": load.resource,
        "network": load.network,
        "stale": load.stale,
        "parts": parts,
    }


def figures(gauges: NodeGauges | None) -> dict[str, float]:
    """What a node measured, without what was not and what cannot be."""
    known = {} if gauges is None else gauges.model_dump(exclude_none=True)
    return {name: value for name, value in known.items() if amount(value)}


def amount(value: object) -> bool:
    """Whether it can be a measured amount: what cannot be is not recorded."""
    return isinstance(value, int | float) and 0 <= value <= AMOUNT_MOST


def _runs_on(record: Record, node: str) -> bool:
    return record.spec.get("node") == node and record.status.get("phase") != "exited"
