"""Deployments: how many replicas of which release run, one deployment at a time.

Owns scaling, replacing, moving off drained nodes, and the deployment's status. Which release is served, and the
exchange of one for another, is `rollout`; single copies are `replicas`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lepton_ai.control import demand as demands
from lepton_ai.control import rebalance, replicas, rollout
from lepton_ai.control.asks import ask, company
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Delete, Op, Record, Update, changed
from lepton_ai.control.rollout import Fleet, Wanted
from lepton_ai.control.waiting import Line, Room
from lepton_ai.scheduler.place import Placement
from lepton_ai.scheduler.scale import Scale, scale
from lepton_ai.spec.workload import DeploymentSpec

RELEASES_KEPT = 50


@dataclass(slots=True)
class Case:
    """One deployment as a pass sees it: what is recorded, what is wanted, and what there is.

    `lacks`: so many replicas found no room; `room` is what follows from that. `deferred`: it is not its turn yet.
    """

    ctx: Context
    record: Record
    wanted: Wanted
    fleet: Fleet
    copies: list[Record]
    line: Line
    unplaced: list[Placement] = field(default_factory=list)
    lacks: int = 0
    room: Room | None = None
    deferred: bool = False

    @property
    def spec(self) -> DeploymentSpec:
        return self.wanted.spec

    @property
    def scale(self) -> Scale:
        return self.wanted.scale

    @property
    def progress(self) -> rollout.Progress:
        return self.wanted.progress


def reconcile(ctx: Context, line: Line | None = None) -> None:
    """Bring every deployment one step nearer to what is wanted, but for those that wait in `line`: see `take`.

    When very many change at once, a pass stops early, so that the first of them are ordered soon, and the next pass
    begins where this one stopped.
    """
    records, most = ctx.mirror.list("deployment"), ctx.options.max_changed_per_pass
    begin = ctx.memory.turn % len(records) if records else 0
    ctx.memory.turn, written = 0, ctx.writes
    line = Line(ctx) if line is None else line
    for number in range(begin, begin + len(records)):
        if ctx.writes - written >= most:
            ctx.memory.turn = number
            break
        if records[number % len(records)].uid not in line.waiting:
            ctx.each([records[number % len(records)]], lambda record: take(ctx, record, line))
    ctx.flush()
    demands.forget(ctx)


def take(ctx: Context, record: Record, line: Line) -> None:
    """One deployment; at its turn, when it waits in `line`."""
    if record.deleting:
        _remove(ctx, record)
        return
    copies = ctx.mirror.owned("replica", record.uid)
    if _rests(ctx, record, copies):
        return
    spec = ctx.mirror.parse(record, DeploymentSpec)
    wanted = scale(spec, demands.demand(ctx, record, spec), ctx.usable_for(spec.template))
    ctx.per_node[record.uid] = wanted.per_node
    progress = rollout.progress(ctx, record, spec, copies)
    fleet = Fleet.of(ctx, copies, progress.release, wanted)
    case = Case(ctx, record, Wanted(wanted, spec, progress), fleet, copies, line)
    ends = rollout.ends(ctx, fleet, case.wanted)
    starts = _starts(case, ends)
    if case.deferred:
        return
    status = _status(case)
    _note(ctx, record, status)
    ops = [*ends.values(), *starts, *changed(record, status)]
    if case.room is not None and case.room.ops:  # whom it ends and its claim to their room: together or not at all
        ctx.write(*case.room.ops, *ops)
        case.room.tell(ctx)
    else:
        ctx.write_soon(record, [*ops, *_trim(case)])
    for update in ends.values():
        rebalance.note(ctx, record, update.record)


def _rests(ctx: Context, record: Record, copies: list[Record]) -> bool:
    """Whether it is stopped, all that follows from that is recorded, and nothing of it runs: as for most of a cell."""
    status, bounds = record.status, record.spec.get("replicas")
    return (
        status.get("state") == "stopped"
        and not status.get("reason")
        and status.get("observed") == record.generation
        and isinstance(bounds, dict)
        and bounds.get("min") == 0
        and len(copies) <= ctx.options.kept_ended
        and all(copy.status.get("phase") == "exited" for copy in copies)
    )


# -- starting


def _starts(case: Case, ends: dict[str, Update]) -> list[Op]:
    """New replicas of the release to serve: as many as are missing, as far as room, surge and patience allow.

    Adds to `ends` the replica whose port is needed before another can start.
    """
    ctx, record, progress, fleet = case.ctx, case.record, case.progress, case.fleet
    given_up = progress.failed and not progress.serving
    case.lacks = 0 if ctx.all_settled else int(record.status.get("lacks") or 0)
    if given_up or not ctx.all_settled or (case.wanted.alone and (fleet.running or fleet.lost)):
        return []
    missing = rollout.room_for(case.scale.replicas, fleet, len(ends))
    key = f"{record.uid}/{progress.release}/0"
    if missing <= 0 or ctx.memory.crash.wait_ms(key, ctx.tick_ms) > 0:
        return []
    template = rollout.template(ctx, record, case.spec, progress.release)
    if template is None or (template.exclusive and (fleet.running or fleet.lost)):
        return []
    if case.line.defers(record):
        case.deferred = True
        return []
    case.line.release(record)
    group = f"{record.uid}#{progress.release}"
    count = min(missing, ctx.options.max_new_per_pass)
    one = ask(ctx, record, case.spec, template, "", group, case.scale.per_node)
    requests = [replace(one, uid=str(index)) for index in range(count)]
    moving = rebalance.due(ctx, fleet.leaving)[:count]
    for index, (_, to) in enumerate(moving):  # the first of them go where others want to move, or nowhere
        requests[index] = replace(requests[index], nodes=frozenset({to}))
    groups = {**company(ctx, one), group: fleet.nodes}
    plan = ctx.plan(requests, groups)
    ops: list[Op] = []
    for index, placement in enumerate(plan):
        before = moving[index][0] if index < len(moving) else None
        if placement.node is not None:
            values = _values(case, placement, before)
            ops.append(replicas.creation(ctx, record, template, placement.node, values))
        elif before is not None:
            ctx.unmoved[before.uid] = placement.reason
        else:
            case.unplaced.append(placement)
    if case.unplaced and not ops and not ends:
        ends.update(rollout.yields(ctx, fleet, case.wanted, ctx.snapshot(groups), requests[0]))
    case.lacks = len(case.unplaced)
    if case.unplaced and not ops and not ends:
        wanted = [placement.request for placement in case.unplaced]
        choices = [wanted, wanted[:1]] if len(wanted) > 1 else [wanted]
        case.room = case.line.room(record, case.spec, ctx.snapshot(groups), choices, case.unplaced[0].reason)
    return ops


def _values(case: Case, placement: Placement, before: Record | None) -> dict[str, Any]:
    values: dict[str, Any] = {"release": case.progress.release, "why": placement.reason}
    values["devices"] = placement.devices
    if before is not None:
        values.update(moved=rebalance.origin(before, case.ctx.now_ms), why=rebalance.why(before))
    if case.spec.pod:  # no gateway routes to it: what it listens on are the ports that it exposes
        values.update(pod=True, order={"port": None, "needs_port": False})
    return values


# -- status


def _status(case: Case) -> dict[str, Any]:
    ctx, before, progress, wanted = case.ctx, case.record.status, case.progress, case.scale
    ready = sum(replicas.is_up(copy) for copy in case.fleet.staying + case.fleet.leaving + case.fleet.old)
    status: dict[str, Any] = {**before, "observed": case.record.generation, "ready": ready, "warning": wanted.warning}
    if before.get("wanted") != wanted.replicas:
        status["scaled"] = {"ms": ctx.now_ms, "from": int(before.get("wanted", 0)), "reason": wanted.reason}
    status.update(wanted=wanted.replicas, needed=wanted.needed, rollout=progress.document, serving=progress.serving)
    status["state"], status["reason"] = _state(case, ready)
    claim = case.room.claim if case.room is not None else None if ctx.all_settled else before.get("claim")
    for key, value in (("lacks", case.lacks), ("claim", claim)):
        status.pop(key, None)
        if value:
            status[key] = value
    if (start_s := demands.start_s(case.copies)) is not None:
        status["start_s"] = start_s
    if (learnt := demands.learnt(ctx, case.record)) is not None:
        status["demand"] = learnt
    if status["state"] != before.get("state"):
        status["changed_ms"] = ctx.now_ms
    return status


def _state(case: Case, ready: int) -> tuple[str, str]:
    spec, wanted, progress = case.spec, case.scale, case.progress
    if spec.replicas.min == 0:
        running = len(case.fleet.running)
        return "stopped", "" if not running else f"{running} replica{'s are' if running > 1 else ' is'} ending"
    if progress.failed and not progress.serving:
        return "failed", progress.reason
    if wanted.replicas == 0:
        return "idle", wanted.reason
    failure = f"release {spec.release} failed: {progress.reason}" if progress.failed else ""
    if case.unplaced:
        reason = case.line.words(case.record, case.unplaced[0].reason) if case.room is None else case.room.reason
        gave = next((copy for copy in reversed(case.fleet.ended) if copy.status.get("preempted")), None)
        reason = f"{gave.name}: {gave.status['preempted']['why']}; {reason}" if gave is not None else reason
        return ("waiting" if ready == 0 else "degraded"), reason
    if progress.state == "progressing" and progress.serving:
        own = sum(replicas.is_up(copy) for copy in case.fleet.staying)
        waits = _waits_for(case)
        return "updating", waits or f"{own} of {wanted.replicas} replicas of release {spec.release} are ready"
    if ready >= wanted.replicas:
        return "ready", failure
    state = "starting" if progress.state == "progressing" or ready == 0 else "degraded"
    return state, failure or _waits_for(case) or f"{ready} of {wanted.replicas} replicas are ready"


def _waits_for(case: Case) -> str:
    ctx, fleet = case.ctx, case.fleet
    wait_ms = ctx.memory.crash.wait_ms(f"{case.record.uid}/{case.progress.release}/0", ctx.tick_ms)
    ended = [copy for copy in fleet.ended if not copy.status.get("ending")]
    if wait_ms > 0 and ended:
        why = ended[-1].status.get("reason") or "it ended"
        log = replicas.last_log(ctx, ended[-1])
        return f"its last replica failed ({why}{': ' + log[:200] if log else ''}); the next one starts after a pause"
    for copy in fleet.staying:
        if not replicas.is_up(copy) and copy.status.get("reason"):
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


def _trim(case: Case) -> list[Op]:
    """Records of replicas that ended long ago, and of releases that nobody will go back to."""
    ctx, copies, progress = case.ctx, case.copies, case.progress
    ended = [copy for copy in copies if copy.status.get("phase") == "exited"]
    if progress.state == "progressing":  # what counts against a release is kept until it is judged
        ended = [copy for copy in ended if not rollout.counts_against(copy, int(progress.document["release"]))]
    old = ended[: -ctx.options.kept_ended] if len(ended) > ctx.options.kept_ended else []
    ops = replicas.deletions(ctx, old)
    releases = ctx.mirror.releases(case.record.uid)
    if len(releases) > RELEASES_KEPT:
        used = {progress.serving, progress.release, *(int(copy.spec.get("release", 0)) for copy in copies)}
        gone = [uid for number, uid in releases[:-RELEASES_KEPT] if number not in used]
        ops += [Delete(item) for item in ctx.mirror.read(*gone)]
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
        releases = [uid for _, uid in ctx.mirror.releases(record.uid)]
        ops += [Delete(item) for item in ctx.mirror.read(*releases)]
        ops.append(Delete(record))
        ctx.write(*ops)
        ctx.event(record, "Removed", "nothing of it runs any more")
        return
    waits = {str(copy.spec["node"]) for copy in copies if copy not in gone}
    reason = f"waits for its replicas on {', '.join(sorted(waits))}"
    status = {**record.status, "state": "deleting", "reason": reason, "observed": record.generation}
    ctx.write_each([*ops, *changed(record, status)])
