"""What a deployment would change, where its replicas would go and what they would cost, before anything is recorded."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from lepton_ai.api.cell import Cell
from lepton_ai.api.deploy import Decision
from lepton_ai.api.place import placements, possible
from lepton_ai.api.reservations import whose
from lepton_ai.control.reservations import masked
from lepton_ai.spec.workload import DeploymentSpec, Template

SHOWN = 100
PLAIN = (
    "survive", "spread", "idle_timeout_s", "target_in_flight", "target_requests_per_minute",
    "target_latency_ms_p95", "target_utilisation", "visibility", "labels", "balance", "priority",
    "can_preempt", "preemptible", "advisory",
)  # fmt: skip
"""Fields of a deployment whose change is shown as it is."""


def plan(cell: Cell, decision: Decision, ws: str) -> dict[str, Any]:
    """The plan as JSON. Raises Unplaceable when no node could ever hold one replica."""
    spec = decision.spec
    possible(cell.snapshot(), spec.template)
    wanted, placed = placements(cell, spec, decision.record, decision.fresh)
    resources = spec.template.resources
    unplaced = next((item for item in placed if item.node is None), None)
    reservations = whose(cell)

    def words(text: str) -> str:
        return masked(text, reservations, ws)

    lines = changes(decision)
    if wanted.warning:
        lines.append(f"warning: {wanted.warning}")
    return {
        "name": decision.name,
        "summary": summary(decision, wanted.replicas),
        "changes": lines,
        "placements": [
            {"replica": f"{decision.name}-{spec.release}-{index}", "node": item.node, "reason": words(item.reason)}
            for index, item in enumerate(placed[:SHOWN], 1)
        ],
        "replicas": wanted.replicas,
        "why": wanted.reason,
        "price_per_hour": cell.prices.per_hour(resources, wanted.replicas),
        "price_per_hour_max": cell.prices.per_hour(resources, spec.replicas.max),
        "currency": cell.prices.currency,
        "release": spec.release,
        "unplaceable": None if unplaced is None else {node: words(why) for node, why in unplaced.nodes.items()},
    }


def summary(decision: Decision, replicas: int) -> str:
    """The plan in one line."""
    name, spec, old = decision.name, decision.spec, decision.old
    many = f"{replicas} replica{'' if replicas == 1 else 's'}"
    what = f" of {spec.template.model}" if spec.template.model else ""
    kind = "pod" if spec.pod else "deployment"
    if old is None:
        return f"new {kind} {name}, {many}{what}"
    if not decision.changes:
        return f"nothing changes: {name}#{spec.release} is this already"
    if decision.fresh:
        return f"{name}#{spec.release} replaces {name}#{old.release}, {many}{what}"
    return f"{name}#{spec.release} stays, {many}"


def changes(decision: Decision) -> list[str]:
    """What differs from what is recorded, one line each; values of the environment are not shown."""
    spec, old = decision.spec, decision.old
    if old is None:
        return [f"replicas {_bounds(spec)}", f"may be called by {_callers(spec)}", *_survive(spec), *_private(spec)]
    lines = []
    if _bounds(old) != _bounds(spec):
        lines.append(f"replicas {_bounds(old)} -> {_bounds(spec)}")
    for field in PLAIN:
        before, after = getattr(old, field), getattr(spec, field)
        if before != after:
            lines.append(f"{field} {_short(before)} -> {_short(after)}")
    if (old.tokens, old.allowlist) != (spec.tokens, spec.allowlist):
        lines.append(f"may be called by {_callers(spec, fresh=old.tokens != spec.tokens)}")
    return lines + _differences(old.template, spec.template)


def _callers(spec: DeploymentSpec, *, fresh: bool = False) -> str:
    if spec.pod:
        return "whoever reaches its ports on the node"
    who = f"its {'new ' if fresh else ''}tokens" if spec.tokens else "anyone who reaches the gateway"
    networks = spec.allowlist.networks
    more = f" and {len(networks) - 3} more" if len(networks) > 3 else ""
    return f"{who} from {', '.join(networks[:3])}{more}" if networks else who


def _private(spec: DeploymentSpec) -> list[str]:
    return ["seen by its maker, admins and owners only"] if spec.visibility == "private" else []


def _differences(old: Template, new: Template) -> list[str]:
    lines = []
    for field in Template.model_fields:
        before, after = getattr(old, field), getattr(new, field)
        if before == after:
            continue
        if field in ("env", "secrets"):
            names = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
            lines.append(f"{field} changes: {', '.join(names)[:200]}")
        elif field in ("resources", "health"):
            pairs = [(name, getattr(before, name), getattr(after, name)) for name in type(before).model_fields]
            lines += [f"{field}.{name} {_short(was)} -> {_short(now)}" for name, was, now in pairs if was != now]
        elif field == "blobs":
            lines.append("its files change")
        elif field == "command":
            lines.append(f"command {_short(' '.join(before))} -> {_short(' '.join(after))}")
        else:
            lines.append(f"{field} {_short(before)} -> {_short(after)}")
    return lines


def _bounds(spec: DeploymentSpec) -> str:
    low, high = spec.replicas.min, spec.replicas.max
    return str(low) if low == high else f"{low}..{high}"


def _survive(spec: DeploymentSpec) -> list[str]:
    count = spec.survive.get("node", 0)
    return [f"keeps full capacity when {count} node{'s are' if count > 1 else ' is'} lost"] if count else []


def _short(value: object) -> str:
    text = "none" if value in (None, {}, ()) else str(value)
    if isinstance(value, BaseModel):
        text = ", ".join(f"{name} {item}" for name, item in value.model_dump(exclude_none=True).items())
    return text if len(text) <= 80 else text[:79] + "…"
