"""Pods as the public client knows them: a Deployment with `is_pod`, reached at the ports of its one replica.

Owns what a pod has and an endpoint has not. No gateway routes to a pod: each of its container ports is mapped to a
port of the node, and both are shown as soon as the node has chosen it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import DeploymentSpec
from lepton_ai.wire.record import Json, Record, rows, table, truth, whole

R = TypeVar("R", bound=Record)


def form(spec: Json, size: Json) -> Json:
    """What of our form a pod decides: one replica, or none (stopped). Raises Invalid for what only an endpoint has."""
    for field in ("min_replicas", "max_replicas"):
        where = f"spec.resource_requirement.{field}"
        if whole(size.get(field), where, 1, 0, 1000) > 1:
            raise Invalid(f"{where}: a pod is one replica", hint="create several pods, or an endpoint")
    access = table(spec.get("auth_config"), "spec.auth_config")
    given = {"tokens": spec.get("api_tokens"), "ip_allowlist": access.get("ip_allowlist")}
    for what in given:
        if given[what]:
            # Kept as advisory they would look like a protection that is not there.
            raise Invalid(f"a pod has no gateway in front of it: its {what} would protect nothing", hint="leave it out")
    low = whole(size.get("min_replicas"), "spec.resource_requirement.min_replicas", 1, 0, 1)
    return {"replicas": {"min": low, "max": 1}, "tokens": [], "idle_timeout_s": None}


def ports(spec: DeploymentSpec, replica: Record | None) -> list[Json]:
    """Where each container port is reached; without a host port until the node has chosen one."""
    template = spec.template
    asked = [(port.number, port.protocol, port.name) for port in template.ports]
    if template.port is not None:
        asked.insert(0, (template.port, "TCP", ""))
    maps = {} if replica is None else _maps(replica)
    found = []
    for number, protocol, name in asked:
        item: Json = {"container_port": number, "protocol": protocol}
        if name:
            item["name"] = name
        if (number, protocol) in maps:
            item["host_port"] = maps[number, protocol]
        found.append(item)
    return found


def address(replica: Record | None) -> str:
    """The address of the node that the pod is on; "" while it is on none."""
    return "" if replica is None else str(replica.status.get("address") or "")


def one(replicas: Iterable[R]) -> R | None:
    """The replica that is the pod now: the newest that has not ended."""
    found = [item for item in replicas if item.status.get("phase") != "exited"]
    wanted = [item for item in found if not item.status.get("ending")]
    best = wanted or found
    return max(best, key=lambda item: (item.created_ms, item.name)) if best else None


def _maps(replica: Record) -> dict[tuple[int, str], int]:
    items = rows(replica.status.get("ports") or [], "ports")
    return {(int(item["number"]), str(item.get("protocol") or "TCP")): int(item["host_port"]) for item in items}


def refuse_change(was: bool, spec: Json) -> None:
    """Raises Invalid when a patch would make a pod of an endpoint, or the reverse."""
    if spec.get("is_pod") is not None and truth(spec["is_pod"], "spec.is_pod") != was:
        what = "a pod stays a pod" if was else "an endpoint does not become a pod"
        raise Invalid(f"spec.is_pod: {what}", hint="create another one")
