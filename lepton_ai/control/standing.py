"""How each replica stands among its peers, remembered between passes: what the routes tell the gateway.

Owns what was measured of each deployment's replicas. The figures come from the gateway, once a second; what a replica
can do is `scheduler.capacity`, what follows from it `scheduler.route`. A new leader begins with all alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Record
from lepton_ai.scheduler.capacity import Capacity, Seen
from lepton_ai.scheduler.route import Share, route
from lepton_ai.spec.route import RouteStats


@dataclass(slots=True)
class Standing:
    """One deployment. Times are elapsed milliseconds."""

    capacity: Capacity = field(default_factory=Capacity)
    shares: Mapping[str, Share] = field(default_factory=dict)
    measured_ms: int = -1
    requests: int = -1


def standing(ctx: Context, record: Record, copies: list[Record]) -> Mapping[str, Share]:
    """The share of each of `copies`, the replicas that take requests, by uid; those that are missing are typical.

    The same as last time while nothing was measured anew, nobody asks, or nothing has changed enough.
    """
    if len(copies) < 2:
        ctx.memory.standing.pop(record.uid, None)
        return {}
    known: Standing = ctx.memory.standing.setdefault(record.uid, Standing())
    measured_ms, stats = ctx.measured
    found = stats.get((record.workspace, record.name))
    if found is None or measured_ms <= known.measured_ms:
        return known.shares
    known.measured_ms = measured_ms
    if found.requests == known.requests and not found.in_flight:
        return known.shares
    known.requests = found.requests
    uids = {copy.uid for copy in copies}
    known.capacity.observe(measured_ms, {uid: sample for uid, sample in seen(found).items() if uid in uids})
    measured = known.capacity.estimate(doubt=0.0)
    crowded = {
        copy.uid: measured[copy.uid]
        for copy in copies
        if copy.uid in measured
        and (load := ctx.loads.get(str(copy.spec["node"]))) is not None
        and load.mark == "overloaded"
    }
    known.shares = route(known.capacity.estimate(), known.capacity.ahead(), known.shares, crowded=crowded)
    return known.shares


def seen(stats: RouteStats) -> dict[str, Seen]:
    """What the gateways counted of each replica."""
    return {
        uid: Seen(answered, stats.failed_by_replica.get(uid, 0), stats.in_flight_by_replica.get(uid, 0))
        for uid, answered in stats.answered_by_replica.items()
    }


def forget(ctx: Context) -> None:
    """Let go of deployments that are gone."""
    for uid in [uid for uid in ctx.memory.standing if ctx.mirror.get(uid) is None]:
        del ctx.memory.standing[uid]
