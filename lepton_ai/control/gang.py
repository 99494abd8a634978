"""The workers of a job: which of them start now, where, and why not yet. All of a run at once, or none.

So two gangs never hold half of what each needs. In which order room is offered is `waiting`; what a worker's end
means for its job is `jobs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lepton_ai.control import rebalance, rendezvous, replicas
from lepton_ai.control.asks import ask, company
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Op, Record
from lepton_ai.control.waiting import Line, Room
from lepton_ai.scheduler.place import Placement, place
from lepton_ai.scheduler.snapshot import Request, Snapshot
from lepton_ai.spec.workload import JobSpec


@dataclass(slots=True)
class Worker:
    """One worker of a job: its attempts, oldest first; `live` is the one that counts while it has not ended."""

    index: int
    attempts: list[Record] = field(default_factory=list)
    live: Record | None = None
    failures: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Starts:
    """New replicas, and what the job waits for. `paused`: not for room, but because something failed a moment ago.

    `room` is what follows where none was found.
    """

    ops: tuple[Op, ...] = ()
    reason: str = ""
    paused: bool = False
    room: Room | None = None


def starts(ctx: Context, record: Record, spec: JobSpec, workers: list[Worker], line: Line, run: int) -> Starts:
    """The workers that start in this pass."""
    idle = [worker for worker in workers if worker.live is None and not worker.done]
    waits = [str(w.live.status["reason"]) for w in workers if w.live is not None and w.live.status.get("reason")]
    reason = waits[0] if waits else ""
    if not idle or not ctx.all_settled:
        return Starts(reason=reason)
    first = not any(worker.attempts for worker in workers)
    if any(_leaves(ctx, worker) for worker in idle):  # what it writes down at its end is what it begins with
        return Starts(reason="a worker moves to another node: it starts there when it has stopped here")
    due = [worker for worker in idle if ctx.memory.crash.wait_ms(f"{record.uid}/0/{worker.index}", ctx.tick_ms) <= 0]
    if not due or (first and len(due) < len(idle)):
        return Starts(reason="a worker failed; the next try starts after a pause", paused=True)
    claimed = bool(record.status.get("claim"))
    if first and not claimed and line.spent(record, spec):
        return Starts(reason=line.behind(record))
    line.release(record)
    before = rendezvous.last(ctx, record) if spec.rendezvous else None
    one = ask(ctx, record, spec, spec.template, "")
    requests = [
        replace(
            one,
            uid=str(worker.index),
            prefer=before[0] if before is not None and worker.index == 0 else _destination(worker),
        )
        for worker in due
    ]
    snapshot = line.snapshot(company(ctx, one))
    choices = _choices(ctx, record, spec, requests)
    if first and line.hopeless(record, spec, snapshot, choices):
        return Starts(reason=line.behind(record))
    plan = _plan(snapshot, choices, requests, first)
    unplaced = next((item for item in plan if item.node is None), None)
    if unplaced is not None and first:
        room = line.room(record, spec, snapshot, choices, unplaced.reason)
        return Starts(reason=room.reason, room=room)
    ops: list[Op] = []
    for worker, placement in zip(due, plan, strict=True):
        if placement.node is not None:
            again = before[1] if before is not None and before[0] == placement.node else None
            values = {"run": run, "again": again, "devices": placement.devices}
            ops.append(_creation(ctx, record, spec, worker, placement.node, values))
    if unplaced is None:
        return Starts(tuple(ops), reason)
    if ops:  # for the others room is looked for in the next pass, when those that start now are known
        return Starts(tuple(ops), line.words(record, unplaced.reason))
    room = line.room(record, spec, snapshot, choices, unplaced.reason)
    return Starts((), room.reason, room=room)


def _choices(ctx: Context, record: Record, spec: JobSpec, requests: list[Request]) -> list[list[Request]]:
    """The ways in which they may be placed: if they meet, on nodes between which they can."""
    if not (spec.rendezvous and spec.workers > 1):
        return [requests]
    found = []
    for names in rendezvous.groups(ctx, record):
        wanted = [item for request in requests if (item := _within(request, names)) is not None]
        if len(wanted) == len(requests):
            found.append(wanted)
    return found


def _plan(
    snapshot: Snapshot, choices: list[list[Request]], requests: list[Request], together: bool
) -> tuple[Placement, ...]:
    """Where they go, in the first of the ways in which all find room."""
    plans = []
    for wanted in choices:
        plans.append(place(snapshot, wanted, together=together))
        if all(item.node is not None for item in plans[-1]):
            return plans[-1]
    if len(plans) == 1 and not (plans[0][0].request.nodes - requests[0].nodes):
        return plans[0]
    why = "its workers meet on one machine, and none has room for all"
    why += f": {plans[0][0].reason}" if len(plans) == 1 else ""
    return tuple(Placement(request, None, why) for request in requests)


def _within(request: Request, names: frozenset[str]) -> Request | None:
    """`request` on these nodes only (empty: any); None when it may go to none of them."""
    if not names:
        return request
    nodes = request.nodes & names if request.nodes else names
    return replace(request, nodes=nodes) if nodes else None


def _leaves(ctx: Context, worker: Worker) -> bool:
    """Whether the worker is on a move and may still run where it was."""
    return any(
        rebalance.move_of(copy) and copy.status.get("phase") != "exited" and not replicas.missing(ctx, copy)
        for copy in worker.attempts
    )


def _destination(worker: Worker) -> str:
    """Where the worker was on its way to when it was stopped; "" when it was on no move."""
    move = rebalance.move_of(worker.attempts[-1]) if worker.attempts else None
    return str(move["to"]) if move else ""


def _creation(ctx: Context, record: Record, spec: JobSpec, worker: Worker, node: str, values: dict[str, Any]) -> Op:
    template, again = spec.template, values.pop("again")
    attempts = [int(copy.spec.get("attempt", 0)) for copy in ctx.mirror.owned("replica", record.uid)]
    order: dict[str, Any] = {
        "env": {**_environment(record, spec, worker.index), **template.env},
        "needs_port": template.port is not None or any("{port}" in part for part in template.command),
    }
    if spec.rendezvous and worker.index == 0:
        mine = {**template.env, **template.secrets}
        own = {name: what for name, what in rendezvous.OWN.items() if name not in mine}
        order.update(needs_port=True, prefer_port=again, own=own)
    if spec.rendezvous:
        values["rendezvous"] = True
    if _destination(worker):
        last = worker.attempts[-1]
        values.update(moved=rebalance.origin(last, ctx.now_ms), why=rebalance.why(last))
    values.update(worker=worker.index, attempt=1 + max(attempts, default=-1), order=order)
    return replicas.creation(ctx, record, template, node, values)


def _environment(record: Record, spec: JobSpec, index: int) -> dict[str, str]:
    """Who the worker is among how many. Where they meet is told when it is ordered (see `rendezvous`)."""
    env = {
        "LEPTON_JOB_TOTAL_WORKERS": str(spec.workers),
        "LEPTON_JOB_WORKER_INDEX": str(index),
        "LEPTON_JOB_SERVICE_PREFIX": record.name,
        "LEPTON_SUBDOMAIN": f"{record.name}-svc",
        "WORLD_SIZE": str(spec.workers),
        "NODE_RANK": str(index),
    }
    kind = spec.template.resources.accelerator_type
    return {**env, "LEPTON_RESOURCE_ACCELERATOR_TYPE": kind} if kind else env
