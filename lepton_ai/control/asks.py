"""What work asks of the scheduler: a request for one of its replicas, with whose it is and beside whom it may stand.

Owns the names of groups of work ("WORKSPACE/NAME": a deployment, or jobs of a title) and who stands where by them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Record
from lepton_ai.scheduler.snapshot import Request
from lepton_ai.spec.container import Owned
from lepton_ai.spec.workload import Template


def ask(
    ctx: Context,
    owner: Record,
    spec: Owned,
    template: Template,
    uid: str,
    group: str = "",
    per_node: int | None = None,
    prefer: str = "",
) -> Request:
    """The request for one replica of `template`, which is of `owner`."""
    avoid = {f"{owner.workspace}/{name}" for name in template.avoid}
    mine = group_of(owner.workspace, title(owner))
    if ctx.shy:
        avoid |= ctx.shy.get(mine, frozenset())
    return replace(
        Request.of(uid, template, group, per_node, prefer),
        reservation=reservation(ctx, owner.workspace, template),
        avoid=frozenset(avoid - {mine}),
        near=frozenset(f"{owner.workspace}/{name}" for name in template.near),
        priority=spec.rank,
        workspace=owner.workspace,
    )


def reservation(ctx: Context, workspace: str, template: Template) -> str:
    """The reservation that the work names; one that is another workspace's is not its to name."""
    name = template.reservation
    return name if not name or ctx.reservations.get(name) in (None, workspace) else f"{name} (of another workspace)"


def company(ctx: Context, request: Request) -> Mapping[str, Mapping[str, int]]:
    """How many of the groups that `request` avoids or likes stand on each node, those of this pass included."""
    wanted = request.avoid | request.near
    if not wanted:
        return {}
    ctx.flush()  # what this pass placed counts
    found: dict[str, dict[str, int]] = {}
    for record in ctx.mirror.running():
        owner = ctx.mirror.get(str(record.owner_uid))
        if owner is not None and (group := group_of(owner.workspace, title(owner))) in wanted:
            counts = found.setdefault(group, defaultdict(int))
            counts[str(record.spec.get("node"))] += 1
    return found


def group_of(workspace: str, name: str) -> str:
    return f"{workspace}/{name}"


def title(owner: Record) -> str:
    """What others call it: a deployment's name, and a job's title (its own name nobody knows beforehand)."""
    return str(owner.spec.get("title") or owner.name) if owner.kind == "job" else owner.name
