"""Who waits for room in a pass: in which order it is offered to them, what is kept for whom, and who gives way.

Owns the line. Everything that found no room, deployments and jobs of all workspaces alike, is offered room in the
order of `scheduler.fair`; in a workspace what serves goes before jobs of its priority. What can preempt and finds
none makes a claim: `status["claim"]` of the one that waits names the nodes and the victims, it is recorded together
with their end, and nobody else gets that room, whoever leads. For the first that cannot help itself, room is kept as
it becomes free (as EASY backfilling does: Lifka 1995); jobs behind it start where that does not delay it. One that
would not fit when every job had ended holds up nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from lepton_ai.control import replicas
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Op, Record
from lepton_ai.control.reservations import masked
from lepton_ai.control.rest import finished
from lepton_ai.scheduler.fair import Claim, fair, lenders
from lepton_ai.scheduler.feasible import feasible
from lepton_ai.scheduler.preempt import Preemption, awaited, preempt
from lepton_ai.scheduler.snapshot import Request, Snapshot, amounts
from lepton_ai.scheduler.without import Held
from lepton_ai.spec.container import Owned
from lepton_ai.spec.workload import DeploymentSpec, JobSpec

SERVES_MS = 1 << 50
"""So much older than it is counts what serves, so that it goes before jobs of its priority."""
TRIES, PREEMPTIONS = 64, 8
"""So many kinds of jobs are tried in one pass behind one that waits, and so often it is asked who gives way."""

Amounts = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Room:
    """What follows when something found no room: whom it ends (`ops`), its claim, and what it waits for."""

    reason: str
    ops: tuple[Op, ...] = ()
    claim: dict[str, Any] | None = None
    notes: tuple[tuple[Record, str, str], ...] = ()

    def tell(self, ctx: Context) -> None:
        """After `ops` were written: say so on both sides."""
        for record, reason, text in self.notes:
            ctx.event(record, reason, text, warning=reason == "Preempted")


@dataclass
class Line:
    """The line of one pass."""

    ctx: Context
    waiting: dict[str, Record] = field(default_factory=dict)
    turn: str = ""
    ahead: Record | None = None
    _booked: dict[str, dict[str, Amounts]] = field(default_factory=dict)
    _ports: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    _claims: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _kept: dict[str, Amounts] = field(default_factory=dict)
    _failed: set[object] = field(default_factory=set)
    _total: list[int] | None = None
    _seen: tuple[int, Snapshot] | None = None
    _preemptions: int = 0
    _held: list[Held] | None = None

    @classmethod
    def of(cls, ctx: Context) -> Line:
        """The line as the last pass left it; what is claimed is booked before anything is placed."""
        line = cls(ctx)
        for record in ctx.mirror.list("deployment"):
            if record.status.get("lacks") and not record.deleting:
                line.waiting[record.uid] = record
        for record in ctx.mirror.list("job"):
            if _queued(record, ctx.now_ms):
                line.waiting[record.uid] = record
        for record in line.waiting.values():
            if record.status.get("claim"):
                line._book(record.uid, record.status["claim"])
        return line

    def defers(self, record: Record) -> bool:
        """Whether it is not its turn: others wait too. It is taken into the line then."""
        if self.turn == record.uid or not self.waiting or set(self.waiting) == {record.uid}:
            return False
        self.waiting[record.uid] = record
        return True

    def serve(self, take: Mapping[str, Callable[[Context, Record, Line], None]]) -> None:
        """Offer room to everything that waits, by kind; a pass that changes very much leaves the rest to the next."""
        ctx, written = self.ctx, self.ctx.writes
        for record in self.order():
            if ctx.writes - written >= ctx.options.max_changed_per_pass:
                break
            ctx.each([record], lambda item: take[item.kind](ctx, item, self))
        self.turn = ""
        ctx.memory.ahead = "" if self.ahead is None else self.ahead.uid

    def order(self) -> Iterator[Record]:
        """Everything that waits, one after the other, each at its turn."""
        ctx = self.ctx
        claims = [claim for record in self.waiting.values() if (claim := self._claim(record)) is not None]
        if not claims:
            return
        order = list(fair(self._whole(), ctx.held, claims, ctx.weights))
        self._first_again(order)
        for claim in order:
            self.turn = claim.uid
            yield self.waiting[claim.uid]

    # -- room

    def release(self, record: Record) -> None:
        """Its own claim does not stand in its way while it is being placed."""
        self._claims.pop(record.uid, None)
        for address, port in self._ports.pop(record.uid, ()):
            self.ctx.ports[address].pop(port, None)
        for node, held in self._booked.pop(record.uid, {}).items():
            self.ctx.hold(node, (-held[0], -held[1], -held[2]))

    def snapshot(self, groups: Mapping[str, Mapping[str, int]] | None = None) -> Snapshot:
        """The cell as jobs see it: without what is kept for the one ahead."""
        if groups:
            found = self.ctx.snapshot(groups)
        else:  # many are tried, and few of them change anything
            if self._seen is None or self._seen[0] != self.ctx.holds:
                self._seen = (self.ctx.holds, self.ctx.snapshot())
            found = self._seen[1]
        return found.holding(self._kept) if self._kept else found

    def spent(self, record: Record, spec: JobSpec) -> bool:
        """Whether there is no point in trying: its like found no room in this pass, or enough have been tried."""
        return _kind(record, spec) in self._failed or len(self._failed) >= TRIES

    def hopeless(self, record: Record, spec: JobSpec, snapshot: Snapshot, choices: Sequence[Sequence[Request]]) -> bool:
        """Whether it is behind another and not one of its workers fits anywhere: then it need not be asked why."""
        if self.ahead is None or spec.can_preempt or record.status.get("claim"):
            return False
        if any(feasible(snapshot, requests[0]).any() for requests in choices):
            return False
        self._failed.add(_kind(record, spec))
        return True

    def behind(self, record: Record, reason: str = "") -> str:
        """What a job waits for that is behind another."""
        if self.ahead is None or self.ahead.uid == record.uid:
            return reason or str(record.status.get("reason") or "waits for its turn")
        return f"waits behind {named(self.ahead, record)}" + (f": {reason}" if reason else "")

    def room(
        self, record: Record, spec: Owned, snapshot: Snapshot, choices: Sequence[Sequence[Request]], reason: str
    ) -> Room:
        """What follows for one that found no room. `choices`: the requests, in the ways in which they may be met."""
        reason = self.words(record, reason)
        claim = record.status.get("claim")
        if claim and (left := self._ending(claim)):
            self._book(record.uid, claim)
            on = ", ".join(sorted({str(copy.spec["node"]) for copy in left}))
            count = f"{len(left)} replicas that give" if len(left) > 1 else "a replica that gives"
            return Room(f"waits for {count} way on {on} to end", claim=claim)
        if spec.can_preempt and self._preemptions < PREEMPTIONS:
            self._preemptions += 1
            for requests in choices:
                found = preempt(snapshot, requests, self._unclaimed(), self._lenders(record, requests))
                if found is not None and found.victims:
                    return self._take(record, spec, found)
        if isinstance(spec, JobSpec):
            self._failed.add(_kind(record, spec))
        if self.ahead is None:
            for requests in choices:
                found = awaited(
                    snapshot, requests, [held for held in self._unclaimed() if held.keep < 0 or held.ending]
                )
                if found is not None:
                    self._keep(found)
                    self.ahead = record
                    break
        return Room(self.behind(record, reason))

    def words(self, record: Record, reason: str) -> str:
        """`reason` as whoever sees the record may read it."""
        return masked(reason, self.ctx.reservations, record.workspace)

    def held(self) -> list[Held]:
        """Everything that runs and may be asked to go, or ends by itself (`keep` below 0: a job's)."""
        if self._held is None:
            self._held = [held for copy in self.ctx.mirror.running() if (held := self._describe(copy)) is not None]
        return self._held

    # -- within

    def _claim(self, record: Record) -> Claim | None:
        try:
            if record.kind == "job":
                job = self.ctx.mirror.parse(record, JobSpec)
                return Claim(record.uid, record.workspace, _times(job, job.workers), job.rank, record.created_ms)
            spec = self.ctx.mirror.parse(record, DeploymentSpec)
        except ValidationError:
            return Claim(record.uid, record.workspace, (0, 0, 0), 0, record.created_ms)
        count = int(record.status.get("lacks") or 1)
        return Claim(record.uid, record.workspace, _times(spec, count), spec.rank, record.created_ms - SERVES_MS)

    def _first_again(self, order: list[Claim]) -> None:
        """Who was ahead stays ahead of other jobs, or two would wait for ever by turns; but for its betters."""
        at = next((i for i, claim in enumerate(order) if claim.uid == self.ctx.memory.ahead), None)
        if at is None or order[at].since_ms < 0:
            return
        own = order.pop(at)
        for index, other in enumerate(order):
            better = other.workspace == own.workspace and other.priority > own.priority
            if other.since_ms >= 0 and not better:
                order.insert(index, own)
                return
        order.append(own)

    def _whole(self) -> list[int]:
        """What the nodes that take work have in all."""
        if self._total is None:
            each = [amounts(self.ctx.capacity(self.ctx.nodes[name])) for name in self.ctx.usable_nodes]
            self._total = np.sum(each or [(0, 0, 0)], axis=0).tolist()
        return self._total

    def _lenders(self, record: Record, requests: Sequence[Request]) -> frozenset[str]:
        each = [amounts(request.resources) for request in requests]
        asked = (sum(a[0] for a in each), sum(a[1] for a in each), sum(a[2] for a in each))
        return lenders(self._whole(), self.ctx.held, Claim(record.uid, record.workspace, asked), self.ctx.weights)

    def _take(self, record: Record, spec: Owned, found: Preemption) -> Room:
        """End the victims for `record`, and claim the room that they leave."""
        ctx, ops, ended = self.ctx, list[Op](), Counter[str]()
        ctx.flush()  # who was told to end a moment ago is not told again
        for held in found.victims:
            copy = ctx.mirror.get(held.uid)
            if copy is None or copy.status.get("ending"):
                continue
            why = f"it gives way to {named(record, copy)} (priority {spec.rank})"
            op = replicas.ending(ctx, copy, why)
            mark = {"by": record.uid, "why": why, "ms": ctx.now_ms}
            ops.append(replace(op, status={**(op.status or {}), "preempted": mark}))
            ended[held.owner] += 1
        gone = {held.uid for held in found.victims}
        self._held = [replace(held, ending=True) if held.uid in gone else held for held in self.held()]
        notes = [] if not ops else [(record, "Preempts", f"{found.reason}")]
        for owner_uid, count in ended.items():
            owner = ctx.mirror.get(owner_uid)
            if owner is not None:
                what = f"{count} replicas give" if count > 1 else "a replica gives"
                notes.append((owner, "Preempted", f"{what} way to {named(record, owner)} (priority {spec.rank})"))
        nodes: dict[str, list[int]] = {}
        for item in found.placements:
            into = nodes.setdefault(str(item.node), [0, 0, 0])
            for column, amount in enumerate(amounts(item.request.resources)):
                into[column] += amount
        ports = {str(item.node): sorted(item.request.ports) for item in found.placements if item.request.ports}
        claim = {"nodes": nodes, "victims": sorted(gone), **({"ports": ports} if ports else {})}
        self._book(record.uid, claim)
        return Room(found.reason, tuple(ops), claim, tuple(notes))

    def _book(self, uid: str, claim: Mapping[str, Any]) -> None:
        """Hold the room of a claim, but for what its victims hold of it while they end."""
        left: dict[str, list[int]] = {}
        self._claims[uid] = claim
        for copy in self._ending(claim):
            try:
                own = amounts(replicas.spec_of(self.ctx, copy).resources)
            except (ValidationError, KeyError, TypeError):
                continue
            into = left.setdefault(str(copy.spec["node"]), [0, 0, 0])
            for column, amount in enumerate(own):
                into[column] += amount
        for node, wanted in dict(claim.get("nodes") or {}).items():
            have = left.get(node, [0, 0, 0])
            extra = tuple(max(0, int(want) - less) for want, less in zip(wanted, have, strict=True))
            booked = (extra[0], extra[1], extra[2])
            self._booked.setdefault(uid, {})[node] = booked
            self._book_ports(uid, node, dict(claim.get("ports") or {}).get(node, ()))
            self.ctx.hold(node, booked)

    def _book_ports(self, uid: str, node: str, ports: Sequence[int]) -> None:
        """Those that nobody has any more, or will not have when the victims have ended; until then they have them."""
        address, owner = self.ctx.shared_address(node), self.ctx.mirror.get(uid)
        if not address or not ports or owner is None:
            return
        taken = self.ctx.ports.setdefault(address, {})
        for port in map(int, ports):
            if port not in taken:
                taken[port] = f"{owner.workspace}/{owner.name}"
                self._ports.setdefault(uid, []).append((address, port))

    def _unclaimed(self) -> list[Held]:
        """`held`, but for what those that end leave to claims: it is nobody else's. (One's own is released before.)"""
        owed: dict[tuple[str, str], list[int]] = {}
        for claim in self._claims.values():
            for node, wanted in dict(claim.get("nodes") or {}).items():
                rest = [int(amount) for amount in wanted]
                owed.update(((str(uid), str(node)), rest) for uid in claim.get("victims") or ())
        if not owed:
            return self.held()
        found = []
        for held in self.held():
            owing = owed.get((held.uid, held.node)) if held.ending else None
            if owing is None:
                found.append(held)
                continue
            less = [min(have, want) for have, want in zip(held.amounts, owing, strict=True)]
            owing[:] = [want - gone for want, gone in zip(owing, less, strict=True)]
            if not less[2]:  # of accelerators there are no halves to give
                cpu, memory, milli = (have - gone for have, gone in zip(held.amounts, less, strict=True))
                found.append(replace(held, amounts=(cpu, memory, milli)))
        return found

    def _ending(self, claim: Mapping[str, Any]) -> list[Record]:
        """The victims of a claim that have not ended; none when the room could not be used where it is."""
        ctx = self.ctx
        if not set(claim.get("nodes") or ()) <= ctx.usable_nodes:
            return []
        found = [copy for uid in claim.get("victims") or () if (copy := ctx.mirror.get(uid)) is not None]
        return [copy for copy in found if copy.status.get("phase") != "exited" and not replicas.missing(ctx, copy)]

    def _keep(self, found: Preemption) -> None:
        """Keep what becomes free where the one ahead will stand."""
        wanted: dict[str, list[int]] = {}
        for item in found.placements:
            into = wanted.setdefault(str(item.node), [0, 0, 0])
            for column, amount in enumerate(amounts(item.request.resources)):
                into[column] += amount
        for held in found.victims:
            into = wanted.setdefault(held.node, [0, 0, 0])
            for column, amount in enumerate(held.amounts):
                into[column] -= amount
        for node, more in wanted.items():
            self._kept[node] = (max(0, more[0]), max(0, more[1]), max(0, more[2]))

    def _describe(self, copy: Record) -> Held | None:
        ctx, owner = self.ctx, self.ctx.mirror.get(str(copy.owner_uid))
        if owner is None or replicas.missing(ctx, copy):
            return None
        try:
            order = replicas.spec_of(ctx, copy)
            job = ctx.mirror.parse(owner, JobSpec) if owner.kind == "job" else None
            spec = job or ctx.mirror.parse(owner, DeploymentSpec)
        except (ValidationError, KeyError, TypeError):
            return None
        keep = -1
        if isinstance(spec, DeploymentSpec):
            # What must remain when nodes fail is not given away to others either.
            keep = int(owner.status.get("needed") or 0) if spec.survive.get("node") else 0
        reserved = ctx.lent.get(str(copy.spec["node"]), "")
        return Held(
            copy.uid,
            f"{copy.workspace}/{copy.name}",
            str(copy.spec["node"]),
            amounts(order.resources),
            owner.uid,
            owner.workspace,
            spec.rank,
            bool(spec.preemptible),
            gang=job is not None and job.workers > 1,
            keep=keep,
            since_ms=copy.created_ms,
            lent=reserved if reserved != spec.template.reservation else "",
            ending=bool(copy.status.get("ending")),
        )


def named(record: Record, to: Record) -> str:
    """What `record` is called in words that whoever sees `to` reads: nothing of others, and nothing private."""
    if record.workspace != to.workspace:
        return "work of another workspace"
    if record.spec.get("visibility") == "private" and record.uid != to.uid:
        return f"a private {record.kind}"
    return f"{record.kind} {record.name}"


def _queued(record: Record, now_ms: int) -> bool:
    """Whether it is a job that has not begun, as far as its record says."""
    if record.deleting or finished(record) or record.spec.get("stopped"):
        return False
    state = record.status.get("state") or ""
    due = now_ms >= int(record.spec.get("start_at_ms") or 0)
    return state in ("queued", "retrying") or (state in ("", "scheduled") and due)


def _times(spec: JobSpec | DeploymentSpec, count: int) -> Amounts:
    one = amounts(spec.template.resources)
    return one[0] * count, one[1] * count, one[2] * count


def _kind(record: Record, spec: JobSpec) -> object:
    """Jobs of which this is equal find room or none alike."""
    t = spec.template
    rank = spec.rank if spec.can_preempt else None
    workspace = record.workspace if spec.can_preempt or t.reservation or t.avoid else None
    ports = tuple(port.number for port in t.ports if port.exposed)
    where = (t.nodes, tuple(sorted(t.node_labels.items())), t.tolerations, t.reservation, t.burst, t.avoid)
    return (workspace, t.resources, spec.workers, spec.rendezvous, rank, t.port, ports, where)
