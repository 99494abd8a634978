"""What stays of removed jobs: one record of kind "archive" each, made as the job goes, and swept in time.

Owns that kind: name = the job's id, spec = {kind, spec, uid, created_ms, updated_ms, replicas}, status = the job's
last one. The lists of jobs that the API gives of old times, and their logs, go by it.
"""

from __future__ import annotations

from typing import Any

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Create, Delete, Op, Record, Update
from lepton_ai.control.rest import ENDED

KIND = "archive"
REPLICAS, REASON = 500, 300
SHOWN = ("node", "worker", "attempt", "release", "run")
DAY_MS = 86_400_000


def archive(ctx: Context, job: Record, copies: list[Record]) -> Op:
    """What is written with the job's removal. One that was removed alive counts as stopped."""
    status = dict(job.status)
    if status.get("state") not in ENDED:
        status.update(state="stopped", reason="removed before it had ended", ended_ms=ctx.now_ms + 1, active=0, ready=0)
    spec: dict[str, Any] = {
        "kind": job.kind,
        "spec": job.spec,
        "uid": job.uid,
        "created_ms": job.created_ms,
        "updated_ms": job.updated_ms,
        "replicas": [_replica(copy) for copy in copies[-REPLICAS:]],
    }
    before = ctx.mirror.find(job.workspace, KIND, job.name)  # an id may have been used before, and be gone since
    if before is not None:
        return Update(before, spec, status)
    return Create(job.workspace, KIND, job.name, spec, status, None, ctx.services.new_uid())


def sweep(ctx: Context) -> None:
    """Now and then: archives that are too old, or too many in their workspace, go. Never all are read at once."""
    memory, options = ctx.memory, ctx.options
    if memory.swept_ms is not None and ctx.tick_ms - memory.swept_ms < options.archive_s * 1000:
        return
    limit = options.max_removed_per_pass
    horizon_ms = ctx.now_ms - options.archive_days * DAY_MS
    gone = [item for item in ctx.mirror.oldest(KIND, limit) if item.created_ms < horizon_ms]
    if len(gone) < limit:
        for workspace, count in sorted(ctx.mirror.counts(KIND).items()):
            over = count - options.archive_count
            if over > 0:
                gone += ctx.mirror.oldest(KIND, min(over, limit), workspace)
    unique = {item.uid: item for item in gone}
    ctx.write_each(Delete(item) for item in unique.values())
    if len(unique) < limit:  # else there may be more: the next pass goes on
        memory.swept_ms = ctx.tick_ms


def _replica(copy: Record) -> dict[str, Any]:
    spec = {key: copy.spec[key] for key in SHOWN if key in copy.spec}
    status = {key: value for key, value in copy.status.items() if key != "last_log"}  # its log is archived by itself
    status["reason"] = str(status.get("reason", ""))[:REASON]
    return {"name": copy.name, "uid": copy.uid, "spec": spec, "status": status}
