"""Jobs: work that ends. Queueing in the order of creation, all workers at once or none, retries, and the verdict.

Owns the job's status. A worker whose replica failed is tried again as often as its job says; one whose node was lost
is tried again without counting. A job that fits nowhere now waits and lets none of those behind it overtake, unless
it could not run in the empty cell either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lepton_ai.control import replicas
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Delete, Op, Record, Update, changed
from lepton_ai.scheduler.place import place
from lepton_ai.scheduler.snapshot import Request
from lepton_ai.spec.workload import JobSpec

FINAL = frozenset({"succeeded", "failed", "stopped"})
RUNS = frozenset({"ready", "unready"})


@dataclass(slots=True)
class Worker:
    """One worker of a job: its attempts, oldest first; `live` is the one that counts while it has not ended."""

    index: int
    attempts: list[Record] = field(default_factory=list)
    live: Record | None = None
    failures: int = 0
    done: bool = False


def reconcile(ctx: Context) -> None:
    """Bring every job one step nearer to its end."""
    queue = Queue()
    records = [record for record in ctx.mirror.list("job") if not _rests(ctx, record)]
    ctx.each(records, lambda record: _one(ctx, record, queue))


def _rests(ctx: Context, record: Record) -> bool:
    """Whether it ended, nothing of it runs, and its time to live is not over: a cell remembers thousands of those."""
    known = ctx.memory.resting.get(record.uid)
    return known is not None and known[0] == record.revision and ctx.now_ms < known[1]


@dataclass(slots=True)
class Queue:
    """Who waits for room in this pass: `ahead` is the first job that nothing behind it may overtake."""

    ahead: str = ""


def _one(ctx: Context, record: Record, queue: Queue) -> None:
    state = str(record.status.get("state", "queued"))
    if record.deleting:
        _remove(ctx, record)
        return
    spec = ctx.mirror.parse(record, JobSpec)
    if state in FINAL and not (state == "stopped" and not spec.stopped):
        _after(ctx, record, spec, state)
        return
    copies = ctx.mirror.owned("replica", record.uid)
    if state == "stopped":  # started again: what ended before says nothing about this run
        status = {"state": "queued", "reason": "", "since_attempt": len(copies), "observed": record.generation}
        ctx.write(Update(record, status={**record.status, **status, "started_ms": 0, "ended_ms": 0}))
        return
    workers = _workers(ctx, spec, copies, int(record.status.get("since_attempt", 0)))
    ops: list[Op] = _superseded(ctx, workers)
    verdict, reason = _verdict(ctx, spec, workers)
    if verdict:
        ops += [replicas.ending(ctx, worker.live, reason) for worker in workers if worker.live is not None]
        ended = all(copy.status.get("phase") == "exited" or replicas.missing(ctx, copy) for copy in copies)
        state = verdict if ended else "stopping"
    else:
        starts, reason = _starts(ctx, record, spec, workers, queue)
        ops += starts
        state = _state(workers, bool(starts))
    # Together or not at all: half a gang would hold its room and wait for the other half.
    ctx.write(*ops, *changed(record, _status(ctx, record, workers, state, reason)))


# -- deciding


def _workers(ctx: Context, spec: JobSpec, copies: list[Record], since: int) -> list[Worker]:
    workers = [Worker(index) for index in range(spec.workers)]
    for copy in copies:
        index = int(copy.spec.get("worker", 0))
        if index < len(workers) and int(copy.spec.get("attempt", 0)) >= since:
            workers[index].attempts.append(copy)
    for worker in workers:
        for copy in worker.attempts:
            end = copy.status.get("exit") or {}
            if copy.status.get("phase") != "exited":
                if not copy.status.get("ending") and not replicas.missing(ctx, copy):
                    worker.live = copy
            elif copy.status.get("ending"):
                continue  # it was told to end: how it did says nothing about the work
            elif end.get("code") == 0 and not end.get("lost"):
                worker.done = True
            elif not end.get("lost"):
                worker.failures += 1
        if worker.done:
            worker.live = None
    return workers


def _superseded(ctx: Context, workers: list[Worker]) -> list[Op]:
    """Attempts that still run although another one counts (their node was thought lost and came back)."""
    return [
        replicas.ending(ctx, copy, "another attempt took its place")
        for worker in workers
        for copy in worker.attempts
        if copy.status.get("phase") not in ("exited", "unknown")
        and not copy.status.get("ending")
        and copy is not worker.live
    ]


def _verdict(ctx: Context, spec: JobSpec, workers: list[Worker]) -> tuple[str, str]:
    if spec.stopped:
        return "stopped", "stopped by its owner"
    if all(worker.done for worker in workers):
        return "succeeded", ""
    for worker in workers:
        if worker.failures > spec.retries and not worker.done:
            last = worker.attempts[-1]
            log = replicas.last_log(ctx, last)
            why = str(last.status.get("reason") or "it failed")
            tries = f" after {worker.failures} tries" if worker.failures > 1 else ""
            return "failed", f"worker {worker.index}{tries}: {why}" + (f": {log[:200]}" if log else "")
    return "", ""


def _state(workers: list[Worker], started: bool) -> str:
    live = [worker.live for worker in workers if worker.live is not None]
    if any(copy.status.get("phase") in RUNS for copy in live):
        return "running"
    return "starting" if live or started else "queued"


def _status(ctx: Context, record: Record, workers: list[Worker], state: str, reason: str) -> dict[str, Any]:
    live = [worker.live for worker in workers if worker.live is not None]
    ready = sum(copy.status.get("phase") in RUNS for copy in live)
    status = {**record.status, "state": state, "reason": reason, "observed": record.generation}
    status.update(active=len(live), ready=ready, succeeded=sum(worker.done for worker in workers))
    status["failed"] = sum(worker.failures for worker in workers)
    if (state == "running" or state in FINAL) and not status.get("started_ms"):
        first = [int(c.status.get("started_ms") or 0) for worker in workers for c in worker.attempts]
        status["started_ms"] = min((ms for ms in first if ms), default=ctx.now_ms)
    if state in FINAL:
        # Rounded up: the last line of its log lies before its end.
        status["ended_ms"] = ctx.now_ms + 1
    if state != record.status.get("state"):
        text = f"{record.status.get('state') or 'new'} -> {state}"
        ctx.event(record, "State", text + (f": {reason}" if reason else ""), warning=state == "failed")
    return status


# -- starting


def _starts(ctx: Context, record: Record, spec: JobSpec, workers: list[Worker], queue: Queue) -> tuple[list[Op], str]:
    idle = [worker for worker in workers if worker.live is None and not worker.done]
    waits = [str(w.live.status["reason"]) for w in workers if w.live is not None and w.live.status.get("reason")]
    reason = waits[0] if waits else ""
    if not idle or not ctx.all_settled:
        return [], reason
    first = not any(worker.attempts for worker in workers)
    if first and queue.ahead:
        return [], f"waits behind job {queue.ahead}"
    due = [worker for worker in idle if ctx.memory.crash.wait_ms(f"{record.uid}/0/{worker.index}", ctx.tick_ms) <= 0]
    if not due:
        return [], "a worker failed; the next try starts after a pause"
    requests = [Request(str(worker.index), spec.template.resources) for worker in due]
    plan = place(ctx.snapshot(), requests, together=first)
    unplaced = next((item for item in plan if item.node is None), None)
    if unplaced is not None and _fits_empty(ctx, requests):
        queue.ahead = queue.ahead or record.name
    if unplaced is not None and first:
        return [], unplaced.reason
    ops: list[Op] = []
    for worker, placement in zip(due, plan, strict=True):
        if placement.node is not None:
            ops.append(_creation(ctx, record, spec, worker, placement.node))
    return ops, unplaced.reason if unplaced is not None else reason


def _creation(ctx: Context, record: Record, spec: JobSpec, worker: Worker, node: str) -> Op:
    env = {
        "LEPTON_JOB_TOTAL_WORKERS": str(spec.workers),
        "LEPTON_JOB_WORKER_INDEX": str(worker.index),
        "WORLD_SIZE": str(spec.workers),
        "NODE_RANK": str(worker.index),
    }
    attempt = len(ctx.mirror.owned("replica", record.uid))
    template = spec.template
    values: dict[str, Any] = {
        "worker": worker.index,
        "attempt": attempt,
        "env": {**env, **template.env},
        "needs_port": template.port is not None or any("{port}" in part for part in template.command),
    }
    return replicas.creation(ctx, record, template, node, values)


def _fits_empty(ctx: Context, requests: list[Request]) -> bool:
    """Whether the nodes could take it if nothing else ran: only then is it worth making others wait."""
    snapshot = ctx.snapshot()
    empty = replace(snapshot, used=np.zeros_like(snapshot.used), groups={})
    return all(item.node is not None for item in place(empty, requests, together=True))


# -- after the end


def _after(ctx: Context, record: Record, spec: JobSpec, state: str) -> None:
    """A job that ended: nothing of it may run, and it goes when its time to live is over."""
    copies = ctx.mirror.owned("replica", record.uid)
    ops: list[Op] = [
        replicas.ending(ctx, copy, f"the job has {state}")
        for copy in copies
        if copy.status.get("phase") not in ("exited", "unknown") and not copy.status.get("ending")
    ]
    ended_ms = int(record.status.get("ended_ms") or 0)
    if spec.ttl_s is not None and ended_ms and ctx.now_ms >= ended_ms + spec.ttl_s * 1000:
        ops.append(Update(record, deleting=True))
    ctx.write_each(ops)
    if not ops and all(copy.status.get("phase") == "exited" for copy in copies):
        until_ms = ended_ms + spec.ttl_s * 1000 if spec.ttl_s is not None and ended_ms else math.inf
        ctx.memory.resting[record.uid] = (record.revision, until_ms)


def _remove(ctx: Context, record: Record) -> None:
    ctx.memory.resting.pop(record.uid, None)
    copies = ctx.mirror.owned("replica", record.uid)
    ops: list[Op] = [
        replicas.ending(ctx, copy, "the job is being removed")
        for copy in copies
        if copy.status.get("phase") != "exited" and not copy.status.get("ending")
    ]
    gone = [copy for copy in copies if replicas.forgotten(ctx, copy)]
    ops += [Delete(copy) for copy in gone]
    if len(gone) == len(copies):
        ctx.write(*ops, Delete(record))
        return
    status = {**record.status, "state": "deleting", "observed": record.generation}
    ctx.write_each([*ops, *changed(record, status)])
