"""How many replicas: R = ceil(peak demand / target per replica), bounds, what must survive, idle and wake.

Owns the arithmetic and the written reason. The demand that is measured (its maximum over the scale-down window) and
the one that is planned for (a high quantile of its maximum over the time that a replica needs to start: `peak`) come
in one `Demand`; the target that asks for most replicas decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lepton_ai.spec.workload import DeploymentSpec

_FAST = 0.6
"""Below this share of the latency's target one replica fewer is tried."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What callers ask of a deployment.

    `peak`: requests in flight, at most lately; `ahead`: at most by the time a replica has started. `per_minute`:
    requests within a minute. `used`: how many replicas' worth of the cpu asked for is in use. `latency_ms_p95`: of the
    answers of the last moments, None when unknown; `now`: replicas that were found necessary last, `steady`: they have
    all served for a minute. `held`: requests the activator holds now. `idle_s`: seconds since the last request, None
    when one is in flight now. `asleep`: it is scaled to zero at the moment.
    """

    peak: float = 0.0
    ahead: float = 0.0
    per_minute: float = 0.0
    used: float = 0.0
    latency_ms_p95: float | None = None
    now: int = 0
    steady: bool = False
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
    planned = math.ceil(demand.ahead / target - 1e-9)
    if planned > needed:
        needed = planned
        reason = f"up to {demand.ahead:g} requests in flight are planned for, at most {target:g} each: {needed}"
    for other, why in (_by_rate(spec, demand), _by_use(spec, demand), _by_latency(spec, demand)):
        if why and other >= needed:
            needed, reason = other, why
    return needed, reason


def _by_rate(spec: DeploymentSpec, demand: Demand) -> tuple[int, str]:
    each = spec.target_requests_per_minute
    if each is None:
        return 0, ""
    needed = max(1, math.ceil(demand.per_minute / each - 1e-9))
    return needed, f"{demand.per_minute:g} requests per minute at most {each:g} each need {needed}"


def _by_use(spec: DeploymentSpec, demand: Demand) -> tuple[int, str]:
    share = spec.target_utilisation
    if share is None or not math.isfinite(demand.used):
        return 0, ""
    needed = max(1, math.ceil(demand.used / share - 1e-9))
    return needed, f"the cpu of {demand.used:.3g} replicas is in use, at most {share:.0%} of each: {needed}"


def _by_latency(spec: DeploymentSpec, demand: Demand) -> tuple[int, str]:
    """More while answers are too slow, fewer once they are fast by a margin; each step is waited for.

    Latency says that there are too few, not how many are missing: at most twice as many at once, one fewer at a time.
    """
    target, found, now = spec.target_latency_ms_p95, demand.latency_ms_p95, max(1, demand.now)
    if target is None:
        return 0, ""
    if found is None or not math.isfinite(found):
        return (now, f"the latency is not known: {now} as before") if demand.now else (0, "")
    if demand.steady and found > target:
        needed = max(now + 1, math.ceil(now * min(2.0, found / target) - 1e-9))
        return needed, f"p95 of {found:.0f} ms is over {target:g} ms: {needed} instead of {now}"
    if demand.steady and found < _FAST * target and now > 1:
        return now - 1, f"p95 of {found:.0f} ms is well under {target:g} ms: {now - 1} instead of {now}"
    return now, f"p95 of {found:.0f} ms with {now}, at most {target:g} ms"


def _surviving(needed: int, lost: int, nodes: int) -> tuple[int, str]:
    """Fewest replicas that, spread evenly over `nodes`, leave `needed` when the `lost` fullest are gone."""
    if nodes <= lost:
        return needed, f"survive.node = {lost} needs at least {lost + 1} nodes that take work, there are {nodes}"
    total = needed + lost
    while total - lost * math.ceil(total / nodes) < needed:
        total += 1
    return total, ""
