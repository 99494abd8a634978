"""What one pass of the loops sees, and how it writes: nodes, reservations, records, time, the leader's lease.

Owns what every kind shares. It knows nothing of deployments or jobs.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lepton_ai.control.backoff import Backoff
from lepton_ai.control.clock import Clock
from lepton_ai.control.mirror import Mirror, Op, Record
from lepton_ai.control.options import Options
from lepton_ai.control.ports import EventSink, Fleet, NodeView
from lepton_ai.control.publish import Publisher
from lepton_ai.errors import Conflict, LeptonError, NotFound, StaleEpoch
from lepton_ai.scheduler.load import Load
from lepton_ai.scheduler.mix import DEVICE_MILLI, Mix
from lepton_ai.scheduler.place import Placement, plan
from lepton_ai.scheduler.placer import Placer
from lepton_ai.scheduler.snapshot import Node, Request, Snapshot, devices_of, taking
from lepton_ai.spec.container import LOCAL, Mount
from lepton_ai.spec.replica import MountOrder, RegistryLogin, ReplicaReport
from lepton_ai.spec.workload import Resources, Template
from lepton_ai.store import Lease

SAID_KEPT = 1000
SOON_MOST = 256
_log = logging.getLogger(__name__)


def local_mount(workspace: str, user: str, mount: Mount) -> MountOrder:
    """A mount in a cell without volumes: the folder that every node has for a workspace."""
    if mount.volume != LOCAL:
        raise NotFound(f"workspace {workspace} has no volume {mount.volume!r}", hint=f"volumes: {LOCAL}")
    return MountOrder(volume=LOCAL, path=mount.path, target=mount.target, read_only=mount.read_only)


def no_login(workspace: str, name: str) -> RegistryLogin:
    """A login in a cell that keeps none."""
    raise NotFound(f"no image-pull secret {name!r} in workspace {workspace!r}", hint="this cell keeps none")


@dataclass(slots=True)
class Services:
    """What the composition root hands in; lives as long as the loop."""

    mirror: Mirror
    fleet: Fleet
    publisher: Publisher
    clock: Clock
    options: Options
    rng: random.Random
    new_uid: Callable[[], str]
    secret: Callable[[str, str], str]
    blob_url: Callable[[str], tuple[str, dict[str, str]]]
    unseal: Callable[[str, str], str]
    events: EventSink | None = None
    mount: Callable[[str, str, Mount], MountOrder] = local_mount
    login: Callable[[str, str], RegistryLogin] = no_login
    monitor_file: Path | None = None


@dataclass(slots=True)
class Memory:
    """What a leader remembers between passes. All of it may be lost: it only spares work or adds patience."""

    crash: Backoff
    trouble: Backoff
    sent: dict[tuple[str, str], int] = field(default_factory=dict)
    lost_since: dict[str, int] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)
    demand: dict[str, Any] = field(default_factory=dict)
    standing: dict[str, Any] = field(default_factory=dict)
    node_written: dict[str, int] = field(default_factory=dict)
    since: dict[tuple[str, str], tuple[object, int]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    swept_ms: int | None = None
    rebalanced_ms: int | None = None
    moves: list[int] | None = None
    moving: set[str] | None = None
    ahead: str = ""
    turn: int = 0


class Context:
    """One pass. Times: `now_ms` UTC (records), `tick_ms` elapsed (waits within this process)."""

    def __init__(self, services: Services, memory: Memory, lease: Lease, leading_since_ms: int) -> None:
        self.services, self.memory, self.lease = services, memory, lease
        self.options, self.mirror = services.options, services.mirror
        self.now_ms, self.tick_ms = services.clock.now_ms(), services.clock.elapsed_ms()
        self.leading_ms = self.tick_ms - leading_since_ms
        self.views: Mapping[str, NodeView] = {}
        self.reports: dict[str, tuple[str, ReplicaReport]] = {}
        self.reserved: dict[str, list[int]] = {}
        self.mix = Mix()
        self._devices: dict[str, dict[int, int]] = {}
        self._anywhere: dict[str, list[int]] = {}
        self._placer: Placer | None = None
        self.holds = 0
        self.held: dict[str, list[int]] = {}
        self.shy: dict[str, frozenset[str]] = {}
        self.ports: dict[str, dict[int, str]] = {}
        self.reservations: dict[str, str] = {}
        self.lent: dict[str, str] = {}
        self.weights: dict[str, float] = {}
        self.nodes: dict[str, Record] = {}
        self.leaving: frozenset[str] = frozenset()
        self.taken: dict[tuple[str | None, int | None], str] = {}
        self.usable_nodes: frozenset[str] = frozenset()
        self.all_settled = self.tainted = False
        self.measured = services.publisher.stats()
        self.loads: Mapping[str, Load] = {}
        self.per_node: dict[str, int | None] = {}
        self.unmoved: dict[str, str] = {}
        self.writes = 0
        self._soon: list[tuple[Record, list[Op]]] = []

    # -- nodes

    def load(self) -> None:
        """Take the nodes' reports, then the records: in this order, so that a reported replica has its record."""
        self.views = dict(self.services.fleet.nodes())
        self.mirror.refresh()
        self.nodes = {record.name: record for record in self.mirror.list("node")}
        self.leaving = frozenset(
            name for name, record in self.nodes.items() if record.deleting or record.spec.get("unschedulable")
        )
        for name, view in self.views.items():
            if name not in self.nodes:
                continue
            if view.connected and view.report is not None:
                self.memory.reported.add(name)
                self.memory.lost_since.pop(name, None)
                for report in view.report.replicas:
                    self.reports[report.uid] = (name, report)
                    if report.port is not None and report.phase != "exited":
                        self.taken[(report.address, report.port)] = report.uid
            else:
                self.memory.lost_since.setdefault(name, self.tick_ms)
        self.tainted = any(record.spec.get("taints") for record in self.nodes.values())
        self.usable_nodes, self.all_settled = self._usable(), all(map(self.settled, self.nodes))
        self.memory.since = {key: known for key, known in self.memory.since.items() if self.mirror.get(key[1])}
        if len(self.memory.said) > SAID_KEPT:
            said = self.memory.said.items()
            self.memory.said = {key: text for key, text in said if self.mirror.get(key.partition("#")[0])}

    def connected(self, node: str) -> bool:
        """Whether the node is there and has said what runs on it."""
        view = self.views.get(node)
        return view is not None and view.connected and view.report is not None

    def settled(self, node: str) -> bool:
        """Whether what the node says, or its silence, may be believed: a new leader gives it a first moment."""
        return node in self.memory.reported or self.leading_ms >= self.options.first_report_s * 1000

    def silent_ms(self, node: str) -> int:
        """How long this leader has been without the node; 0 while it is connected."""
        since = self.memory.lost_since.get(node)
        return 0 if since is None else self.tick_ms - since

    def lasted_ms(self, what: str, uid: str, value: object = None) -> int:
        """For how long this leader has seen that `what` of the record is `value`: 0 at the first look.

        Elapsed time, so that a wall clock that is set shortens and prolongs no wait; a new leader waits anew.
        """
        known = self.memory.since.get((what, uid))
        if known is None or known[0] != value:
            known = self.memory.since[(what, uid)] = (value, self.tick_ms)
        return self.tick_ms - known[1]

    # -- room

    def reserve(
        self,
        node: str,
        resources: Resources,
        ports: Iterable[int] = (),
        name: str = "",
        workspace: str = "",
        devices: Sequence[int] = (),
    ) -> None:
        """Room on the node is spoken for, and where its replicas share its address, so are `ports`, by `name`.

        `workspace`: whose share of the cell it counts to. Without `devices` nobody knows which accelerators it uses.
        """
        if ports and (address := self.shared_address(node)):
            who = f"{workspace}/{name}" if workspace else name
            self.ports.setdefault(address, {}).update(dict.fromkeys(ports, who))
        more = (resources.cpu_milli, resources.memory_mib, resources.accelerator_milli)
        self.mix.add(resources)
        self.hold(node, more, devices)
        if workspace:
            held = self.held.setdefault(workspace, [0, 0, 0])
            for index, amount in enumerate(more):
                held[index] += amount

    def hold(self, node: str, more: tuple[int, int, int], devices: Sequence[int] = ()) -> None:
        """Room on the node is spoken for, in thousandths of a core, MiB and thousandths of an accelerator."""
        self.holds += 1
        used = self.reserved.setdefault(node, [0, 0, 0])
        for index, amount in enumerate(more):
            used[index] += amount
        milli = more[2]
        if devices:
            known = self._devices.setdefault(node, {})
            for device in devices:
                known[device] = known.get(device, 0) + min(milli, DEVICE_MILLI)
        elif milli:
            parts = self._anywhere.setdefault(node, [])
            if -milli in parts:
                parts.remove(-milli)
            else:
                parts.append(milli)
        if self._placer is not None and node in self.nodes:
            self._placer.note(node, used, self._used_devices(node, self.capacity(self.nodes[node])))

    def _used_devices(self, node: str, capacity: Resources) -> tuple[int, ...]:
        """The used thousandths of each accelerator; what is used of unknown ones as tightly as can be."""
        found = devices_of(capacity)
        known = self._devices.get(node)
        if known:
            found = tuple(used + known.get(number, 0) for number, used in enumerate(found))
        for milli in sorted(self._anywhere.get(node, ()), reverse=True):
            found = taking(found, milli)
        return found

    def plan(self, requests: Sequence[Request], groups: Mapping[str, Mapping[str, int]]) -> tuple[Placement, ...]:
        """Where `requests` would go now, as by `place`. Nothing is reserved: that is `reserve`, for what is recorded.

        One engine serves the whole pass, so that a decision costs what it costs and not a look at every node.
        """
        if self._placer is None:
            self._placer = Placer(self.snapshot())
        self._placer.groups = {name: dict(counts) for name, counts in groups.items()}
        self._placer.taken = self.ports
        found = plan(self._placer, requests)
        for placement in reversed(found):
            self._placer.undo(placement)
        return found

    def snapshot(self, groups: Mapping[str, Mapping[str, int]] | None = None) -> Snapshot:
        """The cell as the scheduler sees it now, with everything that this pass has reserved so far."""
        taken = {address: dict(ports) for address, ports in self.ports.items()}
        if self._placer is not None:
            return replace(self._placer.snapshot(), groups=groups or {}, taken=taken, mix=self.mix)
        nodes = []
        for record in self.nodes.values():
            name, used = record.name, self.reserved.get(record.name, [0, 0, 0])
            capacity, address = self.capacity(record), self.shared_address(name)
            load = self.loads.get(name)
            nodes.append(
                Node(
                    name,
                    capacity,
                    (used[0], used[1], used[2]),
                    self.blocked(record),
                    address,
                    labels=record.spec.get("labels") or {},
                    taints=frozenset(record.spec.get("taints") or ()),
                    reservation=self.lent.get(name, ""),
                    devices=self._used_devices(name, capacity),
                    planned=0.0 if load is None else load.s,
                    limit=1.0 if load is None else load.limit,
                )
            )
        return Snapshot.of(nodes, groups, taken, self.mix)

    def shared_address(self, node: str) -> str:
        """The address whose ports all replicas of the node share; "" when each has ports of its own."""
        view, record = self.views.get(node), self.nodes.get(node)
        if view is not None and view.report is not None:
            return "" if view.report.forwards else view.report.address
        status = {} if record is None else record.status
        return "" if status.get("forwards", True) else str(status.get("address") or "")

    def blocked(self, record: Record) -> str:
        """Why nothing new may be placed on the node, or ""."""
        if record.deleting:
            return "is being removed"
        if record.spec.get("unschedulable"):
            return "drained by its owner"
        if not self.connected(record.name):
            view = self.views.get(record.name)
            return "unreachable" + (f": {view.reason}" if view is not None and view.reason else "")
        return ""

    def usable_for(self, template: Template) -> int:
        """How many of the nodes that replicas of `template` may stand on take work."""
        names = self.usable_nodes.intersection(template.nodes) if template.nodes else self.usable_nodes
        if not (template.node_labels or template.reservation or self.lent or self.tainted):
            return len(names)
        wanted, bears = template.node_labels.items(), frozenset(template.tolerations)
        return sum(
            wanted <= (self.nodes[name].spec.get("labels") or {}).items()
            and frozenset(self.nodes[name].spec.get("taints") or ()) <= bears
            and (template.burst or self.lent.get(name, "") == template.reservation)
            for name in names
        )

    def _usable(self) -> frozenset[str]:
        """The nodes that take work, those that fell silent a moment ago included: they mostly come back."""
        grace_ms = self.options.node_grace_s * 1000
        return frozenset(
            name
            for name in self.nodes
            if name not in self.leaving and (self.connected(name) or self.silent_ms(name) < grace_ms)
        )

    def capacity(self, record: Record) -> Resources:
        """What the node has for replicas, by its own word or the last that is known."""
        view = self.views.get(record.name)
        if view is not None and view.report is not None:
            return view.report.capacity
        try:
            return Resources.model_validate(record.status.get("capacity") or record.spec.get("capacity") or {})
        except ValidationError:
            return Resources()  # it is blocked anyway while it says nothing better

    # -- writing

    def write(self, *ops: Op) -> list[Record | None]:
        """Together or not at all. Raises Conflict and StaleEpoch."""
        if not ops:
            return []
        self.flush()
        self.writes += 1
        return self.mirror.write(ops, self.lease)

    def write_each(self, ops: Iterable[Op]) -> None:
        listed = list(ops)
        self.flush()
        self.writes += bool(listed)
        self.mirror.write_each(listed, self.lease)

    def write_soon(self, record: Record, ops: Iterable[Op]) -> None:
        """As `write_each`, in one transaction with what its neighbours write: whoever calls it for many must `flush`.

        A transaction waits for the disk, so a pass that places replicas of a thousand deployments needs few of them.
        """
        listed = list(ops)
        if not listed:
            return
        self.writes += 1
        self._soon.append((record, listed))
        if sum(len(known) for _, known in self._soon) >= SOON_MOST:
            self.flush()

    def flush(self) -> None:
        """Write what waits in `write_soon`. What goes wrong with one record's part is that record's trouble."""
        soon, self._soon = self._soon, []
        if not soon:
            return
        try:
            self.mirror.write_each([op for _, ops in soon for op in ops], self.lease)
        except StaleEpoch:
            raise
        except Exception as error:  # noqa: BLE001 - one bad record never stops the others
            _log.warning("%d records are written one by one: %s", len(soon), error)
            for record, ops in soon:
                self.each([record], lambda _, ops=ops: self.mirror.write_each(ops, self.lease))  # type: ignore[misc]

    def each(self, records: Iterable[Record], act: Callable[[Record], None]) -> None:
        """`act` on every record; one that fails is left alone for a while and never stops the others."""
        for record in records:
            if self.memory.trouble.wait_ms(record.uid, self.tick_ms) > 0:
                continue
            try:
                act(record)
            except StaleEpoch:
                raise
            except Conflict as error:  # somebody changed it meanwhile: the next pass decides anew
                _log.debug("%s %s/%s: %s", record.kind, record.workspace, record.name, error.message)
            except Exception as error:  # noqa: BLE001 - one bad record never stops a loop
                self.memory.trouble.fail(record.uid, self.tick_ms)
                if isinstance(error, LeptonError):
                    _log.warning("%s %s/%s: %s", record.kind, record.workspace, record.name, error.message)
                else:
                    _log.exception("%s %s/%s", record.kind, record.workspace, record.name)

    def say_once(self, record: Record, text: str) -> None:
        """Say what is wrong with the record when it is news: passes come twice a second."""
        if self.memory.said.get(record.uid) != text:
            self.memory.said[record.uid] = text
            _log.warning("%s %s/%s: %s", record.kind, record.workspace, record.name, text)
            self.event(record, "Broken", text, warning=True)

    def event(self, record: Record, reason: str, message: str, *, warning: bool = False) -> None:
        """Note for people what happened; a failure to note it is only logged."""
        sink = self.services.events
        if sink is None:
            return
        try:
            kind = "Warning" if warning else "Normal"
            sink.add(record.workspace, record.kind, record.name, kind, reason, message, record.uid)  # type: ignore[arg-type]
        except LeptonError as error:
            _log.warning("event of %s/%s: %s", record.workspace, record.name, error.message)
