"""The network between control and its nodes: orders that may be lost, late or doubled, and reports that lag a step.

`FakeFleet` satisfies `control.ports.Fleet` for one control process; all of a cell share one `Network`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sim.clock import FakeClock
from sim.machine import Machine

from lepton_ai.control.nodes import KEEPALIVE_S, LEADS_S, SILENT_S
from lepton_ai.control.ports import NodeAddress, NodeView
from lepton_ai.errors import LeptonError, StaleEpoch
from lepton_ai.spec.replica import NodeReport, ReplicaSpec

Order = Callable[[Machine], None]


@dataclass
class Network:
    """Carries orders. `loss` and `double` are shares of all orders, `late_ms` the most that one is delayed."""

    clock: FakeClock
    machines: dict[str, Machine]
    rng: random.Random
    loss: float = 0.0
    double: float = 0.0
    late_ms: int = 0
    refused: int = 0
    sent: int = 0
    _waiting: list[tuple[int, int, str, Order]] = field(default_factory=list)
    _count: int = 0

    def send(self, node: str, order: Order) -> None:
        self.sent += 1
        if self.rng.random() < self.loss:
            return
        for _ in range(2 if self.rng.random() < self.double else 1):
            self._count += 1
            due_ms = self.clock.elapsed_ms() + (self.rng.randrange(self.late_ms) if self.late_ms else 0)
            self._waiting.append((due_ms, self._count, node, order))

    def deliver(self) -> None:
        now_ms = self.clock.elapsed_ms()
        due = sorted((item for item in self._waiting if item[0] <= now_ms), key=lambda item: item[:2])
        self._waiting = [item for item in self._waiting if item[0] > now_ms]
        for _, _, node, order in due:
            machine = self.machines.get(node)
            if machine is None or not machine.powered or not machine.agent or machine.cut:
                continue
            try:
                order(machine)
            except StaleEpoch:
                self.refused += 1
            except LeptonError:
                continue


class FakeFleet:
    """What one control process knows of the nodes. `step` after the machines have moved."""

    def __init__(self, network: Network, called: Callable[[], None] = lambda: None) -> None:
        self._network, self._called = network, called
        self._wanted: dict[str, NodeAddress] = {}
        self._epoch = 0
        self._views: dict[str, NodeView] = {}
        self._ahead: dict[str, NodeReport] = {}
        self._kept_ms = 0
        self._connected_ms = 0
        self._changed: Callable[[], None] = lambda: None
        self.dead = False
        self.archived: list[str] = []

    def connect(self, nodes: Sequence[NodeAddress], epoch: int) -> None:
        self._epoch = epoch
        self._connected_ms = self._network.clock.elapsed_ms()
        self._wanted = {node.name: node for node in nodes} if epoch else {}
        for name in set(self._views) - set(self._wanted):
            del self._views[name]
            self._ahead.pop(name, None)
        for name in self._wanted:
            self._views.setdefault(name, NodeView(name, False, None, "not yet connected"))

    def nodes(self) -> Mapping[str, NodeView]:
        return dict(self._views)

    def apply(self, node: str, spec: ReplicaSpec, epoch: int) -> None:
        self._send(node, lambda machine: machine.apply(spec, epoch))

    def stop(self, node: str, uid: str, grace_s: float | None, epoch: int) -> None:
        self._send(node, lambda machine: machine.stop(uid, epoch))

    def forget(self, node: str, uid: str, epoch: int, spec: ReplicaSpec | None) -> None:
        if spec is not None:
            self.archived.append(uid)
        self._send(node, lambda machine: machine.forget(uid, epoch))

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def step(self) -> None:
        """See the nodes as they were one step ago; renew exclusive work now and then."""
        for name in self._wanted:
            before = self._views[name]
            after = self._views[name] = self._look(name, before)
            if after != before:
                self._changed()
        now_ms = self._network.clock.elapsed_ms()
        fresh = now_ms - self._connected_ms < LEADS_S * 1000  # a loop that stands still renews nothing
        if self._epoch and fresh and now_ms - self._kept_ms >= KEEPALIVE_S * 1000:
            self._kept_ms, epoch = now_ms, self._epoch
            for name, view in self._views.items():
                if view.connected:
                    self._network.send(name, lambda machine: machine.keepalive(epoch))

    def _look(self, name: str, before: NodeView) -> NodeView:
        machine = self._network.machines.get(name)
        if machine is None or not machine.powered or not machine.agent:
            self._ahead.pop(name, None)
            return NodeView(name, False, None, "its agent does not answer")
        if machine.cut:
            silent_ms = self._network.clock.elapsed_ms() - machine.cut_since_ms
            if before.connected and silent_ms < SILENT_S * 1000:
                return before
            self._ahead.pop(name, None)
            return NodeView(name, False, None, f"silent for {SILENT_S:g} s")
        report = self._ahead.get(name)
        self._ahead[name] = machine.report()
        if report is None:
            return before if before.connected else NodeView(name, False, None, "not yet connected")
        if before.report is report and before.refused == machine.refused:
            return before
        return NodeView(name, True, report, refused=dict(machine.refused))

    def _send(self, node: str, order: Order) -> None:
        self._called()
        if not self.dead and node in self._wanted:
            self._network.send(node, order)
