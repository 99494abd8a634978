"""Where the workers of a job meet: worker 0's address and port, told to all of them.

Worker 0 is given a port by its node; the others are ordered once it is known. They are told where it is when their
order is sent: one that is tried again learns where worker 0 is by then.
"""

from __future__ import annotations

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Record
from lepton_ai.settings import is_loopback
from lepton_ai.spec.replica import NodeReport

OWN = {"MASTER_ADDR": "address", "MASTER_PORT": "port"}
"""What worker 0's node tells it of itself, because only the node knows."""


def waits(ctx: Context, record: Record) -> bool:
    """Whether the worker is not to be ordered yet, because worker 0 has no port yet."""
    return _meets(record) and _worker(record) != 0 and place(ctx, record) is None


def environment(ctx: Context, record: Record) -> dict[str, str]:
    """What the worker is told. Worker 0's own node knows its port, and may know a better address."""
    if not _meets(record):
        return {}
    if _worker(record) == 0:
        view = ctx.views.get(str(record.spec["node"]))
        return {"MASTER_ADDR": view.report.address if view is not None and view.report is not None else "127.0.0.1"}
    found = place(ctx, record)
    return {} if found is None else {"MASTER_ADDR": found[0], "MASTER_PORT": str(found[1])}


def place(ctx: Context, record: Record) -> tuple[str, int] | None:
    """Where worker 0 of the worker's job is reached from the worker; None while that is not known."""
    first = _first(ctx, record)
    if first is None:
        return None
    status, served = first.status, first.spec["replica"].get("port")
    address, port = str(status.get("address") or ""), int(status.get("port") or 0)
    node, inner = str(first.spec["node"]), status.get("inner_address")
    if _same_machine(ctx, node, str(record.spec["node"])):
        # On one machine workers reach each other directly, each at its own ports.
        if inner:
            address, port = str(inner), int(served or port)
        elif not ctx.shared_address(node) and status.get("phase") != "exited" and not status.get("pid"):
            return None  # its port is chosen, its network is still being made
    return (address, port) if address and port else None


def last(ctx: Context, job: Record) -> tuple[str, int] | None:
    """(node, port) that worker 0 of the job had last, to be had again when it is tried again."""
    for copy in reversed(ctx.mirror.owned("replica", job.uid)):
        if _worker(copy) == 0 and copy.status.get("port"):
            return str(copy.spec["node"]), int(copy.status["port"])
    return None


def _first(ctx: Context, record: Record) -> Record | None:
    """The attempt of worker 0 that counts: the newest that was not told to end, of the same run."""
    for copy in reversed(ctx.mirror.owned("replica", str(record.owner_uid))):
        if _worker(copy) != 0 or copy.status.get("ending") or copy.spec.get("run") != record.spec.get("run"):
            continue
        ended = copy.status.get("exit") or {}
        # One that has done its work may be gone before the others were told; one that failed comes again.
        if copy.status.get("phase") != "exited" or (ended.get("code") == 0 and not ended.get("lost")):
            return copy
        return None
    return None


def groups(ctx: Context, job: Record) -> list[frozenset[str]]:
    """The sets of nodes on which the workers of a job reach each other; an empty one: any nodes.

    A worker's port is not reached from other hosts, as nothing plain leaves a host: they meet on one machine then.
    """
    nodes = {name: view.report for name, view in ctx.views.items() if view.report is not None}
    if all(is_loopback(report.address) for report in nodes.values()):
        return [frozenset()]
    found: dict[tuple[str, str], set[str]] = {}
    for name, report in nodes.items():
        found.setdefault(_machine(report) or (name, ""), set()).add(name)
    first = next((copy for copy in reversed(ctx.mirror.owned("replica", job.uid)) if _lives(copy)), None)
    sets = [frozenset(names) for _, names in sorted(found.items(), key=lambda item: min(item[1]))]
    if first is None:
        return sets
    node = str(first.spec["node"])
    return [names for names in sets if node in names] or [frozenset({node})]


def _lives(copy: Record) -> bool:
    return copy.status.get("phase") != "exited" and not copy.status.get("ending")


def _same_machine(ctx: Context, first: str, second: str) -> bool:
    if first == second:
        return True
    machines = [
        _machine(view.report) for name in (first, second) if (view := ctx.views.get(name)) and view.report is not None
    ]
    return len(machines) == 2 and machines[0] is not None and machines[0] == machines[1]


def _machine(report: NodeReport) -> tuple[str, str] | None:
    return (report.machine.id, report.machine.network) if report.machine.id else None


def _meets(record: Record) -> bool:
    return bool(record.spec.get("rendezvous"))


def _worker(record: Record) -> int:
    return int(record.spec.get("worker", 0))
