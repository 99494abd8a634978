"""Moves: work leaves an overloaded node for another, at most a few at a time, and nobody who calls it notices.

Owns when a move is decided, what it is recorded as, and when it is given up; which move it is, `scheduler.rebalance`
decides. A move is a note on the replica that goes: status["move"] = {to, why, ms}. Of a deployment it is then one of
those that leave: `deployments` starts another one at the destination, `rollout` ends the first when that one has been
in the gateway for a moment. A job's worker that can go on from a checkpoint is stopped with its grace and starts at
the destination. What is noted outlives a leader; the next one goes on with it or gives it up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from lepton_ai.control import replicas
from lepton_ai.control.asks import ask, group_of, title
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Record, Update
from lepton_ai.scheduler.habit import habit
from lepton_ai.scheduler.rebalance import DAY_S, Move, Rules, Work, allowance, rebalance
from lepton_ai.scheduler.snapshot import Request
from lepton_ai.scheduler.window import Ring
from lepton_ai.spec.workload import DeploymentSpec, JobSpec

RULES = Rules()
JOB_COST = 2.0
"""A worker that is stopped and starts again loses more than one that is replaced."""
KEPT = 0.95
"""What of a habit a sample of five seconds leaves: half of it is the last minute (see `habit`)."""
UNITS = np.array([1000.0, 1024.0])
"""Thousandths in a core, MiB in a GiB."""
RUNS = frozenset({"ready", "unready"})


def reserve(ctx: Context) -> None:
    """Before anything is placed: the room that jobs' workers on their way will need where they go."""
    for record in _moving(ctx):
        spec = replicas.spec_of(ctx, record)
        to = str(record.status["move"].get("to"))
        if spec.owner_kind == "job" and to in ctx.nodes:
            ctx.reserve(to, spec.resources)


def reconcile(ctx: Context, used: Ring) -> None:
    """After everything else of a pass: give up moves that cannot succeed, and decide new ones now and then.

    `used` has what every replica uses, by its uid, in cores and GiB.
    """
    ctx.each(_moving(ctx), lambda record: _look_after(ctx, record))
    sources = _overloaded(ctx)
    memory, options = ctx.memory, ctx.options
    if options.rebalance_s <= 0 or not sources or not ctx.all_settled:
        return
    if memory.rebalanced_ms is not None and ctx.tick_ms - memory.rebalanced_ms < options.rebalance_s * 1000:
        return
    memory.rebalanced_ms = ctx.tick_ms
    works = _works(ctx, used, sources)
    budget = allowance(len(works), [(ctx.tick_ms - at_ms) / 1000 for at_ms in _moved(ctx)], RULES)
    loads = [load for name, load in ctx.loads.items() if load.mark != "overloaded" or name in sources]
    plan = rebalance(ctx.snapshot(_groups(ctx)), loads, list(works.values()), budget=budget, rules=RULES)
    for move in plan.moves:
        ctx.each([_record(ctx, move.uid)], lambda record, move=move: _begin(ctx, record, move))  # type: ignore[misc]
    for node, why in (plan.refusals or {}).items():
        _tell(ctx, ctx.nodes[node], why)


def move_of(record: Record) -> dict[str, Any] | None:
    """The move that the replica is on: {to, why, ms}; None when it stays."""
    found = record.status.get("move")
    return found if isinstance(found, dict) and found.get("to") else None


def due(ctx: Context, copies: Iterable[Record]) -> list[tuple[Record, str]]:
    """Those of `copies` whose replacement is still to be started, and where."""
    return [(copy, str(move["to"])) for copy in copies if (move := move_of(copy)) and _replacement(ctx, copy) is None]


def origin(record: Record, now_ms: int) -> dict[str, Any]:
    """What is recorded of one that takes the place of `record`: where it comes from, since when, and by which move."""
    move = move_of(record) or {}
    return {"uid": record.uid, "from": str(record.spec["node"]), "ms": now_ms, "move": move.get("ms")}


def why(record: Record) -> str:
    """Why what takes the place of `record` stands where it does."""
    move = move_of(record)
    return f"moved from {record.spec['node']}: {move['why'] if move else 'it was overloaded'}"


def note(ctx: Context, owner: Record, record: Record) -> None:
    """Say that the replica, which ends now, has moved, when that is why."""
    move, after = move_of(record), _replacement(ctx, record)
    if move is not None and after is not None and not record.status.get("ending"):
        text = f"{record.name} went from {record.spec['node']} to {move['to']} as {after.name}: {move['why']}"
        ctx.event(owner, "Moved", text)


# -- moves under way


def _replacement(ctx: Context, record: Record) -> Record | None:
    """The one that takes the replica's place, while that may still run."""
    for copy in ctx.mirror.owned("replica", str(record.owner_uid)):
        moved = copy.spec.get("moved") or {}
        if moved.get("uid") == record.uid and copy.status.get("phase") != "exited" and not copy.status.get("ending"):
            return copy
    return None


def _moving(ctx: Context) -> list[Record]:
    """The replicas that are on a move. Looked for once by each leader, then remembered."""
    memory = ctx.memory
    if memory.moving is None:
        memory.moving = {record.uid for record in ctx.mirror.running() if move_of(record)}
    found = [record for uid in sorted(memory.moving) if (record := ctx.mirror.get(uid)) is not None]
    found = [record for record in found if record.status.get("phase") != "exited" and move_of(record)]
    memory.moving = {record.uid for record in found}
    return found


def _look_after(ctx: Context, record: Record) -> None:
    if record.status.get("ending"):
        return  # it has been replaced, or is wanted no more
    move = move_of(record)
    assert move is not None
    why = ctx.unmoved.get(record.uid) or _failed(ctx, record, move)
    if why:
        status = {key: value for key, value in record.status.items() if key != "move"}
        ctx.write(Update(record, status={**status, "moved_ms": ctx.now_ms}))
        ctx.event(_owner(ctx, record), "NotMoved", f"{record.name} stays on {record.spec['node']}: {why}", warning=True)


def _failed(ctx: Context, record: Record, move: dict[str, Any]) -> str:
    """Why the move cannot succeed; "" while it can."""
    to, waited_ms = str(move["to"]), ctx.lasted_ms("move", record.uid, move.get("ms"))
    if to not in ctx.nodes:
        return f"{to} is no node any more"
    if to in ctx.leaving:
        return f"{to} takes no new work"
    if ctx.silent_ms(to) >= ctx.options.node_grace_s * 1000 and ctx.settled(to):
        return f"{to} is unreachable"
    for copy in ctx.mirror.owned("replica", str(record.owner_uid)):
        moved = copy.spec.get("moved") or {}
        mine = moved.get("uid") == record.uid and moved.get("move") == move.get("ms")  # not of an earlier move of it
        if mine and copy.status.get("phase") == "exited":
            return f"what was to take its place on {to} ended ({copy.status.get('reason') or 'it failed'})"
    limit_s = max(ctx.options.move_s, replicas.spec_of(ctx, record).health.startup_deadline_s)
    return f"nothing was ready on {to} within {limit_s:g} s" if waited_ms >= limit_s * 1000 else ""


def _begin(ctx: Context, record: Record, move: Move) -> None:
    note = {"to": move.destination, "why": move.reason, "ms": ctx.now_ms}
    owner = _owner(ctx, record)
    if owner.kind == "job":
        ended = replicas.ending(ctx, record, f"it moves to {move.destination}")
        ctx.write(Update(record, status={**(ended.status or {}), "move": note}))
        ctx.event(owner, "Moved", f"{record.name} goes from {move.source} to {move.destination}: {move.reason}")
    else:
        ctx.write(Update(record, status={**record.status, "move": note}))
        ctx.event(owner, "Moving", f"{record.name} is to go from {move.source} to {move.destination}: {move.reason}")
    _moved(ctx).append(ctx.tick_ms)
    assert ctx.memory.moving is not None
    ctx.memory.moving.add(record.uid)


# -- deciding


def _overloaded(ctx: Context) -> set[str]:
    """The nodes that have been marked overloaded for long enough that it is no spike."""
    patient_ms, found = ctx.options.rebalance_patience_s * 1000, set()
    for name, load in ctx.loads.items():
        record = ctx.nodes.get(name)
        if record is None:
            continue
        hot = load.mark == "overloaded" and not load.stale
        if ctx.lasted_ms("overloaded", record.uid, hot) >= patient_ms and hot:
            found.add(name)
        if not hot:
            ctx.memory.said.pop(f"{record.uid}#moves", None)
    return found


def _moved(ctx: Context) -> list[int]:
    """When moves were begun, in elapsed time; a new leader learns of earlier ones from what they made."""
    memory = ctx.memory
    if memory.moves is None:
        found = [copy.spec["moved"].get("ms") for copy in ctx.mirror.list("replica") if copy.spec.get("moved")]
        memory.moves = [ctx.tick_ms - max(0, ctx.now_ms - int(ms)) for ms in found if ms]
    memory.moves = [at_ms for at_ms in memory.moves if ctx.tick_ms - at_ms < DAY_S * 1000]
    return memory.moves


def _moved_s(ctx: Context, record: Record) -> float | None:
    """Seconds since the replica came by a move, or one of it was given up. A wall clock that is set counts little."""
    at_ms = int((record.spec.get("moved") or {}).get("ms") or record.status.get("moved_ms") or 0)
    if not at_ms:
        return None
    seen_ms = ctx.lasted_ms("moved", record.uid, at_ms)
    began = seen_ms >= ctx.leading_ms - ctx.options.first_report_s * 1000
    return (max(seen_ms, ctx.now_ms - at_ms) if began else seen_ms) / 1000


def _works(ctx: Context, used: Ring, sources: Collection[str]) -> dict[str, Work]:
    """Everything that runs on nodes that can be reached, by uid; what is not on `sources` only as a load."""
    records = [record for record in ctx.mirror.running() if ctx.connected(str(record.spec.get("node")))]
    uids = [record.uid for record in records]
    history, now = used.history(uids, used.length, ctx.tick_ms), used.last(uids, used.length)
    cpu, memory = (habit(history[:, column], kept=KEPT) for column in (0, 1))
    known = cpu.known & memory.known
    mean = np.where(known[:, None], np.stack([cpu.mean, memory.mean], axis=1), np.nan) * UNITS
    spread = np.stack([cpu.spread, memory.spread], axis=1) * UNITS
    figures = dict(zip(uids, zip(mean.tolist(), spread.tolist(), (now * UNITS).tolist(), strict=True), strict=True))
    found: dict[str, Work] = {}
    calm: dict[str, str] = {}

    def add(record: Record) -> None:
        if str(record.spec["node"]) in sources:
            request, held, cost = _described(ctx, record, calm)
        else:
            request, held, cost = Request(record.uid, replicas.spec_of(ctx, record).resources), "elsewhere", 1.0
        mean, spread, now = (tuple(values) for values in figures[record.uid])
        move = move_of(record)
        if not move and _goes(ctx, record):  # what it uses, it will not use there for long
            mean, spread, held = (0.0, 0.0), (0.0, 0.0), "about to end or to take over"
        found[record.uid] = Work(
            request, str(record.spec["node"]), mean, spread, now, str(record.owner_uid), cost,
            str(move["to"]) if move else "", _moved_s(ctx, record), held,
        )  # fmt: skip

    ctx.each(records, add)
    return found


def _goes(ctx: Context, record: Record) -> bool:
    """Whether it is ending, or is there for one that counts already where it goes."""
    before = ctx.mirror.get(str((record.spec.get("moved") or {}).get("uid")))
    taking_over = before is not None and before.status.get("phase") != "exited" and move_of(before) is not None
    return bool(record.status.get("ending")) or taking_over


def _described(ctx: Context, record: Record, calm: dict[str, str]) -> tuple[Request, str, float]:
    """The request that would place it again, why it may not move ("": it may), and what a move costs.

    `calm` remembers, by owner, why nothing of it may move.
    """
    owner, spec = ctx.mirror.get(str(record.owner_uid)), replicas.spec_of(ctx, record)
    if owner is None or owner.deleting:
        return Request(record.uid, spec.resources), "being removed", 1.0
    if owner.kind == "job":
        job = ctx.mirror.parse(owner, JobSpec)
        return ask(ctx, owner, job, job.template, record.uid), _job_stays(owner, record, job), JOB_COST
    deployment = ctx.mirror.parse(owner, DeploymentSpec)
    per_node = ctx.per_node.get(owner.uid)
    request = ask(ctx, owner, deployment, deployment.template, record.uid, _group(record), per_node)
    if owner.uid not in calm:
        calm[owner.uid] = _stays(ctx, owner, deployment)
    held = calm[owner.uid]
    if not held and not replicas.relied_on(ctx, record):
        held = "not relied on yet"
    return request, held, 1.0


def _stays(ctx: Context, owner: Record, spec: DeploymentSpec) -> str:
    """Why no replica of a deployment may move: nothing that is under way is to be disturbed."""
    status, rollout = owner.status, owner.status.get("rollout") or {}
    if spec.pod or spec.template.exclusive:
        return "pods" if spec.pod else "exclusive"
    if owner.uid not in ctx.per_node:
        return "not looked at in this pass"
    calm = status.get("state") == "ready" and status.get("ready") == status.get("wanted")
    changing = "their deployment is changing"
    if not calm or rollout.get("state") != "done" or rollout.get("release") != spec.release:
        return changing
    copies = [copy for copy in ctx.mirror.owned("replica", owner.uid) if copy.status.get("phase") != "exited"]
    settled = all(not copy.status.get("ending") and copy.spec.get("release") == spec.release for copy in copies)
    return "" if settled else changing


def _job_stays(owner: Record, record: Record, spec: JobSpec) -> str:
    if not spec.checkpoint:
        return "jobs without a checkpoint"
    if spec.template.exclusive:
        return "exclusive"
    if spec.rendezvous and spec.workers > 1:
        return "workers that meet others"
    running = owner.status.get("state") == "running" and record.status.get("phase") in RUNS
    return "" if running and not spec.stopped else "jobs that are not at work"


def _groups(ctx: Context) -> dict[str, dict[str, int]]:
    """How many of each release stand where, or are on their way there; and of whatever others may avoid."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in ctx.mirror.running():
        node, owner = str(record.spec.get("node")), ctx.mirror.get(str(record.owner_uid))
        if not record.status.get("ending") and not move_of(record):
            found[_group(record)][node] += 1
        if owner is not None:
            found[group_of(owner.workspace, title(owner))][node] += 1
    return {group: dict(counts) for group, counts in found.items()}


def _group(record: Record) -> str:
    return f"{record.owner_uid}#{record.spec.get('release', 0)}"


def _record(ctx: Context, uid: str) -> Record:
    found = ctx.mirror.get(uid)
    assert found is not None
    return found


def _owner(ctx: Context, record: Record) -> Record:
    return ctx.mirror.get(str(record.owner_uid)) or record


def _tell(ctx: Context, node: Record, why: str) -> None:
    """Say why an overloaded node gives nothing (more) away, when it is news."""
    key = f"{node.uid}#moves"
    if ctx.memory.said.get(key) != why:
        ctx.memory.said[key] = why
        ctx.event(node, "Overloaded", f"gives no more work away: {why}")
