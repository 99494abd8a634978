"""Orders: what nodes are told so that their replicas are as recorded. Lost orders are repeated, doubled ones harmless.

Owns what an order holds beyond the record: secrets, logins, fetch headers, where volumes lie and where worker 0 of a
job is. All of it is looked up when the order is sent, and never recorded.
"""

from __future__ import annotations

from pydantic import ValidationError

from lepton_ai.control import rendezvous, replicas
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Op, Record, Update
from lepton_ai.errors import Busy, Failed, LeptonError, StaleEpoch, Timeout, Unavailable
from lepton_ai.spec.container import Mount
from lepton_ai.spec.replica import Exit, FetchBlob, ReplicaSpec


def order(ctx: Context) -> None:
    """Send every node what it should do and does not do yet; lost orders are repeated after a while."""
    budget = {name: ctx.options.max_orders_per_pass for name in ctx.views}
    # Of those that ended only what a node still holds is of interest.
    held = [record for uid in ctx.reports if (record := ctx.mirror.get(uid)) and record.status.get("phase") == "exited"]
    ctx.each([*ctx.mirror.running(), *held], lambda record: _order(ctx, record, budget))
    for uid, (node, report) in ctx.reports.items():
        if ctx.mirror.get(uid) is not None or budget.get(node, 0) <= 0:
            continue
        # Nobody's: its record is gone (a deleted deployment, a node that was away for long), or its job rests.
        verb = "forget" if report.phase == "exited" else "stop"
        if _due(ctx, verb, uid):
            budget[node] -= 1
            if verb == "forget":
                ctx.services.fleet.forget(node, uid, ctx.lease.epoch, _known(ctx, uid))
            else:
                ctx.services.fleet.stop(node, uid, None, ctx.lease.epoch)
    horizon_ms = ctx.tick_ms - 60_000
    ctx.memory.sent = {key: sent for key, sent in ctx.memory.sent.items() if sent > horizon_ms}


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
    if verb == "apply" and rendezvous.waits(ctx, record):
        return 0
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
            spec = replicas.spec_of(ctx, record)
        except (ValidationError, KeyError, TypeError):
            spec = None
        fleet.forget(node, record.uid, epoch, spec)
    return 1


def _known(ctx: Context, uid: str) -> ReplicaSpec | None:
    """Whose log a node still holds, when that is recorded but not kept in memory; None: nobody's."""
    for record in ctx.mirror.read(uid):
        try:
            return ReplicaSpec.model_validate(record.spec["replica"])
        except (ValidationError, KeyError, TypeError):
            break
    return None


def _due(ctx: Context, verb: str, uid: str) -> bool:
    sent_ms = ctx.memory.sent.get((verb, uid))
    if sent_ms is not None and ctx.tick_ms - sent_ms < ctx.options.resend_s * 1000:
        return False
    ctx.memory.sent[(verb, uid)] = ctx.tick_ms
    return True


def _resolved(ctx: Context, record: Record) -> ReplicaSpec:
    """The order as the node gets it. Raises LeptonError when something that it names is not to be had."""
    spec, services, workspace = replicas.spec_of(ctx, record), ctx.services, record.workspace
    env = {**rendezvous.environment(ctx, record), **spec.env}
    for name, secret in record.spec.get("secrets", {}).items():
        env[name] = services.secret(workspace, secret)
    blobs = []
    for blob in spec.blobs:
        url, headers = services.blob_url(blob.ref.digest)
        blobs.append(FetchBlob(ref=blob.ref, url=url, headers=headers))
    user = str(record.spec.get("user") or "")
    mounts = [
        services.mount(
            workspace,
            user,
            Mount(volume=item.volume, path=item.path, target=item.target, read_only=item.read_only),
        )
        for item in spec.mounts
    ]
    logins = [services.login(workspace, name) for name in record.spec.get("logins", ())]
    found = {"env": env, "blobs": tuple(blobs), "mounts": tuple(mounts), "logins": tuple(logins)}
    return spec.model_copy(update=found)


def _refuse(ctx: Context, record: Record, error: LeptonError) -> None:
    """It cannot be ordered (a secret does not exist), or its node does not take it: that is how it ended."""
    end = Exit(reason=error.message, ended_ms=ctx.now_ms)
    status = {**record.status, "phase": "exited", "reason": error.message, "last_log": error.message}
    status["exit"] = {**end.model_dump(mode="json"), "lost": False}
    ops: list[Op] = [Update(record, status=status)]
    replicas.note_crashes(ctx, ops)
    ctx.write_each(ops)
