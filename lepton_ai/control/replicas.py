"""One running copy: how it comes to be, what its node says of it, and how it leaves.

Owns the records of kind "replica": spec = {replica, node, release, secrets, logins, user, drain_s, attempt, ...},
status = what is known. A replica that is wanted no more has `ending` (why) in its status: draining (out of the
gateway, requests finish) -> stopping (told to its node) -> exited. Whether it is wanted is decided by deployments and
jobs; telling its node is `orders`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from lepton_ai.control import rendezvous
from lepton_ai.control.asks import group_of, title
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Create, Delete, Op, Record, Update, changed
from lepton_ai.scheduler.snapshot import ports_of
from lepton_ai.spec.replica import Exit, FetchBlob, MountOrder, ReplicaReport, ReplicaSpec
from lepton_ai.spec.workload import Template

CHURNING = frozenset({"cpu_milli", "memory_mib", "last_log", "uid"})


def reconcile(ctx: Context) -> None:
    """Take in the reports, move what drains, and reserve room for everything that may still run."""
    ops: list[Op] = []
    ctx.each(
        ctx.mirror.running(), lambda record: ops.extend(changed(record, _advance(ctx, record, _look(ctx, record))))
    )
    note_crashes(ctx, ops)
    ctx.write_each(ops)
    ctx.each(ctx.mirror.running(), lambda record: _reserve(ctx, record))


def creation(ctx: Context, owner: Record, template: Template, node: str, values: dict[str, Any]) -> Create:
    """The record of a new replica. `values` go into its spec; "order" of it holds fields of the ReplicaSpec."""
    uid = ctx.services.new_uid()
    release, worker = int(values.get("release", 0)), int(values.get("worker", 0))
    name = f"{owner.name}-{release or worker}-{uid.replace('-', '')[-8:]}"
    fields: dict[str, Any] = {
        "env": template.env,
        "port": template.port,
        "ports": template.ports,
        # Where a volume lies is known when the order is sent.
        "mounts": tuple(
            MountOrder(volume=item.volume, path=item.path, target=item.target, read_only=item.read_only)
            for item in template.mounts
        ),
        "devices": tuple(values.pop("devices", ())),
        **values.pop("order", {}),
    }
    spec = ReplicaSpec(
        uid=uid,
        workspace=owner.workspace,
        name=name,
        owner_kind=owner.kind,
        owner=owner.name,
        release=release,
        worker=worker,
        command=template.command,
        image=template.image,
        blobs=tuple(FetchBlob(ref=ref, url="") for ref in template.blobs),
        resources=template.resources,
        shared_memory_mib=template.shared_memory_mib,
        health=template.health,
        grace_s=template.grace_s,
        exclusive=template.exclusive,
        **fields,
    )
    stored = {
        "replica": spec.model_dump(mode="json"),
        "node": node,
        "secrets": dict(template.secrets),
        "logins": list(template.image_pull_secrets),
        "user": str(owner.spec.get("created_by") or ""),
        "drain_s": template.drain_s,
        **values,
    }
    if template.avoid:  # so that those it avoids keep away from it too
        stored["avoid"] = list(template.avoid)
        _warn(ctx, owner.workspace, template.avoid, title(owner))
    ctx.reserve(node, template.resources, ports_of(spec.port, spec.ports), name, owner.workspace, spec.devices)
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
    patient = spec.owner_kind == "job" or record.spec.get("pod")  # what is lost with it is more than a moment's service
    return (ctx.options.job_grace_s if patient else ctx.options.node_grace_s) * 1000


def serves(ctx: Context, record: Record) -> bool:
    """Ready by its node's own word of now: a new leader's records may be old."""
    return takes_requests(record) and record.status.get("phase") == "ready" and ctx.connected(str(record.spec["node"]))


def takes_requests(record: Record) -> bool:
    """Ready, or ready when its node fell silent: then the gateway's own health checks decide."""
    return is_up(record) and bool(record.status.get("port"))


def is_up(record: Record) -> bool:
    """Whether it does what it is for: as `takes_requests`, also for what no request is sent to."""
    status = record.status
    if status.get("ending"):
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


def _reserve(ctx: Context, record: Record) -> None:
    """Room for it, and its ports unless it is given up: then its node may be gone, and nobody else's port with it."""
    spec = spec_of(ctx, record)
    ports = [] if missing(ctx, record) else ports_of(spec.port, spec.ports)
    if ports or (record.status.get("port") and not missing(ctx, record)):
        ports += [int(record.status.get("port") or 0)]
    ctx.reserve(str(record.spec["node"]), spec.resources, ports, record.name, record.workspace, spec.devices)
    if record.spec.get("avoid"):
        owner = ctx.mirror.get(str(record.owner_uid))
        _warn(ctx, record.workspace, record.spec["avoid"], spec.owner if owner is None else title(owner))


def _warn(ctx: Context, workspace: str, others: Iterable[str], name: str) -> None:
    """Those that it avoids keep away from it too."""
    for other in others:
        group = group_of(workspace, other)
        ctx.shy[group] = ctx.shy.get(group, frozenset()) | {group_of(workspace, name)}


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
        if found[1].image == "advisory" and status.get("image") != "advisory":
            _note_image(ctx, record)
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
    if rendezvous.waits(ctx, record):
        status["reason"] = "waits until worker 0 has its port"
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


def _note_image(ctx: Context, record: Record) -> None:
    """Say once for a release, or a job, that its image is not what runs."""
    release, owner_uid = record.spec.get("release"), str(record.owner_uid)
    owner = ctx.mirror.get(owner_uid)
    for copy in ctx.mirror.owned("replica", owner_uid):
        if copy.status.get("image") == "advisory" and copy.spec.get("release") == release:
            return
    if owner is None or ctx.memory.said.get(f"{owner_uid}#{release}") == "image":
        return
    ctx.memory.said[f"{owner_uid}#{release}"] = "image"
    image = str(spec_of(ctx, record).image)[:200]
    text = f"image {image} is not used: nodes of this cell run processes (runtime=process://)"
    ctx.event(owner, "ImageNotUsed", text, warning=True)


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


def note_crashes(ctx: Context, ops: list[Op]) -> None:
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
