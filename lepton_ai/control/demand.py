"""What callers ask of each deployment, remembered between passes: what scaling looks at.

Owns the windows of measured load, and what each deployment's past says of its future (`scheduler.peak`): seconds are
collected here, and every 5 s they are given to it. The numbers come from the gateway; how many replicas they need is
`scheduler.scale`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Record
from lepton_ai.scheduler.peak import TICK_S, Peak
from lepton_ai.scheduler.scale import Demand
from lepton_ai.scheduler.window import Counted, Window
from lepton_ai.spec.route import RouteStats
from lepton_ai.spec.workload import DeploymentSpec

STALE_MS = 10_000
MINUTE_MS = 60_000
START_S = 30.0
"""How long a replica needs until it serves, where none has shown it yet."""
SLOW_S = 10.0
"""A replica that starts sooner follows whatever is in flight; one that takes longer is planned for."""
_LASTS_MS = 2_000
"""What is in flight for a moment is noise: the mean of two seconds counts."""
_SAVED_MS = 600_000
_STARTS = 8
_START_MOST_MS = 3_600_000


@dataclass(slots=True)
class Measured:
    """The load of one deployment as this leader saw it. Times are elapsed milliseconds."""

    window: Window
    per_minute: Window
    used: Window
    carried: Window
    peak: Peak = field(default_factory=Peak)
    requests: Counted = field(default_factory=lambda: Counted(MINUTE_MS))
    moments: deque[tuple[int, float]] = field(default_factory=deque)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    second: int = -1
    counted: int = 0
    slow: bool = False
    tick_ms: int = -1
    measured_ms: int = -1
    active_ms: int = 0
    request_ms: int = 0
    saved_ms: int = 0
    turned_ms: int = 0
    needed: int = -1


def demand(ctx: Context, record: Record, spec: DeploymentSpec) -> Demand:
    """The demand of a deployment now. Without figures from the gateway nothing shrinks and nothing falls asleep."""
    services, known = ctx.services, ctx.memory.demand.get(record.uid) or _known(ctx, record, spec)
    measured_ms, stats = ctx.measured
    held = services.publisher.held(record.workspace, record.name)
    found = stats.get((record.workspace, record.name))
    if found is not None and measured_ms > known.measured_ms:
        _note(known, found, measured_ms)
        if spec.replicas.min < spec.replicas.max:
            _look_ahead(known, record, spec, found, measured_ms)
    if spec.target_utilisation is not None:
        known.used.add(ctx.tick_ms, _used(ctx, record, spec))
    blind = measured_ms < 0 or ctx.tick_ms - measured_ms > STALE_MS
    if blind:
        for window in (known.window, known.per_minute, known.used, known.carried):
            window.add(ctx.tick_ms, window.max(ctx.tick_ms))
    rollout = record.status.get("rollout") or {}
    fresh = rollout.get("release") != spec.release
    # A new release is started once, also while nobody asks: else nobody would know whether it can.
    if held or blind or fresh or rollout.get("state") == "progressing":
        known.active_ms = ctx.tick_ms
    busy = held or (found is not None and found.in_flight)
    needed, ready = int(record.status.get("needed", 0)), int(record.status.get("ready", 0))
    if needed != known.needed or ready < needed:
        known.needed, known.turned_ms = needed, ctx.tick_ms
    return Demand(
        # Where a replica takes long to start the plan counts: most of what waits now is gone before one could help.
        peak=(known.carried if known.slow else known.window).max(ctx.tick_ms),
        ahead=known.peak.plan.replicas * spec.target_in_flight,
        per_minute=known.per_minute.max(ctx.tick_ms),
        used=known.used.max(ctx.tick_ms),
        latency_ms_p95=None if found is None or blind else found.latency_ms_p95,
        now=needed,
        steady=ctx.tick_ms - known.turned_ms >= MINUTE_MS,
        held=held,
        idle_s=None if busy else (ctx.tick_ms - known.active_ms) / 1000,
        asleep=record.status.get("state") == "idle" and not fresh,
    )


def _known(ctx: Context, record: Record, spec: DeploymentSpec) -> Measured:
    """A new leader has seen nothing yet: what the last one found necessary holds for one window, and what had been
    learnt of the deployment is taken up."""
    span_ms = int(ctx.options.scale_down_s * 1000)
    most, per_minute, used, carried = (Window(span_ms) for _ in range(4))
    known = Measured(most, per_minute, used, carried, active_ms=ctx.tick_ms, saved_ms=ctx.tick_ms)
    needed, learnt = int(record.status.get("needed", 0)), record.status.get("demand")
    if needed > spec.replicas.min:
        for window in (known.window, known.carried):
            window.add(ctx.tick_ms, needed * spec.target_in_flight)
    if isinstance(learnt, Mapping):
        known.peak = Peak.restored(learnt)
    ctx.memory.demand[record.uid] = known
    return known


def _note(known: Measured, found: RouteStats, measured_ms: int) -> None:
    load = float(found.in_flight + found.held)
    known.measured_ms = measured_ms
    known.moments.append((measured_ms, load))
    while known.moments[0][0] <= measured_ms - _LASTS_MS:
        known.moments.popleft()
    known.window.add(measured_ms, sum(value for _, value in known.moments) / len(known.moments))
    known.requests.add(measured_ms, found.requests)
    known.per_minute.add(measured_ms, known.requests.within(measured_ms))
    if load or found.last_request_ms != known.request_ms:
        known.active_ms = measured_ms
    known.request_ms = found.last_request_ms


def _look_ahead(known: Measured, record: Record, spec: DeploymentSpec, found: RouteStats, measured_ms: int) -> None:
    """One sample a second is kept, and every five of them are a tick. A gap is forgotten, not filled."""
    second = measured_ms // 1000
    if second == known.second:
        return
    if known.second >= 0 and second - known.second > STALE_MS // 1000:
        known.seconds, known.second, known.tick_ms = [], -1, -1
    load = (found.in_flight + found.held) / spec.target_in_flight
    known.seconds.append((load, float(max(0, found.requests - known.counted)) if known.second >= 0 else 0.0))
    known.second, known.counted = second, found.requests
    if known.tick_ms < 0:
        known.tick_ms = measured_ms
    if measured_ms - known.tick_ms < TICK_S * 1000 - 500:
        return
    loads, counts = zip(*known.seconds, strict=True)
    known.seconds, known.tick_ms = [], measured_ms
    if known.peak.untouched and not any(loads):
        return  # nobody has ever asked: as for most of a large cell
    takes_s = float(record.status.get("start_s") or START_S)
    known.slow = takes_s >= SLOW_S
    known.peak.tick(
        loads,
        counts,
        takes_s,
        ready=int(record.status.get("ready", 0)),
        at_least=0.0 if known.slow else known.window.max(measured_ms) / spec.target_in_flight,
    )


def _used(ctx: Context, record: Record, spec: DeploymentSpec) -> float:
    """How many replicas' worth of the cpu that was asked for is in use."""
    reports = (ctx.reports.get(copy.uid) for copy in ctx.mirror.owned("replica", record.uid))
    used = sum(max(0.0, float(found[1].cpu_milli)) for found in reports if found is not None)
    return used / spec.template.resources.cpu_milli


def start_s(copies: Sequence[Record]) -> float | None:
    """How long its replicas need from being placed until they serve: the longest of the last few; None: not known."""
    took_ms = [
        int(copy.status["ready_ms"]) - copy.created_ms for copy in copies if int(copy.status.get("ready_ms") or 0)
    ]
    known_s = [round(took / 1000, 1) for took in took_ms[-_STARTS:] if 0 < took < _START_MOST_MS]  # clocks differ
    return max(known_s, default=None)


def learnt(ctx: Context, record: Record) -> dict[str, Any] | None:
    """What of the past is worth keeping over a change of leaders; None when what is recorded will do. So it is
    written every 10 minutes at most."""
    known = ctx.memory.demand.get(record.uid)
    if known is None or known.peak.untouched or ctx.tick_ms - known.saved_ms < _SAVED_MS:
        return None
    known.saved_ms = ctx.tick_ms
    return dict(known.peak.state())


def forget(ctx: Context) -> None:
    """Let go of deployments that are gone."""
    for uid in [uid for uid in ctx.memory.demand if ctx.mirror.get(uid) is None]:
        del ctx.memory.demand[uid]
