"""Deployments: how many replicas of which release run, one deployment at a time.

Owns scaling, replacing, moving off drained nodes, and the deployment's status. Which release is served, and the
exchange of one for another, is `rollout`; single copies are `replicas`.
"""

from __future__ import annotations

from typing import Any

from lepton_ai.control import demand as demands
from lepton_ai.control import replicas, rollout
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Delete, Op, Record, Update, changed
from lepton_ai.control.rollout import Fleet, Wanted
from lepton_ai.scheduler.place import Placement, place
from lepton_ai.scheduler.scale import Scale, scale
from lepton_ai.scheduler.snapshot import Request
from lepton_ai.spec.workload import DeploymentSpec

RELEASES_KEPT = 50


def reconcile(ctx: Context) -> None:
    """Bring every deployment one step nearer to what is wanted."""
    ctx.each(ctx.mirror.list("deployment"), lambda record: _one(ctx, record))
    demands.forget(ctx)


def _one(ctx: Context, record: Record) -> None:
    if record.deleting:
        _remove(ctx, record)
        return
    spec = ctx.mirror.parse(record, DeploymentSpec)
    copies = ctx.mirror.owned("replica", record.uid)
    wanted = scale(spec, demands.demand(ctx, record, spec), ctx.usable_nodes)
    progress = rollout.progress(ctx, record, spec, copies)
    fleet = Fleet.of(ctx, copies, progress.release, wanted)
    ends = rollout.ends(ctx, fleet, Wanted(wanted, spec, progress))
    starts, unplaced = _starts(ctx, record, spec, fleet, wanted, progress, ends)
    status = _status(ctx, record, spec, fleet, wanted, progress, unplaced)
    _note(ctx, record, status)
    ctx.write_each([*ends.values(), *starts, *changed(record, status), *_trim(ctx, record, copies, progress)])


# -- starting


def _starts(
    ctx: Context,
    record: Record,
    spec: DeploymentSpec,
    fleet: Fleet,
    wanted: Scale,
    progress: rollout.Progress,
    ends: dict[str, Update],
) -> tuple[list[Op], list[Placement]]:
    """New replicas of the release to serve: as many as are missing, as far as room, surge and patience allow."""
    template = rollout.template(ctx, record, spec, progress.release)
    given_up = progress.failed and not progress.serving
    if template is None or given_up or not ctx.all_settled:
        return [], []
    if template.exclusive and (fleet.running or fleet.lost):
        return [], []
    missing = rollout.room_for(wanted.replicas, fleet, len(ends))
    key = f"{record.uid}/{progress.release}/0"
    if missing <= 0 or ctx.memory.crash.wait_ms(key, ctx.tick_ms) > 0:
        return [], []
    group = f"{record.uid}#{progress.release}"
    count = min(missing, ctx.options.max_new_per_pass)
    requests = [Request(str(index), template.resources, group, wanted.per_node) for index in range(count)]
    plan = place(ctx.snapshot({group: fleet.nodes}), requests)
    values = {"release": progress.release}
    ops: list[Op] = []
    for placement in plan:
        if placement.node is None:
            break
        created = replicas.creation(ctx, record, template, placement.node, {**values, "why": placement.reason})
        ops.append(created)
    return ops, [placement for placement in plan if placement.node is None]


# -- status


def _status(
    ctx: Context,
    record: Record,
    spec: DeploymentSpec,
    fleet: Fleet,
    wanted: Scale,
    progress: rollout.Progress,
    unplaced: list[Placement],
) -> dict[str, Any]:
    ready = sum(replicas.takes_requests(copy) for copy in fleet.staying + fleet.leaving + fleet.old)
    own = sum(replicas.takes_requests(copy) for copy in fleet.staying)
    before = record.status
    status: dict[str, Any] = {**before, "observed": record.generation, "ready": ready, "warning": wanted.warning}
    if before.get("wanted") != wanted.replicas:
        status["scaled"] = {"ms": ctx.now_ms, "from": int(before.get("wanted", 0)), "reason": wanted.reason}
    status.update(wanted=wanted.replicas, needed=wanted.needed, rollout=progress.document, serving=progress.serving)
    status["state"], status["reason"] = _state(ctx, record, spec, fleet, wanted, progress, unplaced, own, ready)
    if status["state"] != before.get("state"):
        status["changed_ms"] = ctx.now_ms
    return status


def _state(
    ctx: Context,
    record: Record,
    spec: DeploymentSpec,
    fleet: Fleet,
    wanted: Scale,
    progress: rollout.Progress,
    unplaced: list[Placement],
    own: int,
    ready: int,
) -> tuple[str, str]:
    if spec.replicas.min == 0:
        return "stopped", "" if not fleet.running else f"{len(fleet.running)} replicas are ending"
    if progress.failed and not progress.serving:
        return "failed", progress.reason
    if wanted.replicas == 0:
        return "idle", wanted.reason
    failure = f"release {spec.release} failed: {progress.reason}" if progress.failed else ""
    if unplaced:
        return ("waiting" if ready == 0 else "degraded"), unplaced[0].reason
    if progress.state == "progressing" and progress.serving:
        waits = _waits_for(ctx, record, fleet, progress)
        return "updating", waits or f"{own} of {wanted.replicas} replicas of release {spec.release} are ready"
    if ready >= wanted.replicas:
        return "ready", failure
    waits = _waits_for(ctx, record, fleet, progress)
    state = "starting" if progress.state == "progressing" or ready == 0 else "degraded"
    return state, failure or waits or f"{ready} of {wanted.replicas} replicas are ready"


def _waits_for(ctx: Context, record: Record, fleet: Fleet, progress: rollout.Progress) -> str:
    wait_ms = ctx.memory.crash.wait_ms(f"{record.uid}/{progress.release}/0", ctx.tick_ms)
    ended = [copy for copy in fleet.ended if not copy.status.get("ending")]
    if wait_ms > 0 and ended:
        why = ended[-1].status.get("reason") or "it ended"
        log = replicas.last_log(ctx, ended[-1])
        return f"its last replica failed ({why}{': ' + log[:200] if log else ''}); the next one starts after a pause"
    for copy in fleet.staying:
        if not replicas.takes_requests(copy) and copy.status.get("reason"):
            return f"{copy.name} on {copy.spec['node']}: {copy.status['reason']}"
    return ""


def _note(ctx: Context, record: Record, status: dict[str, Any]) -> None:
    before = record.status
    if status["state"] != before.get("state"):
        bad = status["state"] in ("failed", "degraded", "waiting")
        text = f"{before.get('state') or 'new'} -> {status['state']}"
        ctx.event(record, "State", text + (f": {status['reason']}" if status["reason"] else ""), warning=bad)
    if status["wanted"] != before.get("wanted"):
        ctx.event(
            record, "Scaled", f"{before.get('wanted', 0)} -> {status['wanted']} replicas: {status['scaled']['reason']}"
        )
    if status["rollout"] != before.get("rollout") and status["rollout"].get("state") != "progressing":
        done = status["rollout"]
        text = f"release {done['release']} {'serves' if done['state'] == 'done' else 'failed: ' + done['reason']}"
        ctx.event(record, "Release", text, warning=done["state"] == "failed")


# -- ending


def _trim(ctx: Context, record: Record, copies: list[Record], progress: rollout.Progress) -> list[Op]:
    """Records of replicas that ended long ago, and of releases that nobody will go back to."""
    ended = [copy for copy in copies if copy.status.get("phase") == "exited"]
    if progress.state == "progressing":  # what counts against a release is kept until it is judged
        ended = [copy for copy in ended if not rollout.counts_against(copy, int(progress.document["release"]))]
    old = ended[: -ctx.options.kept_ended] if len(ended) > ctx.options.kept_ended else []
    ops = replicas.deletions(ctx, old)
    releases = ctx.mirror.owned("release", record.uid)
    if len(releases) > RELEASES_KEPT:
        used = {progress.serving, progress.release, *(int(copy.spec.get("release", 0)) for copy in copies)}
        ops += [Delete(item) for item in releases[:-RELEASES_KEPT] if int(item.spec["number"]) not in used]
    return ops


def _remove(ctx: Context, record: Record) -> None:
    copies = ctx.mirror.owned("replica", record.uid)
    ops: list[Op] = [
        replicas.ending(ctx, copy, "the deployment is being removed")
        for copy in copies
        if copy.status.get("phase") != "exited" and not copy.status.get("ending")
    ]
    gone = [copy for copy in copies if replicas.forgotten(ctx, copy)]
    ops += [Delete(copy) for copy in gone]
    if len(gone) == len(copies):
        ops += [Delete(item) for item in ctx.mirror.owned("release", record.uid)]
        ops.append(Delete(record))
        ctx.write(*ops)
        ctx.event(record, "Removed", "nothing of it runs any more")
        return
    waits = {str(copy.spec["node"]) for copy in copies if copy not in gone}
    reason = f"waits for its replicas on {', '.join(sorted(waits))}"
    status = {**record.status, "state": "deleting", "reason": reason, "observed": record.generation}
    ctx.write_each([*ops, *changed(record, status)])
