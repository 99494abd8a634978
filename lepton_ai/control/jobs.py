"""Jobs: work that ends. Its line (see `waiting`), all workers at once or none, retries, giving way, and the verdict.

Owns the job's status. A worker whose replica failed is tried again as often as its job says; one whose node was lost
is tried again without counting. When a worker has failed for good, all of them are ended and the whole job runs
again, as often as it says. One that gave way to work of higher priority waits anew with all its workers, and that
counts as no failure. Replicas of a run carry its number; only those of the last one count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lepton_ai.control import replicas
from lepton_ai.control.archives import archive
from lepton_ai.control.context import Context
from lepton_ai.control.gang import Worker, starts
from lepton_ai.control.mirror import Delete, Op, Record, Update, changed
from lepton_ai.control.rest import ENDED, due_ms, finished
from lepton_ai.control.waiting import Line
from lepton_ai.spec.workload import JobSpec

RUNS = frozenset({"ready", "unready"})
TOLD = ("state", "reason", "started_ms", "ended_ms", "succeeded", "failed")


@dataclass(slots=True)
class Job:
    """One job as a pass sees it. `run` is the number of the run that counts, `workers` are those of it."""

    ctx: Context
    record: Record
    spec: JobSpec
    copies: list[Record]
    run: int
    workers: list[Worker] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing of it may run any more, as far as can be known."""
        return all(copy.status.get("phase") == "exited" or replicas.missing(self.ctx, copy) for copy in self.copies)


def reconcile(ctx: Context, line: Line) -> None:
    """Bring every job one step nearer to its end, but for those that wait in `line`: see `take`."""
    there = [record for record in ctx.mirror.list("job") if record.uid not in line.waiting]
    ctx.each(there, lambda record: take(ctx, record, line))
    over = ctx.mirror.rest.over(ctx.now_ms, ctx.options.max_removed_per_pass)
    ctx.write_each(Update(record, deleting=True) for record in ctx.mirror.read(*over) if _is_over(ctx, record))


def take(ctx: Context, record: Record, line: Line) -> None:
    """One job; at its turn, when it waits in `line`."""
    if record.deleting:
        _remove(ctx, record)
        return
    if finished(record):
        _after(ctx, record)
        return
    spec = ctx.mirror.parse(record, JobSpec)
    job = Job(ctx, record, spec, ctx.mirror.owned("replica", record.uid), int(record.status.get("runs", 1)))
    state = str(record.status.get("state", ""))
    if state == "stopped":  # started again: what ended before says nothing about this run
        state = "scheduled" if ctx.now_ms < (spec.start_at_ms or 0) else "queued"
        ctx.write(Update(record, status=_next_run(job, state, "", retried=0)))
        return
    job.workers = _workers(job)
    if state in ("", "scheduled") and not spec.stopped and ctx.now_ms < (spec.start_at_ms or 0):
        reason = f"starts at {datetime.fromtimestamp((spec.start_at_ms or 0) / 1000, UTC).isoformat()}"
        ctx.write(*changed(record, _status(job, "scheduled", reason)))
        return
    ops: list[Op] = [*_superseded(job), *_trim(job)]
    verdict, reason = _verdict(job)
    room = None
    if not verdict and (why := _gave_way(job)):
        ops += [replicas.ending(ctx, worker.live, why) for worker in job.workers if worker.live is not None]
        status = _queued_again(job, why)
    elif not verdict:
        found = starts(ctx, record, spec, job.workers, line, job.run)
        ops, room = [*ops, *found.ops], found.room
        status = _status(job, _state(job, found.paused, bool(found.ops)), found.reason)
        if room is not None and room.claim:
            ops, status = [*ops, *room.ops], {**status, "claim": room.claim}
        elif not ctx.all_settled and record.status.get("claim"):
            status["claim"] = record.status["claim"]
    else:
        ops += [replicas.ending(ctx, worker.live, reason) for worker in job.workers if worker.live is not None]
        status = _ending(job, verdict, reason)
    # Together or not at all: half a gang would hold its room and wait for the other half.
    ctx.write(*ops, *changed(record, status))
    if room is not None:
        room.tell(ctx)


# -- deciding


def _workers(job: Job) -> list[Worker]:
    workers = [Worker(index) for index in range(job.spec.workers)]
    for copy in job.copies:
        index = int(copy.spec.get("worker", 0))
        if index < len(workers) and _counts(job, copy):
            workers[index].attempts.append(copy)
    for worker in workers:
        for copy in worker.attempts:
            end = copy.status.get("exit") or {}
            if copy.status.get("phase") != "exited":
                if not copy.status.get("ending") and not replicas.missing(job.ctx, copy):
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


def _counts(job: Job, copy: Record) -> bool:
    """Whether the replica is of the run that counts. Those of an earlier release carry no number."""
    if "run" in copy.spec:
        return bool(copy.spec["run"] == job.run)
    return job.run == 1 and int(copy.spec.get("attempt", 0)) >= int(job.record.status.get("since_attempt", 0))


def _superseded(job: Job) -> list[Op]:
    """Attempts that still run although another one counts (their node was thought lost and came back)."""
    live = {worker.live.uid for worker in job.workers if worker.live is not None}
    return [
        replicas.ending(job.ctx, copy, "another attempt took its place")
        for copy in job.copies
        if copy.status.get("phase") not in ("exited", "unknown")
        and not copy.status.get("ending")
        and copy.uid not in live
    ]


def _trim(job: Job) -> list[Op]:
    """Records of what ended in earlier runs, but for the last of them."""
    old = [copy for copy in job.copies if copy.status.get("phase") == "exited" and not _counts(job, copy)]
    kept = job.ctx.options.kept_attempts
    return replicas.deletions(job.ctx, old[:-kept]) if len(old) > kept else []


def _verdict(job: Job) -> tuple[str, str]:
    """What becomes of it and why; "" while it goes on."""
    if job.workers and all(worker.done for worker in job.workers):
        return "succeeded", ""
    if job.spec.stopped:
        return "stopped", "stopped by its owner"
    for worker in job.workers:
        if worker.failures <= job.spec.retries or worker.done:
            continue
        last = worker.attempts[-1]
        log = replicas.last_log(job.ctx, last)
        why = str(last.status.get("reason") or "it failed")
        tries = f" after {worker.failures} tries" if worker.failures > 1 else ""
        reason = f"worker {worker.index}{tries}: {why}" + (f": {log[:200]}" if log else "")
        retried = int(job.record.status.get("retried", 0))
        return ("retrying" if retried < job.spec.job_retries else "failed"), reason
    return "", ""


def _gave_way(job: Job) -> str:
    """Why its run is over although nothing of it failed: something of it gave way to others. "" when nothing did."""
    marks = (copy.status.get("preempted") for worker in job.workers for copy in worker.attempts)
    return next((str(mark.get("why") or "it gave way") for mark in marks if isinstance(mark, dict)), "")


def _queued_again(job: Job, why: str) -> dict[str, Any]:
    """The status of a job that gave way: while its workers end, and when it waits with none."""
    if not job.ended:
        return _status(job, "queued", f"{why}: it waits anew when its workers have ended")
    retried = int(job.record.status.get("retried", 0))
    _note(job, "queued", why)
    status = _next_run(job, "queued", why, retried=retried, told={"state": "stopped", "reason": why})
    return {**status, "gave_way": why}


def _ending(job: Job, verdict: str, reason: str) -> dict[str, Any]:
    """The status once it is known what becomes of the job, while its workers end and when they have."""
    if verdict != "retrying":
        return _status(job, verdict if job.ended else "stopping", reason)
    retried = int(job.record.status.get("retried", 0)) + 1
    text = f"run {retried + 1} of {job.spec.job_retries + 1} follows; {reason}"
    if not job.ended:
        return _status(job, verdict, text)
    _note(job, verdict, text)
    return _next_run(job, verdict, text, retried=retried, told={"state": "failed", "reason": reason})


def _next_run(job: Job, state: str, reason: str, *, retried: int, told: dict[str, Any] | None = None) -> dict[str, Any]:
    """The status in which the job runs anew; what became of this run (`told`: as far as it is news) is history."""
    before = job.record.status
    past = {"run": job.run, **{key: before.get(key) for key in TOLD}, **(told or {})}
    past["ended_ms"] = before.get("ended_ms") or job.ctx.now_ms + 1
    history = [*before.get("history", ()), past][-job.ctx.options.kept_runs :]
    blank = dict.fromkeys(("active", "ready", "failed", "succeeded", "started_ms", "ended_ms"), 0)
    found = {"state": state, "reason": reason, "runs": job.run + 1, "retried": retried, "history": history}
    kept = {key: value for key, value in before.items() if key != "claim"}
    return {**kept, **blank, **found, "observed": job.record.generation}


# -- status


def _state(job: Job, paused: bool, started: bool) -> str:
    live = [worker.live for worker in job.workers if worker.live is not None]
    if any(copy.status.get("phase") in RUNS for copy in live):
        return "running"
    if live or started:
        return "starting"
    return "retrying" if paused else "queued"


def _status(job: Job, state: str, reason: str) -> dict[str, Any]:
    before, workers = job.record.status, job.workers
    if state == "queued" and before.get("gave_way"):
        reason = f"{before['gave_way']}; {reason}"
    live = [worker.live for worker in workers if worker.live is not None]
    ready = sum(copy.status.get("phase") in RUNS for copy in live)
    status = {**before, "state": state, "reason": reason, "observed": job.record.generation, "runs": job.run}
    status.pop("claim", None)
    if state != "queued":
        status.pop("gave_way", None)
    status.update(active=len(live), ready=ready, succeeded=sum(worker.done for worker in workers))
    status["failed"] = sum(worker.failures for worker in workers)
    if (state == "running" or state in ENDED) and not status.get("started_ms"):
        first = [int(copy.status.get("started_ms") or 0) for worker in workers for copy in worker.attempts]
        status["started_ms"] = min((ms for ms in first if ms), default=job.ctx.now_ms)
    if state in ENDED:
        # Rounded up: the last line of its log lies before its end.
        status["ended_ms"] = job.ctx.now_ms + 1
    _note(job, state, reason)
    return status


def _note(job: Job, state: str, reason: str) -> None:
    before = job.record.status.get("state")
    if state != before:
        text = f"{before or 'new'} -> {state}" + (f": {reason}" if reason else "")
        job.ctx.event(job.record, "State", text, warning=state in ("failed", "retrying"))


# -- after the end


def _after(ctx: Context, record: Record) -> None:
    """A job that ended while something of it may still run (else it rests): that ends too."""
    ops: list[Op] = [
        replicas.ending(ctx, copy, f"the job has {record.status['state']}")
        for copy in ctx.mirror.owned("replica", record.uid)
        if copy.status.get("phase") not in ("exited", "unknown") and not copy.status.get("ending")
    ]
    if _is_over(ctx, record):
        ops.append(Update(record, deleting=True))
    ctx.write_each(ops)


def _is_over(ctx: Context, record: Record) -> bool:
    """Whether the job has ended and its time to live is over."""
    due = due_ms(record)
    return finished(record) and due is not None and due <= ctx.now_ms


def _remove(ctx: Context, record: Record) -> None:
    """End what runs, wait until the nodes have let go of it, then put the job away: all in one transaction."""
    copies = ctx.mirror.owned("replica", record.uid)
    ops: list[Op] = [
        replicas.ending(ctx, copy, "the job is being removed")
        for copy in copies
        if copy.status.get("phase") != "exited" and not copy.status.get("ending")
    ]
    waits = [copy for copy in copies if not replicas.forgotten(ctx, copy)]
    if not waits:
        ctx.write(*(Delete(copy) for copy in copies), archive(ctx, record, copies), Delete(record))
        ctx.event(record, "Removed", "nothing of it runs any more")
        return
    status = {**record.status, "observed": record.generation}
    if status.get("state") not in ENDED:
        reason = f"waits for its replicas on {', '.join(sorted({str(copy.spec['node']) for copy in waits}))}"
        status.update(state="deleting", reason=reason)
    ctx.write_each([*ops, *changed(record, status)])
