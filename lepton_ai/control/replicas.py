"""One running copy: what its node says of it, how it leaves, and the orders that make it so.

Owns the records of kind "replica": spec = {replica, node, release, secrets, drain_s, attempt, ...}, status = what is
known. A replica that is wanted no more has `ending` (why) in its status: draining (out of the gateway, requests
finish) -> stopping (told to its node) -> exited. Whether it is wanted is decided by deployments and jobs.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Create, Delete, Op, Record, Update, changed
from lepton_ai.errors import Busy, Failed, LeptonError, StaleEpoch, Timeout, Unavailable
from lepton_ai.spec.replica import Exit, FetchBlob, ReplicaReport, ReplicaSpec
from lepton_ai.spec.workload import Template

CHURNING = frozenset({"cpu_milli", "memory_mib", "last_log", "uid"})


def reconcile(ctx: Context) -> None:
    """Take in the reports, move what drains, and reserve room for everything that may still run."""
    ops: list[Op] = []
    ctx.each(
        ctx.mirror.running(), lambda record: ops.extend(changed(record, _advance(ctx, record, _look(ctx, record))))
    )
    _note_crashes(ctx, ops)
    ctx.write_each(ops)
    ctx.each(ctx.mirror.running(), lambda record: ctx.reserve(str(record.spec["node"]), spec_of(ctx, record).resources))


def order(ctx: Context) -> None:
    """Send every node what it should do and does not do yet; lost orders are repeated after a while."""
    budget = {name: ctx.options.max_orders_per_pass for name in ctx.views}
    # Of those that ended only what a node still holds is of interest.
    held = [record for uid in ctx.reports if (record := ctx.mirror.get(uid)) and record.status.get("phase") == "exited"]
    ctx.each([*ctx.mirror.running(), *held], lambda record: _order(ctx, record, budget))
    for uid, (node, report) in ctx.reports.items():
        if ctx.mirror.get(uid) is not None or budget.get(node, 0) <= 0:
            continue
        # Nobody's: its record is gone (a deleted deployment, a node that was away for long).
        verb = "forget" if report.phase == "exited" else "stop"
        if _due(ctx, verb, uid):
            budget[node] -= 1
            if verb == "forget":
                ctx.services.fleet.forget(node, uid, ctx.lease.epoch, None)
            else:
                ctx.services.fleet.stop(node, uid, None, ctx.lease.epoch)
    horizon_ms = ctx.tick_ms - 60_000
    ctx.memory.sent = {key: sent for key, sent in ctx.memory.sent.items() if sent > horizon_ms}


def creation(ctx: Context, owner: Record, template: Template, node: str, values: dict[str, Any]) -> Create:
    """The record of a new replica. `values` go into its spec; "env" and "needs_port" of it into the ReplicaSpec."""
    uid = ctx.services.new_uid()
    kind = owner.kind
    release, worker = int(values.get("release", 0)), int(values.get("worker", 0))
    tail = uid.replace("-", "")[-8:]
    name = f"{owner.name[:40]}-{release or worker}-{tail}"
    spec = ReplicaSpec(
        uid=uid,
        workspace=owner.workspace,
        name=name,
        owner_kind=kind,
        owner=owner.name,
        release=release,
        worker=worker,
        command=template.command,
        image=template.image,
        env={**template.env, **values.pop("env", {})},
        blobs=tuple(FetchBlob(ref=ref, url="") for ref in template.blobs),
        resources=template.resources,
        port=template.port,
        needs_port=values.pop("needs_port", True),
        health=template.health,
        grace_s=template.grace_s,
        exclusive=template.exclusive,
    )
    stored = {
        "replica": spec.model_dump(mode="json"),
        "node": node,
        "secrets": dict(template.secrets),
        "drain_s": template.drain_s,
        **values,
    }
    ctx.reserve(node, template.resources)
    return Create(owner.workspace, "replica", name, stored, {"phase": "placed"}, owner.uid, uid)


def spec_of(ctx: Context, record: Record) -> ReplicaSpec:
    """What was ordered. Raises for a record that nobody can read (`reconcile` ends those first)."""
    return ctx.mirror.parse(record, ReplicaSpec, record.spec["replica"])


def alive(ctx: Context, record: Record) -> bool:
    """Whether it counts: wanted, not ended, and on a node that was heard of within the grace time."""
    status = record.status
    return status.get("phase") != "exited" and not status.get("ending") and not missing(ctx, record)


def missing(ctx: Context, record: Record) -> bool:
    """Whether its node has been silent for so long that another should do its work."""
    node = str(record.spec["node"])
    if record.status.get("phase") == "exited" or ctx.connected(node) or not ctx.settled(node):
        return False
    return ctx.silent_ms(node) >= grace_ms(ctx, record)


def grace_ms(ctx: Context, record: Record) -> float:
    spec = spec_of(ctx, record)
    if spec.exclusive:
        return (spec.lease_s + ctx.options.exclusive_margin_s) * 1000
    return (ctx.options.job_grace_s if spec.owner_kind == "job" else ctx.options.node_grace_s) * 1000


def serves(ctx: Context, record: Record) -> bool:
    """Ready by its node's own word of now: a new leader's records may be old."""
    return takes_requests(record) and record.status.get("phase") == "ready" and ctx.connected(str(record.spec["node"]))


def takes_requests(record: Record) -> bool:
    """Ready, or ready when its node fell silent: then the gateway's own health checks decide."""
    status = record.status
    if status.get("ending") or not status.get("port"):
        return False
    return status.get("phase") == "ready" or (status.get("phase") == "unknown" and status.get("was") == "ready")


def relied_on(ctx: Context, record: Record) -> bool:
    """Whether another may be taken away because this one serves: ready now, and in the gateway for a moment."""
    routed_ms = ctx.services.publisher.routed_ms(record.uid)
    return serves(ctx, record) and routed_ms is not None and routed_ms >= ctx.options.settle_s * 1000


def ending(ctx: Context, record: Record, why: str) -> Update:
    """It is wanted no more: out of the gateway first when requests may reach it, else stopped at once."""
    routed = record.status.get("phase") in ("ready", "unready", "unknown") and record.status.get("port")
    if spec_of(ctx, record).owner_kind == "job":
        routed = False
    status = {**record.status, "ending": why, "reason": why, "phase": "draining" if routed else "stopping"}
    status["drain_ms"] = ctx.now_ms
    return Update(record, status=status)


def failed_start(record: Record) -> bool:
    """Whether it ended by itself before it was ever ready."""
    status = record.status
    return (
        status.get("phase") == "exited" and not status.get("ready_ms") and not status.get("ending") and not lost(record)
    )


def lost(record: Record) -> bool:
    """Whether it ended with its node rather than by itself: neither code nor signal is known."""
    end = record.status.get("exit") or {}
    return bool(end.get("lost"))


def last_log(ctx: Context, record: Record) -> str:
    found = ctx.reports.get(record.uid)
    return (found[1].last_log if found is not None else "") or str(record.status.get("last_log", ""))


def forgotten(ctx: Context, record: Record) -> bool:
    """Whether its record may go: it has ended, and its node has let go of its log, or is away for longer."""
    node = str(record.spec.get("node"))
    if record.status.get("phase") != "exited" or record.uid in ctx.reports:
        return False
    return ctx.connected(node) or node not in ctx.nodes or ctx.silent_ms(node) >= ctx.options.job_grace_s * 1000


def deletions(ctx: Context, records: list[Record]) -> list[Op]:
    return [Delete(record) for record in records if forgotten(ctx, record)]


# -- observing


def _look(ctx: Context, record: Record) -> dict[str, Any]:
    try:
        spec_of(ctx, record)
        node = record.spec["node"]
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        # Nobody can say what it is, so nobody can want it: its node is told to end what it may be.
        ctx.say_once(record, f"its record cannot be read ({type(error).__name__})")
        return _gone(ctx, dict(record.status), "its record cannot be read")
    return _observe(ctx, record, str(node))


def _observe(ctx: Context, record: Record, node: str) -> dict[str, Any]:
    status = dict(record.status)
    if node not in ctx.nodes or (ctx.nodes[node].deleting and missing(ctx, record)):
        return _gone(ctx, status, f"node {node} was removed from the cell")
    if not ctx.connected(node):
        view = ctx.views.get(node)
        reached = view is not None and view.connected
        if ctx.settled(node) and not reached and not status.get("ending") and status.get("phase") != "unknown":
            status.update(was=status["phase"], phase="unknown", unknown_ms=ctx.now_ms, reason=f"{node} is unreachable")
        return status
    found = ctx.reports.get(record.uid)
    if found is not None:
        return _merge(ctx, status, found[1])
    if status.get("seen"):
        return _gone(ctx, status, f"node {node} knows nothing of it any more")
    if status.get("ending"):
        # An order to start it may still be under way: of work that must not run twice that is waited for.
        if spec_of(ctx, record).exclusive and ctx.lasted_ms("unseen", record.uid) < grace_ms(ctx, record):
            return status
        return _gone(ctx, status, "it was stopped before it started")
    if status.get("phase") == "unknown":
        status.update(phase="placed", reason="")
        status.pop("was", None)
    return status


def _merge(ctx: Context, status: dict[str, Any], report: ReplicaReport) -> dict[str, Any]:
    phase = report.phase
    before = status.get("phase")
    fields = report.model_dump(mode="json", exclude=set(CHURNING))
    fields["pid"] = report.pid
    status["seen"] = True
    status.pop("was", None)
    if report.exit is not None:
        exit_ = report.exit
        # By a node's own word (its shim was killed, the cell was stopped), whatever it ended with then.
        fields["exit"]["lost"] = not exit_.out_of_memory and exit_.reason.startswith(("lost", "lease lost"))
    if status.get("ending") and phase != "exited":
        fields["phase"], fields["reason"] = before, status["ending"]
    fields["ready_ms"] = status.get("ready_ms") or report.ready_ms or (ctx.now_ms if phase == "ready" else 0)
    if phase == "starting" and not status.get("starting_ms"):
        status["starting_ms"] = ctx.now_ms
    if phase == "unready" and before != "unready":
        status["unready_ms"] = ctx.now_ms
    if phase == "exited" and before != "exited":
        status["last_log"] = report.last_log
        fields["reason"] = report.reason or (report.exit.describe() if report.exit else "ended")
    status.update(fields)
    return status


def _gone(ctx: Context, status: dict[str, Any], why: str) -> dict[str, Any]:
    end = Exit(reason=f"lost: {why}", started_ms=int(status.get("started_ms", 0)), ended_ms=ctx.now_ms)
    status.update(phase="exited", reason=end.reason, exit={**end.model_dump(mode="json"), "lost": True})
    return status


def _advance(ctx: Context, record: Record, status: dict[str, Any]) -> dict[str, Any]:
    if status.get("phase") != "draining":
        return status
    publisher, spec = ctx.services.publisher, spec_of(ctx, record)
    limit_ms = float(record.spec.get("drain_s", 0)) * 1000
    if publisher.is_out(record.uid):
        # Counted from when it was out: what the gateway sent it until then has its time too.
        over = ctx.lasted_ms("out", record.uid) >= limit_ms
        if over or publisher.in_flight(record.uid, spec.workspace, spec.owner) == 0:
            status["phase"] = "stopping"
        return status
    over = ctx.lasted_ms("draining", record.uid) >= limit_ms + ctx.options.drain_margin_s * 1000
    if over and not _needed(ctx, record):
        status.update(phase="stopping", reason=f"{status['ending']}; the gateway confirmed nothing in time")
    return status


def _needed(ctx: Context, record: Record) -> bool:
    """Whether requests that its deployment wants answered may still reach it alone: the gateway took nothing newer."""
    owner = ctx.mirror.get(str(record.owner_uid))
    if owner is None or owner.deleting or spec_of(ctx, record).exclusive:
        return False
    return bool(owner.status.get("wanted")) and owner.status.get("state") != "failed"


def _note_crashes(ctx: Context, ops: list[Op]) -> None:
    for op in ops:
        if not isinstance(op, Update) or op.status is None or op.status.get("phase") != "exited":
            continue
        end = op.status.get("exit") or {}
        if op.status.get("ending") or end.get("lost"):
            continue
        ready_ms = int(op.status.get("ready_ms") or 0)
        key = crash_key(op.record)
        ctx.memory.crash.fail(key, ctx.tick_ms, fresh=ready_ms > 0 and ctx.now_ms - ready_ms >= 10_000)


def crash_key(record: Record) -> str:
    """Failures are counted by release, and by worker of a job."""
    return f"{record.owner_uid}/{record.spec.get('release', 0)}/{record.spec.get('worker', 0)}"


# -- orders


def _order(ctx: Context, record: Record, budget: dict[str, int]) -> None:
    node = str(record.spec.get("node"))
    if not ctx.connected(node) or budget.get(node, 0) <= 0:
        return
    try:
        budget[node] -= _order_one(ctx, record, node)
    except (StaleEpoch, Unavailable, Busy, Timeout):
        raise
    except LeptonError as error:
        _refuse(ctx, record, error)


def _order_one(ctx: Context, record: Record, node: str) -> int:
    status, fleet, epoch = record.status, ctx.services.fleet, ctx.lease.epoch
    found = ctx.reports.get(record.uid)
    if status.get("phase") == "exited":
        if found is None:
            return 0
        verb = "forget" if found[1].phase == "exited" else "stop"
    elif status.get("phase") == "stopping":
        verb = "stop" if found is not None and found[1].phase != "exited" else ""
    else:
        verb = "" if found is not None or status.get("ending") or status.get("seen") else "apply"
    if verb == "apply" and (why := ctx.views[node].refused.get(record.uid)) is not None:
        raise Failed(f"{node} does not run it: {why}")
    if not verb or not _due(ctx, verb, record.uid):
        return 0
    if verb == "apply":
        fleet.apply(node, _resolved(ctx, record), epoch)
    elif verb == "stop":
        fleet.stop(node, record.uid, None, epoch)
    else:
        try:
            spec = spec_of(ctx, record)
        except (ValidationError, KeyError, TypeError):
            spec = None
        fleet.forget(node, record.uid, epoch, spec)
    return 1


def _due(ctx: Context, verb: str, uid: str) -> bool:
    sent_ms = ctx.memory.sent.get((verb, uid))
    if sent_ms is not None and ctx.tick_ms - sent_ms < ctx.options.resend_s * 1000:
        return False
    ctx.memory.sent[(verb, uid)] = ctx.tick_ms
    return True


def _resolved(ctx: Context, record: Record) -> ReplicaSpec:
    """The order as the node gets it: with secrets and fetch headers, which are never recorded."""
    spec = spec_of(ctx, record)
    env = dict(spec.env)
    for name, secret in record.spec.get("secrets", {}).items():
        env[name] = ctx.services.secret(record.workspace, secret)
    blobs = []
    for blob in spec.blobs:
        url, headers = ctx.services.blob_url(blob.ref.digest)
        blobs.append(FetchBlob(ref=blob.ref, url=url, headers=headers))
    return spec.model_copy(update={"env": env, "blobs": tuple(blobs)})


def _refuse(ctx: Context, record: Record, error: LeptonError) -> None:
    """It cannot be ordered (a secret does not exist), or its node does not take it: that is how it ended."""
    end = Exit(reason=error.message, ended_ms=ctx.now_ms)
    status = {**record.status, "phase": "exited", "reason": error.message, "last_log": error.message}
    status["exit"] = {**end.model_dump(mode="json"), "lost": False}
    ops: list[Op] = [Update(record, status=status)]
    _note_crashes(ctx, ops)
    ctx.write_each(ops)
