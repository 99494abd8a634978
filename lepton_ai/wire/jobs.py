"""Jobs as the public client knows them: its LeptonJob to our form, and our job (alive or archived) to its JSON.

Filters of lists are in jobfilter.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import JobSpec
from lepton_ai.wire import container as containers
from lepton_ai.wire import queue
from lepton_ai.wire.container import Where
from lepton_ai.wire.kept import kept, put_back
from lepton_ai.wire.record import Json, Record, head, metadata, name_of, table, truth, whole

__all__ = ["CHANGEABLE", "document", "form", "name_of", "shown", "state"]
START_S_MAX = 253_402_300_799
TTL_S_MAX = 10 * 365 * 86_400
_KNOWN = (
    *containers.CONTAINER, *(item for item in containers.SIZE),
    "completions", "parallelism", "max_failure_retry", "max_job_failure_retry", "envs", "mounts",
    "storage_attachments", "image_pull_secrets", "ttl_seconds_after_finished", "intra_job_communication",
    "user_security_context.privileged", "stopped", "time_schedule.start_at", *queue.KNOWN,
)  # fmt: skip
CHANGEABLE = (
    "stopped", "retries", "job_retries", "ttl_s", "start_at_ms", "labels", "visibility", "advisory", "priority",
    "can_preempt", "preemptible",
)  # fmt: skip
"""What of a job may change after it was made; the rest is what its workers were started with."""
_STATES = {
    "scheduled": "Awaiting",
    "queued": "Queueing",
    "starting": "Starting",
    "running": "Running",
    "retrying": "PendingRetry",
    "succeeded": "Completed",
    "failed": "Failed",
    "stopping": "Stopping",
    "stopped": "Stopped",
    "deleting": "Deleting",
}
ARCHIVED = "Archived"


def state(status: Mapping[str, Any], *, deleting: bool = False) -> str:
    """What the client calls the state of a job."""
    own = "deleting" if deleting else str(status.get("state") or "queued")
    if own == "starting" and status.get("retried"):
        return "Restarting"  # the whole job, after a run that failed
    return _STATES.get(own, "Starting")


def shown(record: Record, spec: JobSpec, where: Where) -> Json:
    """A job as the public client reads it."""
    status = record.status
    value: Json = {
        **_figures(record.name, status, state(status, deleting=record.deleting), record.created_ms),
        "job_history": _history(record.name, status),
    }
    if status.get("reason"):
        value["reason"] = str(status["reason"])
    if spec.template.image is not None:
        value["image"] = where.image(spec.template)
    return {
        "metadata": metadata(record, spec.title or record.name),
        "spec": document(record.name, spec, where)["spec"],
        "status": value,
    }


def archived(record: Record, spec: JobSpec, where: Where) -> Json:
    """A job that was removed, from its record of kind "archive": how it ended is the last of its history."""
    kept_spec = record.spec
    created_ms = int(kept_spec.get("created_ms") or record.created_ms)
    status = record.status
    last = _figures(record.name, status, state(status), created_ms)
    head_ = {
        **metadata(record, spec.title or record.name),
        "created_at": created_ms,
        "last_modified_at": int(kept_spec.get("updated_ms") or record.updated_ms),
        "visibility": spec.visibility,
    }
    if spec.labels:
        head_["labels"] = dict(spec.labels)
    if spec.created_by:
        head_ |= {"created_by": spec.created_by, "owner": spec.created_by}
    value = {**last, "state": ARCHIVED, "job_history": [*_history(record.name, status), last]}
    return {"metadata": head_, "spec": document(record.name, spec, where)["spec"], "status": value}


def _figures(name: str, status: Mapping[str, Any], state_: str, created_ms: int) -> Json:
    value: Json = {
        "job_name": name,
        "state": state_,
        **{field: int(status.get(field) or 0) for field in ("ready", "active", "failed", "succeeded")},
        "creation_time": created_ms,
    }
    if status.get("ended_ms"):
        # Rounded up: the client takes it as the end, exclusive, of the job's log.
        value["completion_time"] = int(status["ended_ms"]) + 1
    return value


def _history(name: str, status: Mapping[str, Any]) -> list[Json]:
    """The runs before the one that counts now, oldest first."""
    runs = status.get("history")
    found = []
    for run in runs if isinstance(runs, list) else ():
        if isinstance(run, dict):
            began_ms = int(run.get("started_ms") or run.get("ended_ms") or 0)
            found.append(_figures(name, run, state(run), began_ms))
    return found


def document(name: str, spec: JobSpec, where: Where) -> Json:
    """What a merge patch is applied to: {"metadata", "spec"} without status."""
    template, advisory = spec.template, spec.advisory
    found: Json = {
        "container": containers.container_shown(template, advisory),
        **containers.size_shown(template, where),
        "completions": spec.workers,
        "parallelism": spec.workers,
        "max_failure_retry": spec.retries,
        "max_job_failure_retry": spec.job_retries,
        "envs": containers.environment_shown(template),
        "mounts": containers.mounts_shown(template.mounts, advisory, where),
        "image_pull_secrets": list(template.image_pull_secrets),
        "intra_job_communication": spec.rendezvous,
        "stopped": spec.stopped,
        **queue.shown(spec, template),
    }
    if spec.ttl_s is not None:
        found["ttl_seconds_after_finished"] = spec.ttl_s
    if spec.start_at_ms is not None:
        found["time_schedule"] = {"start_at": spec.start_at_ms // 1000}
    head_: Json = {"id": name, "name": spec.title or name, "visibility": spec.visibility}
    if spec.labels:
        head_["labels"] = dict(spec.labels)
    return {"metadata": head_, "spec": put_back(found, advisory)}


def form(body: object, name: str, where: Where, base: Json | None = None) -> Json:
    """Our form of a job from the public client's JSON; what that cannot say comes from `base` (our form).

    Raises Invalid, NotFound.
    """
    spec = table(table(body, "the body").get("spec"), "spec")
    asked: Json = {"name": name, **(base or {})}
    advisory = kept(spec, _KNOWN)
    size = spec if spec.get("resource_shape") or base is not None else {**spec, "resource_shape": "cpu.small"}
    template, more = containers.template_given(spec, size, where, asked.get("template"))
    box = table(spec.get("container"), "spec.container")
    _, template["ports"], rest = containers.ports_given(box, served=False, exposed=False)
    workers = _workers(spec)
    ttl_s, start_s = spec.get("ttl_seconds_after_finished"), None
    schedule = table(spec.get("time_schedule"), "spec.time_schedule")
    if schedule.get("start_at") is not None:
        start_s = whole(schedule["start_at"], "spec.time_schedule.start_at", 0, 0, START_S_MAX)
    talks = spec.get("intra_job_communication")
    return {
        **asked,
        **head(body, {key: asked[key] for key in ("labels", "visibility") if key in asked}),
        **queue.given(spec, template),
        "template": template,
        "workers": workers,
        "retries": whole(spec.get("max_failure_retry"), "spec.max_failure_retry", 0, 0, 1000),
        "job_retries": whole(spec.get("max_job_failure_retry"), "spec.max_job_failure_retry", 0, 0, 1000),
        "ttl_s": None if ttl_s is None else whole(ttl_s, "spec.ttl_seconds_after_finished", 0, 0, TTL_S_MAX),
        "start_at_ms": None if start_s is None else start_s * 1000,
        "rendezvous": truth(talks, "spec.intra_job_communication", workers > 1),
        "stopped": truth(spec.get("stopped"), "spec.stopped"),
        "advisory": advisory | more | rest,
    }


def _workers(spec: Json) -> int:
    """All workers run at once here, so both numbers say the same; the client fills one that was left out with 1."""
    both = [whole(spec.get(field), f"spec.{field}", 1, 1, 1000) for field in ("completions", "parallelism")]
    if len(set(both)) > 1 and 1 not in both:
        hint = "give both the same number: that many workers run at once"
        raise Invalid(f"spec.completions is {both[0]}, spec.parallelism {both[1]}", hint=hint)
    return max(both)
