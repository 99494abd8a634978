"""Endpoints as the public client knows them: its Deployment to our form, and our deployment to its JSON.

A pod is a Deployment too; what is different in it is in pods.py. `form(shown)` is what was shown: a merge patch is
applied to `document` and read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import DeploymentSpec
from lepton_ai.wire import container as containers
from lepton_ai.wire import pods, queue
from lepton_ai.wire.container import Where
from lepton_ai.wire.kept import kept, put_back
from lepton_ai.wire.record import Json, Record, head, metadata, name_of, number, rows, table, text, texts, truth, whole

__all__ = ["document", "form", "name_of", "shown"]
HIDDEN = "***"
"""What stands where a token's text was; sent back, it means: as it is."""
TIMEOUT_S = (300, 3600)
STARTUP_S = 60
"""Time to become ready that every replica has; an initial delay comes on top of it."""
_KNOWN = (
    *containers.CONTAINER,
    *(f"resource_requirement.{field}" for field in containers.SIZE),
    "resource_requirement.min_replicas", "resource_requirement.max_replicas",
    "api_tokens", "auth_config.ip_allowlist", "envs", "mounts", "storage_attachments", "image_pull_secrets",
    "health.liveness.initial_delay_seconds", "health.readiness.require_approval", "is_pod",
    "user_security_context.privileged", *queue.KNOWN,
)  # fmt: skip
_KNOWN_OF_ENDPOINTS = (
    *_KNOWN, "auto_scaler.scale_down.no_traffic_timeout", "auto_scaler.target_throughput.qpm",
    "allow_unauthenticated_access", "scheduling_policy.replica_spread", "ingress_enabled", "ingress_timeout_seconds",
    "load_balance_config",
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


def shown(record: Record, spec: DeploymentSpec, url: str, where: Where, replica: Record | None = None) -> Json:
    """A deployment as the public client reads it. `replica`: a pod's one."""
    status = record.status
    ready = int(status.get("ready", 0))
    own = "deleting" if record.deleting else str(status.get("state") or "starting")
    state, phase = _STATES.get(own, ("Not Ready", own))
    if own == "degraded" and not ready:
        state, phase = "Not Ready", "Degraded"
    if own == "stopped" and ready:
        phase = "Stopping"
    address = "" if spec.pod else url
    value: Json = {
        "state": state,
        "endpoint": {"internal_endpoint": address, "external_endpoint": address},
        "ready_replicas": ready,
        "autoscaler_status": {"desired_replicas": int(status.get("wanted", spec.replicas.min))},
    }
    if phase is not None:
        value["phase"] = phase
    if status.get("reason"):
        value["reason"] = str(status["reason"])
    if spec.template.image is not None:
        value["image"] = where.image(spec.template)
    if ports := pods.ports(spec, replica):
        value["container_port_status"] = ports
    if spec.pod and (public_ip := pods.address(replica)):
        value["public_ip"] = public_ip
    whole_spec = document(record.name, spec, where)["spec"]
    if not spec.pod and spec.tokens is None:
        whole_spec["allow_unauthenticated_access"] = True
    return {"metadata": metadata(record), "spec": whole_spec, "status": value}


def document(name: str, spec: DeploymentSpec, where: Where) -> Json:
    """What a merge patch is applied to: {"metadata", "spec"} without status."""
    template, advisory = spec.template, spec.advisory
    size = containers.size_shown(template, where)
    found: Json = {
        "container": containers.container_shown(template, advisory),
        "resource_requirement": {
            **size,
            "min_replicas": spec.replicas.min,
            "max_replicas": spec.replicas.max,
        },
        "envs": containers.environment_shown(template),
        "mounts": containers.mounts_shown(template.mounts, advisory, where),
        "image_pull_secrets": list(template.image_pull_secrets),
        **queue.shown(spec, template),
    }
    if spec.pod:
        found["is_pod"] = True
    else:
        found |= _endpoint_shown(spec)
    delay_s = round(template.health.startup_deadline_s) - STARTUP_S
    if delay_s > 0:
        found["health"] = {"liveness": {"initial_delay_seconds": delay_s}}
    head_: Json = {"id": name, "name": name, "visibility": spec.visibility}
    if spec.labels:
        head_["labels"] = dict(spec.labels)
    return {"metadata": head_, "spec": put_back(found, advisory)}


def _endpoint_shown(spec: DeploymentSpec) -> Json:
    scaler: Json = {"scale_down": {"no_traffic_timeout": spec.idle_timeout_s or 0}}
    if spec.target_requests_per_minute is not None:
        scaler["target_throughput"] = {"qpm": spec.target_requests_per_minute}
    names = spec.token_secrets or ("",) * len(spec.tokens or ())
    found: Json = {
        "auto_scaler": scaler,
        "api_tokens": [{"value_from": {"token_name_ref": name}} if name else {"value": HIDDEN} for name in names],
        "auth_config": {"ip_allowlist": list(spec.allowlist.networks)},
        "scheduling_policy": {"replica_spread": spec.spread.capitalize()},
    }
    if TIMEOUT_S[0] <= spec.template.request_timeout_s <= TIMEOUT_S[1]:
        found["ingress_timeout_seconds"] = int(spec.template.request_timeout_s)
    if spec.balance.policy == "maglev":
        found["load_balance_config"] = {"maglev": {}}
    elif spec.balance.choices is not None:
        found["load_balance_config"] = {"least_request": {"choice_count": spec.balance.choices}}
    return found


def form(
    body: object, name: str, where: Where, base: Json | None = None, before: Mapping[str, Any] | None = None
) -> Json:
    """Our form of a deployment from the public client's JSON; what that cannot say comes from `base` (our form).

    `before`: the document that `body` is a change of; tokens that are the same there stay (None in the form).
    Raises Invalid, NotFound.
    """
    spec = table(table(body, "the body").get("spec"), "spec")
    asked: Json = dict(base or {"name": name})
    pod = truth(spec.get("is_pod"), "spec.is_pod")
    advisory = kept(spec, _KNOWN if pod else _KNOWN_OF_ENDPOINTS)
    size = table(spec.get("resource_requirement"), "spec.resource_requirement")
    template, more = containers.template_given(spec, size, where, asked.get("template"))
    box = table(spec.get("container"), "spec.container")
    template["port"], template["ports"], rest = containers.ports_given(box, served=not pod, exposed=pod)
    _health(template, table(spec.get("health"), "spec.health"))
    asked |= queue.given(spec, template)
    asked |= {"template": template, "pod": pod, "advisory": advisory | more | rest, "tokens": []}
    asked |= head(body, {key: asked[key] for key in ("labels", "visibility") if key in asked})
    if pod:
        return asked | pods.form(spec, size)
    asked["replicas"] = _replicas(size)
    asked["tokens"] = _tokens(spec, None if before is None else before["spec"].get("api_tokens"))
    return asked | _endpoint(spec, template)


def _endpoint(spec: Json, template: Json) -> Json:
    """What only an endpoint has."""
    scaler = table(spec.get("auto_scaler"), "spec.auto_scaler")
    down = table(scaler.get("scale_down"), "spec.auto_scaler.scale_down")
    flow = table(scaler.get("target_throughput"), "spec.auto_scaler.target_throughput")
    policy = table(spec.get("scheduling_policy"), "spec.scheduling_policy")
    spread = text(policy.get("replica_spread") or "Preferred", "spec.scheduling_policy.replica_spread", 40).lower()
    if spread not in ("preferred", "required"):
        raise Invalid(f"replica_spread is {spread[:40]!r}", hint="use Preferred or Required")
    if not truth(spec.get("ingress_enabled"), "spec.ingress_enabled", True):
        hint = "limit who may call it: --ip-whitelist, --tokens"
        raise Invalid("spec.ingress_enabled: an endpoint without its gateway is not known here", hint=hint)
    timeout_s = spec.get("ingress_timeout_seconds")
    template["request_timeout_s"] = whole(timeout_s, "spec.ingress_timeout_seconds", TIMEOUT_S[0], *TIMEOUT_S)
    access = table(spec.get("auth_config"), "spec.auth_config")
    qpm = flow.get("qpm")
    return {
        "idle_timeout_s": whole(down.get("no_traffic_timeout"), "no_traffic_timeout", 0, 0, 30 * 86_400) or None,
        "target_requests_per_minute": (None if qpm is None else number(qpm, "target_throughput.qpm", 0, 1e9)) or None,
        "spread": spread,
        "allowlist": texts(access.get("ip_allowlist"), "spec.auth_config.ip_allowlist", 256),
        "balance": _balance(table(spec.get("load_balance_config"), "spec.load_balance_config")),
    }


def _health(template: Json, health: Json) -> None:
    live = table(health.get("liveness"), "spec.health.liveness")
    where = "spec.health.liveness.initial_delay_seconds"
    delay_s = whole(live.get("initial_delay_seconds"), where, 0, 0, 3600 - STARTUP_S)
    own: Json = dict(template.get("health") or {})
    if delay_s or float(own.get("startup_deadline_s") or 0) > STARTUP_S:
        own["startup_deadline_s"] = STARTUP_S + delay_s
    template["health"] = own
    asked = table(health.get("readiness"), "spec.health.readiness")
    if truth(asked.get("require_approval"), "spec.health.readiness.require_approval"):
        hint = "leave it out: a replica is ready when its health check passes"
        raise Invalid("spec.health.readiness.require_approval: nobody approves replicas here", hint=hint)


def _replicas(size: Json) -> Json:
    low = whole(size.get("min_replicas"), "spec.resource_requirement.min_replicas", 1, 0, 1000)
    high = whole(size.get("max_replicas"), "spec.resource_requirement.max_replicas", max(1, low), 0, 1000)
    if low > high:
        hint = "raise max_replicas, or lower min_replicas"
        raise Invalid(f"min_replicas {low} is over max_replicas {high}", hint=hint)
    return {"min": low, "max": max(1, high)}


def _balance(asked: Json) -> Json:
    known = [key for key in asked if asked[key] is not None]
    if unknown := [key for key in known if key not in ("least_request", "maglev")]:
        raise Invalid(f"load_balance_config.{unknown[0][:40]} is not known", hint="use least_request or maglev")
    if len(known) > 1:
        hint = 'send null for the other one: {"least_request": null, "maglev": {}}'
        raise Invalid("load_balance_config names both least_request and maglev", hint=hint)
    if known == ["maglev"]:
        table(asked["maglev"], "load_balance_config.maglev")
        return {"policy": "maglev"}
    least = table(asked.get("least_request"), "load_balance_config.least_request")
    choices = least.get("choice_count")
    where = "load_balance_config.least_request.choice_count"
    return {"policy": "least_request", "choices": None if choices is None else whole(choices, where, 2, 2, 100)}


def _tokens(spec: Json, before: list[Json] | None) -> list[str | Json] | None:
    """Literal tokens and `{"secret": NAME}`; [] is open, None as it was `before`. Raises Invalid."""
    opened = truth(spec.get("allow_unauthenticated_access"), "spec.allow_unauthenticated_access")
    given = rows(spec.get("api_tokens"), "the endpoint's tokens")
    found = [_token(item, index) for index, item in enumerate(given)]
    if opened and found:
        hint = "leave one of them out"
        raise Invalid("tokens and allow_unauthenticated_access exclude each other", hint=hint)
    if before is not None and given == before:
        return None
    if HIDDEN in found:
        raise Invalid(f"{HIDDEN} stands for a token that is hidden, it is none", hint="send all tokens again")
    if before and not found and not opened:
        hint = "send allow_unauthenticated_access: true with it to open the endpoint to everyone"
        raise Invalid("an endpoint does not lose its tokens by the way", hint=hint)
    return found


def _token(item: Json, index: int) -> str | Json:
    source = table(item.get("value_from"), f"the value_from of token {index}")
    if item.get("value") is not None:
        return text(item["value"], f"token {index}", 1024)
    if source.get("token_name_ref"):
        return {"secret": text(source["token_name_ref"], f"the secret of token {index}", 255)}
    hint = 'for example {"value": "KEY"}, or {"value_from": {"token_name_ref": "SECRET"}}'
    raise Invalid(f"token {index} of the endpoint has no value", hint=hint)


def patched(document_: Json, patch: Mapping[str, Any], merged: Json) -> Json:
    """`merged` (the patch applied to the document) without what the patch itself makes meaningless.

    Whoever asks for a shape does not ask for the sizes it had; who raises only the minimum raises the maximum with
    it; who opens an endpoint gives its tokens up. Raises Invalid.
    """
    spec = table(patch.get("spec"), "spec")
    size = table(spec.get("resource_requirement"), "spec.resource_requirement")
    found: Json = {**merged, "spec": dict(merged.get("spec") or {})}
    now: Json = dict(found["spec"].get("resource_requirement") or {})
    if size.get("resource_shape"):
        for field in ("cpu", "memory", "accelerator_num", "accelerator_type"):
            if size.get(field) is None:
                now.pop(field, None)
    elif size.get("cpu") is not None or size.get("memory") is not None:
        now.pop("resource_shape", None)
    if size.get("min_replicas") is not None and size.get("max_replicas") is None:
        low = whole(size["min_replicas"], "spec.resource_requirement.min_replicas", 1, 0, 1000)
        now["max_replicas"] = max(low, int(now.get("max_replicas") or 1))
    found["spec"]["resource_requirement"] = now
    if spec.get("allow_unauthenticated_access") is True and not spec.get("api_tokens"):
        found["spec"]["api_tokens"] = []
    if spec.get("allow_unauthenticated_access") is False and not found["spec"].get("api_tokens"):
        raise Invalid("an endpoint that wants a token needs one", hint="give its tokens in the same change")
    return found
