"""Our own JSON of deployments, jobs, replicas and nodes: what `.../x/` answers and the client reads.

Pure functions of records. The public client's JSON is `wire`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lepton_ai.api.cell import Cell
from lepton_ai.control.machines import shown
from lepton_ai.scheduler.load import Load
from lepton_ai.spec.container import Owned
from lepton_ai.spec.replica import Exit
from lepton_ai.spec.workload import DeploymentSpec, JobSpec, ReleaseSpec, Resources, Template
from lepton_ai.store import Record
from lepton_ai.telemetry import Event

ENDED = frozenset({"succeeded", "failed", "stopped"})
Json = dict[str, Any]


def deployment(cell: Cell, record: Record) -> Json:
    """A deployment. `spec` is the form it could be asked for with; tokens are never shown."""
    spec, status = cell.parsed.deployment(record), record.status
    fresh = not status.get("state")
    state = "deleting" if record.deleting else str(status.get("state") or "starting")
    return {
        "kind": "pod" if spec.pod else "deployment",
        "name": record.name,
        "uid": record.uid,
        "generation": record.generation,
        "observed": int(status.get("observed", 0)),
        "release": spec.release,
        "serving": int(status.get("serving", 0)),
        "state": state,
        "reason": "recorded; the control loop has not looked at it yet" if fresh else str(status.get("reason", "")),
        "warning": str(status.get("warning", "")),
        "wanted": int(status.get("wanted", spec.replicas.min)),
        "needed": int(status.get("needed", 0)),
        "ready": int(status.get("ready", 0)),
        "scaled": status.get("scaled") or {},
        "start_s": status.get("start_s"),
        "rollout": status.get("rollout") or {},
        "model": spec.template.model,
        "url": "" if spec.pod else cell.url(record.workspace, record.name),
        "image": image(cell, spec.template),
        "protected": spec.tokens is not None,
        **_owned(spec),
        "price_per_hour": cell.prices.per_hour(spec.template.resources, int(status.get("wanted", spec.replicas.min))),
        "currency": cell.prices.currency,
        "created_ms": record.created_ms,
        "updated_ms": record.updated_ms,
        "spec": form(record.name, spec),
    }


def form(name: str, spec: DeploymentSpec) -> Json:
    """A deployment in the form in which it is asked for, without its tokens."""
    left_out = {"tokens", "token_secrets", "release", "created_by", "allowlist"}
    return {"name": name, **spec.model_dump(mode="json", exclude=left_out), "allowlist": list(spec.allowlist.networks)}


def image(cell: Cell, template: Template) -> str:
    """Whether the image that is asked for is what runs: "" (there is none), "advisory" or "used"."""
    if template.image is None:
        return ""
    return "advisory" if cell.settings.runtime.startswith("process://") else "used"


def _owned(spec: Owned) -> Json:
    return {
        "labels": dict(spec.labels),
        "visibility": spec.visibility,
        "created_by": spec.created_by,
        "priority": spec.rank,
        "can_preempt": bool(spec.can_preempt),
        "preemptible": bool(spec.preemptible),
        "advisory": dict(spec.advisory),
    }


def release(spec: ReleaseSpec, created_ms: int) -> Json:
    template = spec.template.model_dump(mode="json")
    return {
        "number": spec.number, "note": spec.note, "created_ms": created_ms, "model": spec.template.model,
        "template": template,
    }  # fmt: skip


def job(cell: Cell, record: Record) -> Json:
    spec, status = JobSpec.model_validate(record.spec), record.status
    fresh = not status.get("state")
    return {
        "kind": "job",
        "name": record.name,
        "uid": record.uid,
        "title": spec.title or record.name,
        "generation": record.generation,
        "observed": int(status.get("observed", 0)),
        "state": "deleting" if record.deleting else str(status.get("state") or "queued"),
        "reason": "recorded; the control loop has not looked at it yet" if fresh else str(status.get("reason", "")),
        "workers": spec.workers,
        "retries": spec.retries,
        "job_retries": spec.job_retries,
        "start_at_ms": spec.start_at_ms,
        "rendezvous": spec.rendezvous,
        "checkpoint": spec.checkpoint,
        "ttl_s": spec.ttl_s,
        "stopped": spec.stopped,
        "image": image(cell, spec.template),
        **_owned(spec),
        **{field: int(status.get(field) or 0) for field in ("active", "ready", "failed", "succeeded")},
        "started_ms": int(status.get("started_ms") or 0),
        "ended_ms": int(status.get("ended_ms") or 0),
        "created_ms": record.created_ms,
        "updated_ms": record.updated_ms,
        "template": spec.template.model_dump(mode="json"),
    }


def has_ended(record: Record) -> bool:
    """Whether a job has ended, however."""
    return record.status.get("state") in ENDED


def replica(record: Record) -> Json:
    spec, status = record.spec.get("replica", {}), record.status
    end = status.get("exit")
    return {
        "kind": "replica",
        "name": record.name,
        "uid": record.uid,
        "owner_kind": spec.get("owner_kind"),
        "owner": spec.get("owner"),
        "release": int(record.spec.get("release") or 0),
        "worker": int(record.spec.get("worker") or 0),
        "attempt": int(record.spec.get("attempt") or 0),
        "node": record.spec.get("node"),
        "why": str(record.spec.get("why", "")),
        "phase": str(status.get("phase") or "pending"),
        "reason": str(status.get("reason", "")),
        "ending": status.get("ending") or "",
        "address": status.get("address"),
        "port": status.get("port"),
        "pid": status.get("pid"),
        "started_ms": int(status.get("started_ms") or 0),
        "ready_ms": int(status.get("ready_ms") or 0),
        "exit": None if not end else {**end, "text": _ended(end)},
        "last_log": str(status.get("last_log", "")),
        "limits": str(status.get("limits", "none")),
        "isolation": str(status.get("isolation", "none")),
        "image": str(status.get("image", "")),
        "ports": list(status.get("ports") or ()),
        "resources": spec.get("resources", {}),
        "created_ms": record.created_ms,
    }


def nodes(
    records: Iterable[Record],
    replicas: Iterable[Record],
    loads: Mapping[str, Load],
    reserved: Mapping[str, str] | None = None,
) -> list[Json]:
    """Nodes by name, each with what `replicas` (of the whole cell) hold of it, and its load where that is known.

    `reserved`: under which name each of them is.
    """
    held: dict[str, list[Record]] = defaultdict(list)
    for item in replicas:
        if item.status.get("phase") != "exited":
            held[str(item.spec.get("node"))].append(item)
    ordered = sorted(records, key=lambda record: record.name)
    lent = reserved or {}
    return [_node(record, held[record.name], loads.get(record.name), lent.get(record.name, "")) for record in ordered]


def _node(record: Record, here: Sequence[Record], load: Load | None, reservation: str) -> Json:
    status = record.status
    capacity = Resources.model_validate(status.get("capacity") or record.spec.get("capacity") or {})
    held = [Resources.model_validate(item.spec.get("replica", {}).get("resources") or {}) for item in here]
    unschedulable = bool(record.spec.get("unschedulable"))
    state = str(status.get("state") or "unreachable")
    if unschedulable and state == "ready":
        state = "draining"
    fresh = not status.get("state")
    return {
        "kind": "node",
        "name": record.name,
        "state": state,
        "reason": "nothing was heard of it yet" if fresh else str(status.get("reason", "")),
        "unschedulable": unschedulable,
        "labels": dict(record.spec.get("labels") or {}),
        "taints": sorted(record.spec.get("taints") or ()),
        "reservation": reservation,
        "replicas": len(here),
        "cpu_milli": capacity.cpu_milli,
        "cpu_placed_milli": sum(item.cpu_milli for item in held),
        "cpu_used_milli": int(status.get("cpu_used_milli") or 0),
        "memory_mib": capacity.memory_mib,
        "memory_placed_mib": sum(item.memory_mib for item in held),
        "memory_used_mib": int(status.get("memory_used_mib") or 0),
        "accelerator_milli": capacity.accelerator_milli,
        "accelerator_placed_milli": sum(item.accelerator_milli for item in held),
        "accelerator_type": capacity.accelerator_type,
        "runtime": str(status.get("runtime") or "process"),
        "isolation": str(status.get("isolation") or "none"),
        "machine": status.get("machine") or {},
        "disk_free_mib": int(status.get("disk_free_mib") or 0),
        "load": None if state == "unreachable" else shown(load) if load is not None else status.get("load"),
        "gauges": {} if state == "unreachable" else status.get("gauges") or {},
        "address": record.spec.get("address"),
        "port": record.spec.get("port"),
        "boot_id": status.get("boot_id"),
        "seen_ms": int(status.get("seen_ms") or 0),
        "created_ms": record.created_ms,
    }


def event(item: Event) -> Json:
    return asdict(item)


def _ended(end: Json) -> str:
    return Exit.model_validate({key: value for key, value in end.items() if key in Exit.model_fields}).describe()
