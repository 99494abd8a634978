"""What callers ask of each deployment, remembered between passes: what scaling looks at.

Owns the windows of measured load. The numbers come from the gateway; how many replicas they need is `scheduler.scale`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Record
from lepton_ai.scheduler.scale import Demand
from lepton_ai.scheduler.window import Counted, Window
from lepton_ai.spec.workload import DeploymentSpec

STALE_MS = 10_000
MINUTE_MS = 60_000


@dataclass(slots=True)
class Measured:
    """The load of one deployment as this leader saw it. Times are elapsed milliseconds."""

    window: Window
    per_minute: Window
    requests: Counted = field(default_factory=lambda: Counted(MINUTE_MS))
    measured_ms: int = -1
    active_ms: int = 0
    request_ms: int = 0


def demand(ctx: Context, record: Record, spec: DeploymentSpec) -> Demand:
    """The demand of a deployment now. Without figures from the gateway nothing shrinks and nothing falls asleep."""
    services, known = ctx.services, ctx.memory.demand.get(record.uid)
    if known is None:
        span_ms = int(ctx.options.scale_down_s * 1000)
        known = Measured(Window(span_ms), Window(span_ms), active_ms=ctx.tick_ms)
        # A new leader has seen nothing yet: what the last one found necessary holds for one window.
        needed = int(record.status.get("needed", 0))
        if needed > spec.replicas.min:
            known.window.add(ctx.tick_ms, needed * spec.target_in_flight)
        ctx.memory.demand[record.uid] = known
    measured_ms, stats = ctx.measured
    held = services.publisher.held(record.workspace, record.name)
    found = stats.get((record.workspace, record.name))
    if found is not None and measured_ms > known.measured_ms:
        known.measured_ms = measured_ms
        load = float(found.in_flight + found.held)
        known.window.add(measured_ms, load)
        known.requests.add(measured_ms, found.requests)
        known.per_minute.add(measured_ms, known.requests.within(measured_ms))
        if load or found.last_request_ms != known.request_ms:
            known.active_ms = measured_ms
        known.request_ms = found.last_request_ms
    blind = measured_ms < 0 or ctx.tick_ms - measured_ms > STALE_MS
    if blind:
        for window in (known.window, known.per_minute):
            window.add(ctx.tick_ms, window.max(ctx.tick_ms))
    rollout = record.status.get("rollout") or {}
    fresh = rollout.get("release") != spec.release
    # A new release is started once, also while nobody asks: else nobody would know whether it can.
    if held or blind or fresh or rollout.get("state") == "progressing":
        known.active_ms = ctx.tick_ms
    busy = held or (found is not None and found.in_flight)
    return Demand(
        peak=known.window.max(ctx.tick_ms),
        per_minute=known.per_minute.max(ctx.tick_ms),
        held=held,
        idle_s=None if busy else (ctx.tick_ms - known.active_ms) / 1000,
        asleep=record.status.get("state") == "idle" and not fresh,
    )


def forget(ctx: Context) -> None:
    """Let go of deployments that are gone."""
    for uid in [uid for uid in ctx.memory.demand if ctx.mirror.get(uid) is None]:
        del ctx.memory.demand[uid]
