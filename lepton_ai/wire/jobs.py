"""Jobs as the public client knows them."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import JobSpec
from lepton_ai.wire import shapes
from lepton_ai.wire.record import Json, Record, environment, envs, metadata, name_of, refuse, table, whole

_NOT_YET = (
    "mounts", "storage_attachments", "reservation_config", "image_pull_secrets", "time_schedule", "segment_config",
    "user_security_context.privileged", "max_job_failure_retry",
)  # fmt: skip
_STATES = {
    "queued": "Queueing",
    "starting": "Starting",
    "running": "Running",
    "succeeded": "Completed",
    "failed": "Failed",
    "stopping": "Stopping",
    "stopped": "Stopped",
    "deleting": "Deleting",
}


@dataclass(frozen=True)
class Filter:
    """The queries of GET /jobs."""

    mode: str = "alive_only"
    text: str = ""
    states: tuple[str, ...] = ()
    node_groups: tuple[str, ...] = ()
    created_by: tuple[str, ...] = ()
    labels: str = ""

    def takes(self, job: Json) -> bool:
        head, state = job["metadata"], str(job["status"]["state"])
        if self.mode == "archive_only" or self.labels or self.created_by:
            return False  # nothing here is archived, labelled, or knows who made it
        if self.text and self.text not in head["name"] and self.text not in head["id"]:
            return False
        return not self.states or any(state.lower().startswith(wanted.lower()) for wanted in self.states)


def short(record: Record) -> Json:
    """What a job is searched by (`Filter.takes`); "own" is its state in our words."""
    own = "deleting" if record.deleting else str(record.status.get("state") or "queued")
    return {
        "metadata": {"id": record.name, "name": str(record.spec.get("title") or record.name)},
        "status": {"state": _STATES.get(own, "Starting")},
        "own": str(record.status.get("state") or ""),
    }


def shown(record: Record, spec: JobSpec) -> Json:
    """A job as the public client reads it."""
    status, template = record.status, spec.template
    own = "deleting" if record.deleting else str(status.get("state") or "queued")
    container: Json = {"command": list(template.command)}
    if template.image is not None:
        container["image"] = template.image
    value: Json = {
        "job_name": record.name,
        "state": _STATES.get(own, "Starting"),
        **{field: int(status.get(field) or 0) for field in ("ready", "active", "failed", "succeeded")},
        "creation_time": record.created_ms,
        "job_history": [],
    }
    if status.get("ended_ms"):
        # Rounded up: the client takes it as the end, exclusive, of the job's log.
        value["completion_time"] = int(status["ended_ms"]) + 1
    return {
        "metadata": metadata(record, spec.title or record.name),
        "spec": {
            **({"resource_shape": template.shape} if template.shape else {}),
            "container": container,
            "completions": spec.workers,
            "parallelism": spec.workers,
            "max_failure_retry": spec.retries,
            "envs": envs(template.env, template.secrets),
            "mounts": [],
            "image_pull_secrets": [],
            **({} if spec.ttl_s is None else {"ttl_seconds_after_finished": spec.ttl_s}),
            "stopped": spec.stopped,
        },
        "status": value,
    }


def form(body: object) -> Json:
    """Our form of a job from the public client's JSON. Raises Invalid, Unsupported."""
    name = name_of(body)
    spec = table(table(body, "the body").get("spec"), "spec")
    refuse(spec, _NOT_YET)
    container = table(spec.get("container"), "spec.container")
    if not container.get("command"):
        raise Invalid("spec.container.command is missing", hint="this release runs commands: --command 'python job.py'")
    plain, secret = environment(spec.get("envs"))
    shape = str(spec.get("resource_shape") or "cpu.small")
    workers = whole(spec.get("parallelism"), "spec.parallelism", 0) or whole(spec.get("completions"), "completions", 1)
    return {
        "name": name,
        "workers": workers,
        "retries": whole(spec.get("max_failure_retry"), "spec.max_failure_retry", 0),
        "ttl_s": None
        if spec.get("ttl_seconds_after_finished") is None
        else whole(spec["ttl_seconds_after_finished"], "spec.ttl_seconds_after_finished", 0),
        "template": {
            "command": container["command"],
            "image": container.get("image"),
            "env": plain,
            "secrets": secret,
            "shape": shape.lower(),
            "resources": shapes.resources(shape).model_dump(),
        },
    }


def stopped(body: object) -> bool:
    """What a patch of a job asks for. Raises Invalid for anything but `spec.stopped`."""
    spec = table(table(body, "the body").get("spec"), "spec")
    if not isinstance(spec.get("stopped"), bool) or len(spec) != 1:
        raise Invalid("no valid field to update", hint='a job only takes {"spec": {"stopped": true or false}}')
    return bool(spec["stopped"])
