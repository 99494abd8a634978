"""What one pass of the loops sees, and how it writes: nodes, reservations, records, time, the leader's lease.

Owns what every kind shares. It knows nothing of deployments or jobs.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lepton_ai.control.backoff import Backoff
from lepton_ai.control.clock import Clock
from lepton_ai.control.mirror import Mirror, Op, Record
from lepton_ai.control.options import Options
from lepton_ai.control.ports import EventSink, Fleet, NodeView
from lepton_ai.control.publish import Publisher
from lepton_ai.errors import LeptonError, StaleEpoch
from lepton_ai.scheduler.snapshot import Node, Snapshot
from lepton_ai.spec.replica import ReplicaReport
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Lease

_log = logging.getLogger(__name__)


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


@dataclass(slots=True)
class Memory:
    """What a leader remembers between passes. All of it may be lost: it only spares work or adds patience."""

    crash: Backoff
    trouble: Backoff
    sent: dict[tuple[str, str], int] = field(default_factory=dict)
    lost_since: dict[str, int] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)
    demand: dict[str, Any] = field(default_factory=dict)
    node_written: dict[str, int] = field(default_factory=dict)
    attempted: dict[str, int] = field(default_factory=dict)


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

    # -- nodes

    def load(self) -> None:
        """Take the nodes' reports, then the records: in this order, so that a reported replica has its record."""
        self.views = dict(self.services.fleet.nodes())
        self.mirror.refresh()
        known = {record.name for record in self.mirror.list("node")}
        for name, view in self.views.items():
            if name not in known:
                continue
            if view.connected and view.report is not None:
                self.memory.reported.add(name)
                self.memory.lost_since.pop(name, None)
                for report in view.report.replicas:
                    self.reports[report.uid] = (name, report)
            else:
                self.memory.lost_since.setdefault(name, self.tick_ms)

    def connected(self, node: str) -> bool:
        """Whether the node is there and has said what runs on it."""
        view = self.views.get(node)
        return view is not None and view.connected and view.report is not None

    def settled(self, node: str) -> bool:
        """Whether what the node says, or its silence, may be believed: a new leader gives it a first moment."""
        return node in self.memory.reported or self.leading_ms >= self.options.first_report_s * 1000

    def all_settled(self) -> bool:
        return all(self.settled(record.name) for record in self.mirror.list("node"))

    def silent_ms(self, node: str) -> int:
        """How long this leader has been without the node; 0 while it is connected."""
        since = self.memory.lost_since.get(node)
        return 0 if since is None else self.tick_ms - since

    # -- room

    def reserve(self, node: str, resources: Resources) -> None:
        used = self.reserved.setdefault(node, [0, 0, 0])
        for index, amount in enumerate((resources.cpu_milli, resources.memory_mib, resources.accelerator_milli)):
            used[index] += amount

    def snapshot(self, groups: Mapping[str, Mapping[str, int]] | None = None) -> Snapshot:
        """The cell as the scheduler sees it now, with everything that this pass has reserved so far."""
        nodes = []
        for record in self.mirror.list("node"):
            used = self.reserved.get(record.name, [0, 0, 0])
            nodes.append(Node(record.name, self._capacity(record), (used[0], used[1], used[2]), self.blocked(record)))
        return Snapshot.of(nodes, groups)

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

    def usable_nodes(self) -> int:
        """How many nodes take work, those that fell silent a moment ago included: they mostly come back."""
        grace_ms = self.options.node_grace_s * 1000
        count = 0
        for record in self.mirror.list("node"):
            quiet = not self.connected(record.name) and self.silent_ms(record.name) < grace_ms
            count += not self.blocked(record) or (
                quiet and not record.deleting and not record.spec.get("unschedulable")
            )
        return count

    def _capacity(self, record: Record) -> Resources:
        view = self.views.get(record.name)
        if view is not None and view.report is not None:
            return view.report.capacity
        return Resources.model_validate(record.spec.get("capacity") or {})

    # -- writing

    def write(self, *ops: Op) -> list[Record | None]:
        """Together or not at all. Raises Conflict and StaleEpoch."""
        return self.mirror.write(ops, self.lease)

    def write_each(self, ops: Iterable[Op]) -> None:
        self.mirror.write_each(list(ops), self.lease)

    def each(self, records: Iterable[Record], act: Callable[[Record], None]) -> None:
        """`act` on every record; one that fails is left alone for a while and never stops the others."""
        for record in records:
            if self.memory.trouble.wait_ms(record.uid, self.tick_ms) > 0:
                continue
            try:
                act(record)
            except StaleEpoch:
                raise
            except Exception as error:  # noqa: BLE001 - one bad record never stops a loop
                self.memory.trouble.fail(record.uid, self.tick_ms)
                if isinstance(error, LeptonError):
                    _log.warning("%s %s/%s: %s", record.kind, record.workspace, record.name, error.message)
                else:
                    _log.exception("%s %s/%s", record.kind, record.workspace, record.name)

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
