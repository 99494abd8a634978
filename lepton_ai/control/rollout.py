"""Which release serves, and how one takes over from another: always make before break, stopped when it cannot start.

Owns the exchange of replicas: what may start, and what may end because something else carries its load. A release
that ends `failed_starts` times before it was ever ready has failed: it is taken back, and the one that served serves
on. (As in Nomad's deployments: auto-revert to the last stable version, with a bound on failed allocations.)
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from lepton_ai.control import replicas
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Record, Update
from lepton_ai.control.rebalance import move_of
from lepton_ai.scheduler.place import place
from lepton_ai.scheduler.scale import Scale
from lepton_ai.scheduler.snapshot import Request, Snapshot
from lepton_ai.spec.workload import DeploymentSpec, Template

SURGE_SHARE = 0.25
UNHEALTHY_S = 10.0
NEVER_SERVED = frozenset({"placed", "fetching", "starting"})


@dataclass(frozen=True, slots=True)
class Progress:
    """`release` is the one whose replicas should run now; `serving` the last that was fully up (0: none yet)."""

    release: int
    serving: int
    state: str
    reason: str
    document: dict[str, Any]

    @property
    def failed(self) -> bool:
        return self.state == "failed"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be so: how many replicas, of which release."""

    scale: Scale
    spec: DeploymentSpec
    progress: Progress

    @property
    def alone(self) -> bool:
        """Whether two must never run at once, as far as can be known: the old one ends before the new one starts."""
        return self.spec.template.exclusive or self.spec.pod


@dataclass(slots=True)
class Fleet:
    """The replicas of a deployment, sorted by what should become of them.

    `staying` count; `leaving` are of the right release on a wrong node; `old` of another release; `lost` on nodes that
    fell silent. `running`: everything that may still run. `nodes`: how many of `staying` stand where.
    """

    staying: list[Record] = field(default_factory=list)
    leaving: list[Record] = field(default_factory=list)
    old: list[Record] = field(default_factory=list)
    lost: list[Record] = field(default_factory=list)
    ended: list[Record] = field(default_factory=list)
    running: list[Record] = field(default_factory=list)
    nodes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, ctx: Context, copies: list[Record], release: int, wanted: Scale) -> Fleet:
        """Sort `copies`, oldest first."""
        fleet = cls()
        for copy in copies:
            if copy.status.get("phase") == "exited":
                fleet.ended.append(copy)
                continue
            if not replicas.missing(ctx, copy):
                fleet.running.append(copy)
            if copy.status.get("ending"):
                continue
            if replicas.missing(ctx, copy):
                fleet.lost.append(copy)
            elif int(copy.spec.get("release", 0)) != release:
                fleet.old.append(copy)
            elif str(copy.spec["node"]) in ctx.leaving or move_of(copy):
                fleet.leaving.append(copy)
            else:
                fleet.staying.append(copy)
        fleet._spread(wanted.per_node)
        fleet.nodes = dict(Counter(str(copy.spec["node"]) for copy in fleet.staying))
        return fleet

    def _spread(self, per_node: int | None) -> None:
        """Those that stand too many on one node (others were down when they were placed) move."""
        if per_node is None:
            return
        seen: Counter[str] = Counter()
        for copy in list(self.staying):
            node = str(copy.spec["node"])
            seen[node] += 1
            if seen[node] > per_node:
                self.staying.remove(copy)
                self.leaving.append(copy)


def progress(ctx: Context, record: Record, spec: DeploymentSpec, copies: list[Record]) -> Progress:
    """How far the release that is wanted has come. While nothing is to run, it is done and does not serve yet."""
    document = dict(record.status.get("rollout") or {})
    serving = int(record.status.get("serving", 0))
    if document.get("release") != spec.release:
        document = {"release": spec.release, "state": "progressing", "reason": "", "since_ms": ctx.now_ms}
    stopped = spec.replicas.min == 0
    if document["state"] == "done" and serving != spec.release and not stopped:
        document["state"] = "progressing"  # it was accepted while nothing ran; now it must show that it can
    if document["state"] == "progressing":
        failures = [copy for copy in copies if counts_against(copy, spec.release)]
        if len(failures) >= ctx.options.failed_starts:
            last = failures[-1]
            log = replicas.last_log(ctx, last)
            why = str(last.status.get("reason") or "it ended")
            document.update(
                state="failed",
                reason=f"{len(failures)} replicas ended before they were ready; the last: {why}",
                replica=last.name,
                log=[log] if log else [],
            )
        elif _is_up(ctx, spec, copies):
            document.update(state="done", reason="")
            serving = serving if stopped else spec.release
    release = spec.release
    if document["state"] == "failed" and serving:
        release = serving
    return Progress(release, serving, document["state"], str(document["reason"]), document)


def counts_against(copy: Record, release: int) -> bool:
    """Whether the replica is one of the failed starts for which `release` is taken back."""
    return int(copy.spec.get("release", 0)) == release and replicas.failed_start(copy)


def template(ctx: Context, record: Record, spec: DeploymentSpec, release: int) -> Template | None:
    """What replicas of `release` are made from; None when its record is gone."""
    if release == spec.release:
        return spec.template
    found = ctx.mirror.release(record.uid, release)
    return None if found is None else found.template


def room_for(wanted: int, fleet: Fleet, ending: int) -> int:
    """How many replicas may start now: up to `wanted`, with at most a quarter (one at least) above it."""
    missing = wanted - len(fleet.staying)
    if not fleet.old and not fleet.leaving:
        return missing
    surge = max(1, math.ceil(wanted * SURGE_SHARE))
    alive = len(fleet.staying) + len(fleet.leaving) + len(fleet.old) - ending
    return min(missing, wanted + surge - alive)


def ends(ctx: Context, fleet: Fleet, wanted: Wanted) -> dict[str, Update]:
    """The replicas that end in this pass, by uid: those nobody needs, then those that others have replaced."""
    found: dict[str, Update] = {}

    def end(copy: Record, why: str) -> None:
        found[copy.uid] = replicas.ending(ctx, copy, why)

    count = wanted.scale.replicas
    others = [*fleet.old, *fleet.leaving]
    if count == 0 or (wanted.progress.failed and not wanted.progress.serving):
        why = wanted.scale.reason if count == 0 else "its release failed"
        for copy in [*fleet.staying, *others, *fleet.lost]:
            end(copy, why)
        return found
    # One at a time, each after the one before it is back: what makes all of them slow is made worse by ending them.
    if len(fleet.staying) >= count and not any(copy.status.get("phase") in NEVER_SERVED for copy in fleet.staying):
        for copy, why in [(copy, why) for copy in fleet.staying if (why := _unhealthy(ctx, copy))][:1]:
            end(copy, why)
    if wanted.alone:
        for copy in [*others, *fleet.staying[count:]]:
            end(copy, _why(copy, wanted))
        for copy in fleet.lost:  # whatever its node says later, it is not to go on
            end(copy, f"{copy.spec['node']} was silent for too long")
        return found
    good = [copy for copy in fleet.staying if replicas.relied_on(ctx, copy) and copy.uid not in found]
    enough = count
    if wanted.spec.spread == "required" and not fleet.leaving:
        # One a node: more than there are nodes never come, and the old ones need not wait for them.
        enough = min(count, ctx.usable_for(wanted.spec.template))
    # Those of silent nodes that may be back in a moment are neither counted nor ended before all is well.
    useful = [copy for copy in others if replicas.serves(ctx, copy)]
    weak = [copy for copy in others if copy.status.get("phase") == "unready"][: len(good)]
    for copy in others:
        useless = copy not in useful and len(good) >= enough
        if useless or copy in weak or copy.status.get("phase") in NEVER_SERVED:
            end(copy, _why(copy, wanted))
    # Counted are those that the gateway has for certain: one that it refuses to learn of carries nothing.
    firm = [copy for copy in useful if replicas.relied_on(ctx, copy)]
    spare = len(good) + len(firm) - enough
    if spare >= 0:
        for copy in [*(copy for copy in useful if copy not in firm), *firm[:spare]]:
            end(copy, _why(copy, wanted))
    if not others:
        _shrink(ctx, fleet, count, good, found)
    return found


def yields(ctx: Context, fleet: Fleet, wanted: Wanted, snapshot: Snapshot, request: Request) -> dict[str, Update]:
    """The replica that ends although nothing carries its load yet, because another can start only at its port.

    One at a time, each after the one before it has been replaced by one that is up.
    """
    others = [*fleet.old, *fleet.leaving]
    dying = any(copy.status.get("ending") for copy in fleet.running)
    if not request.ports or not others or dying or not all(replicas.is_up(copy) for copy in fleet.staying):
        return {}
    names = {f"{copy.workspace}/{copy.name}": copy for copy in others}
    free = {
        address: {port: who for port, who in taken.items() if who not in names}
        for address, taken in snapshot.taken.items()
    }
    found = place(replace(snapshot, taken=free), [request])[0]
    if found.node is None:
        return {}
    address = snapshot.addresses[snapshot.names.index(found.node)]
    for name, copy in names.items():
        if any(snapshot.taken.get(address, {}).get(port) == name for port in request.ports):
            return {copy.uid: replicas.ending(ctx, copy, f"{_why(copy, wanted)}, at the same port")}
    return {}


def _shrink(ctx: Context, fleet: Fleet, count: int, good: list[Record], found: dict[str, Update]) -> None:
    """More than wanted: what is not relied on goes first, then the newest on the fullest nodes.

    While those that are relied on do not suffice, only what never served goes: a ready one may be all there is.
    """
    why = "fewer replicas are wanted"
    left = [copy for copy in reversed(fleet.staying) if copy.uid not in found]
    if len(good) < count:
        known = [copy for copy in left if copy.status.get("phase") != "unknown"]
        starting = [copy for copy in known if copy.status.get("phase") in NEVER_SERVED]
        found |= {copy.uid: replicas.ending(ctx, copy, why) for copy in starting[: max(0, len(known) - count)]}
        return
    found |= {copy.uid: replicas.ending(ctx, copy, why) for copy in left if copy not in good}
    crowd = Counter(str(copy.spec["node"]) for copy in good)
    for _ in range(len(good) - count):
        copy = max(
            (copy for copy in good if copy.uid not in found),
            key=lambda item: (crowd[str(item.spec["node"])], item.created_ms, item.uid),
        )
        crowd[str(copy.spec["node"])] -= 1
        found[copy.uid] = replicas.ending(ctx, copy, why)


def _why(copy: Record, wanted: Wanted) -> str:
    if int(copy.spec.get("release", 0)) != wanted.progress.release:
        return f"release {wanted.progress.release} replaces it"
    move = move_of(copy)
    return f"it moves to {move['to']}" if move else "it moves to another node"


def _is_up(ctx: Context, spec: DeploymentSpec, copies: list[Record]) -> bool:
    """Whether nothing of other releases counts any more and this one carries the load."""
    if spec.replicas.min == 0:
        return True
    alive = [copy for copy in copies if replicas.alive(ctx, copy)]
    own = [copy for copy in alive if int(copy.spec.get("release", 0)) == spec.release]
    ready = sum(replicas.is_up(copy) for copy in own)
    return len(own) == len(alive) and ready > 0 and ready >= min(len(own), spec.replicas.min)


def _unhealthy(ctx: Context, copy: Record) -> str:
    """A replica that was ready and has not been for long is replaced: a fresh one is the better guess."""
    if copy.status.get("phase") != "unready":
        return ""
    for_ms = ctx.lasted_ms("unready", copy.uid, copy.status.get("unready_ms"))
    limit_s = max(UNHEALTHY_S, replicas.spec_of(ctx, copy).health.startup_deadline_s)
    return f"unhealthy for {limit_s:g} s: {copy.status.get('reason', '')}" if for_ms >= limit_s * 1000 else ""
