"""How many replicas: R = ceil(peak demand / target per replica), bounds, what must survive, idle and wake.

Owns the arithmetic and the written reason. `Demand.peak` is whatever quantile of the maximum demand over the window
the caller plans for: today the maximum measured over the scale-down window; a forecast passes its upper quantile
over the cold-start window through the same field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lepton_ai.spec.workload import DeploymentSpec


@dataclass(frozen=True, slots=True)
class Demand:
    """What callers ask of a deployment.

    `peak`: requests in flight to plan for; `per_minute`: requests within a minute to plan for. `held`: requests the
    activator holds now. `idle_s`: seconds since the last request, None when one is in flight now. `asleep`: it is
    scaled to zero at the moment.
    """

    peak: float = 0.0
    per_minute: float = 0.0
    held: int = 0
    idle_s: float | None = None
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """`replicas` wanted, of which `needed` carry the load; at most `per_node` on a node (None: no spread rule).

    `warning` is set when `survive` cannot be kept, with the cause.
    """

    replicas: int
    needed: int
    per_node: int | None
    reason: str
    warning: str = ""


def scale(spec: DeploymentSpec, demand: Demand, nodes: int) -> Scale:
    """The number of replicas wanted now. `nodes` is how many nodes that it may stand on take work."""
    low, high = spec.replicas.min, spec.replicas.max
    if low == 0:
        return Scale(0, 0, None, "stopped: replicas.min is 0")
    if spec.idle_timeout_s is not None and demand.held == 0:
        if demand.asleep:
            return Scale(0, 0, None, "idle: starts again at the first request")
        if demand.idle_s is not None and demand.idle_s >= spec.idle_timeout_s:
            return Scale(0, 0, None, f"idle: no request for {spec.idle_timeout_s} s")
    needed, reason = _needed(spec, demand)
    if needed <= low:
        reason = f"minimum of {low}; {reason}"
    lost = spec.survive.get("node", 0)
    total, warning = needed, ""
    if lost:
        total, warning = _surviving(needed, lost, nodes)
        if total > needed:
            reason += f", {total} so that {needed} remain after losing {lost} node{'s' if lost > 1 else ''}"
    if demand.held and demand.asleep:
        reason = f"woken by {demand.held} held requests; {reason}"
    wanted = min(high, max(low, total))
    if total > high:
        reason += f"; bounded by the maximum of {high}"
        if needed < total and lost and not warning:
            warning = f"survive.node = {lost} at this load needs {total} replicas, the maximum is {high}"
    per_node = max(1, math.ceil(wanted / max(1, nodes))) if lost else None
    if lost and nodes > lost and per_node is not None:
        # Never fewer than lost + 1 nodes, also when a few large nodes could hold everything.
        per_node = min(per_node, max(1, math.ceil(wanted / (lost + 1))))
        if wanted - lost * per_node < 1 and not warning:
            warning = f"survive.node = {lost} needs at least {lost + 1} replicas, the maximum is {high}"
    if spec.spread == "required":
        per_node = 1
    return Scale(wanted, needed, per_node, reason, warning)


def _needed(spec: DeploymentSpec, demand: Demand) -> tuple[int, str]:
    """How many replicas carry the load, by the target that asks for more of them, and why."""
    load, target = max(demand.peak, float(demand.held)), spec.target_in_flight
    needed = max(1, math.ceil(load / target - 1e-9))
    reason = f"{load:g} requests in flight at most {target:g} each need {needed}"
    if spec.target_requests_per_minute is not None:
        each = spec.target_requests_per_minute
        by_rate = max(1, math.ceil(demand.per_minute / each - 1e-9))
        if by_rate >= needed:
            needed = by_rate
            reason = f"{demand.per_minute:g} requests per minute at most {each:g} each need {needed}"
    return needed, reason


def _surviving(needed: int, lost: int, nodes: int) -> tuple[int, str]:
    """Fewest replicas that, spread evenly over `nodes`, leave `needed` when the `lost` fullest are gone."""
    if nodes <= lost:
        return needed, f"survive.node = {lost} needs at least {lost + 1} nodes that take work, there are {nodes}"
    total = needed + lost
    while total - lost * math.ceil(total / nodes) < needed:
        total += 1
    return total, ""
