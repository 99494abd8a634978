"""Endpoints as the public client knows them: its Deployment to our form, and our deployment to its JSON."""

from __future__ import annotations

import math
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import DeploymentSpec
from lepton_ai.wire import shapes
from lepton_ai.wire.record import Json, Record, environment, envs, metadata, name_of, refuse, rows, table, whole

__all__ = ["document", "form", "name_of", "shown"]
HIDDEN = "***"
"""What stands where a token's text was; sent back, it means: as it is."""
_NOT_YET = (
    "mounts", "storage_attachments", "reservation_config", "is_pod", "image_pull_secrets", "auth_config.ip_allowlist",
    "resource_requirement.host_network", "resource_requirement.accelerator_num", "user_security_context.privileged",
    "load_balance_config.maglev", "health.readiness.require_approval",
)  # fmt: skip
# (state, phase): a state "Not Ready" without a phase would count as stopped already.
_STATES: dict[str, tuple[str, str | None]] = {
    "starting": ("Starting", None),
    "ready": ("Ready", None),
    "updating": ("Updating", None),
    "degraded": ("Ready", None),
    "waiting": ("Not Ready", "Waiting"),
    "idle": ("Ready", "Idle"),
    "stopped": ("Not Ready", "Stopped"),
    "failed": ("Error", None),
    "deleting": ("Deleting", None),
}


def shown(record: Record, spec: DeploymentSpec, url: str) -> Json:
    """A deployment as the public client reads it."""
    status = record.status
    ready = int(status.get("ready", 0))
    own = "deleting" if record.deleting else str(status.get("state") or "starting")
    state, phase = _STATES.get(own, ("Not Ready", own))
    if own == "degraded" and not ready:
        state, phase = "Not Ready", "Degraded"
    if own == "stopped" and ready:
        phase = "Stopping"
    value: Json = {
        "state": state,
        "endpoint": {"internal_endpoint": url, "external_endpoint": url},
        "ready_replicas": ready,
        "autoscaler_status": {"desired_replicas": int(status.get("wanted", spec.replicas.min))},
    }
    if phase is not None:
        value["phase"] = phase
    return {"metadata": metadata(record), "spec": document(record.name, spec)["spec"], "status": value}


def document(name: str, spec: DeploymentSpec) -> Json:
    """What a merge patch is applied to: {"metadata", "spec"} without status."""
    template = spec.template
    container: Json = {"command": list(template.command)}
    if template.image is not None:
        container["image"] = template.image
    if template.port is not None:
        container["ports"] = [{"container_port": template.port, "protocol": "TCP"}]
    size: Json = {"min_replicas": spec.replicas.min, "max_replicas": spec.replicas.max}
    if template.shape is not None:
        size["resource_shape"] = template.shape
    else:
        size |= {"cpu": template.resources.cpu_milli / 1000, "memory": template.resources.memory_mib}
    return {
        "metadata": {"id": name, "name": name},
        "spec": {
            "container": container,
            "resource_requirement": size,
            "auto_scaler": {"scale_down": {"no_traffic_timeout": spec.idle_timeout_s or 0}},
            "api_tokens": [{"value": HIDDEN} for _ in spec.tokens or ()],
            "envs": envs(template.env, template.secrets),
        },
    }


def form(body: object, name: str, base: Json | None = None) -> Json:
    """Our form of a deployment from the public client's JSON; what that does not say comes from `base` (our form).

    Raises Invalid, Unsupported.
    """
    spec = table(table(body, "the body").get("spec"), "spec")
    refuse(spec, _NOT_YET)
    asked: Json = dict(base or {"name": name})
    template: Json = dict(asked.get("template") or {})
    _container(template, table(spec.get("container"), "spec.container"), fresh=base is None)
    size = table(spec.get("resource_requirement"), "spec.resource_requirement")
    _resources(template, size)
    if spec.get("envs") is not None or base is None:
        template["env"], template["secrets"] = environment(spec.get("envs"))
    if spec.get("ingress_timeout_seconds") is not None:
        template["request_timeout_s"] = whole(spec["ingress_timeout_seconds"], "spec.ingress_timeout_seconds", 60)
    asked["template"] = template
    asked["replicas"] = _replicas(size)
    scaler = table(spec.get("auto_scaler"), "spec.auto_scaler")
    down = table(scaler.get("scale_down"), "spec.auto_scaler.scale_down")
    asked["idle_timeout_s"] = whole(down.get("no_traffic_timeout"), "no_traffic_timeout", 0) or None
    asked["tokens"] = _tokens(spec)
    return asked


def _container(template: Json, container: Json, *, fresh: bool) -> None:
    command = container.get("command")
    if fresh and not command:
        hint = "this release runs commands: --container-command 'python -m http.server $PORT'"
        raise Invalid("spec.container.command is missing", hint=hint)
    if command:
        template["command"] = command
    template["image"] = container.get("image")
    ports = rows(container.get("ports"), "spec.container.ports")
    if len(ports) > 1:
        raise Invalid("an endpoint has one port here", hint="give one container port")
    template["port"] = whole(ports[0].get("container_port"), "container_port", 0) if ports else None


def _resources(template: Json, size: Json) -> None:
    shape = size.get("resource_shape")
    if shape is not None:
        template["shape"] = str(shape).lower()
        template["resources"] = shapes.resources(str(shape)).model_dump()
        return
    cpu, memory = size.get("cpu"), size.get("memory")
    if cpu is None and memory is None:
        return
    template["shape"] = None
    resources: Json = dict(template.get("resources") or {})
    if cpu is not None:
        if isinstance(cpu, bool) or not isinstance(cpu, int | float) or not 0 < cpu < 10_000:
            raise Invalid(f"spec.resource_requirement.cpu is {str(cpu)[:40]!r}, not a number of cores", hint="e.g. 0.5")
        resources["cpu_milli"] = max(1, math.ceil(cpu * 1000 - 1e-6))
    if memory is not None:
        resources["memory_mib"] = whole(memory, "spec.resource_requirement.memory", 256)
    template["resources"] = resources


def _replicas(size: Json) -> Json:
    low = whole(size.get("min_replicas"), "spec.resource_requirement.min_replicas", 1)
    high = whole(size.get("max_replicas"), "spec.resource_requirement.max_replicas", max(1, low))
    # Raising only the minimum raises the maximum with it: a deployment with min > max would not parse.
    return {"min": low, "max": max(1, low, high)}


def _tokens(spec: Json) -> list[str] | None:
    if spec.get("allow_unauthenticated_access"):
        return []
    given = rows(spec.get("api_tokens"), "spec.api_tokens")
    values: list[Any] = [item.get("value") for item in given]
    if any(not isinstance(value, str) for value in values):
        raise Invalid("spec.api_tokens: only literal values are known here", hint='for example [{"value": "KEY"}]')
    if values and all(value == HIDDEN for value in values):
        return None
    if HIDDEN in values:
        raise Invalid("spec.api_tokens mixes new and hidden values", hint="send all tokens again")
    return values
