"""What control needs from the outside, as Protocols. Adapters: nodes.py (agents), the gateway's EnvoyGateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lepton_ai.control.transport import NodeTls
from lepton_ai.spec.replica import NodeReport, ReplicaSpec
from lepton_ai.spec.route import Routes, RouteStats


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Where a node's agent listens; `token_file` holds the token it wants (mode 0600). Without `tls` on loopback."""

    name: str
    address: str
    port: int
    token_file: str
    tls: NodeTls | None = None


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as control sees it now. `report` is the newest since the connection was made, None before the first.

    `reason` says why it is not connected; `refused`, why it did not take the order to run a replica (by its uid).
    """

    name: str
    connected: bool
    report: NodeReport | None = None
    reason: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)


class Fleet(Protocol):
    """The nodes. Every call returns at once; what becomes of an order is seen in the reports, so orders may be lost
    and may be repeated (they are idempotent)."""

    def connect(self, nodes: Sequence[NodeAddress], epoch: int) -> None:
        """These are the nodes; keep a connection to each and renew exclusive work while `epoch` leads (0: not)."""

    def nodes(self) -> Mapping[str, NodeView]: ...

    def apply(self, node: str, spec: ReplicaSpec, epoch: int) -> None: ...

    def stop(self, node: str, uid: str, grace_s: float | None, epoch: int) -> None: ...

    def forget(self, node: str, uid: str, epoch: int, spec: ReplicaSpec | None) -> None:
        """Keep the log of the ended replica (`spec` says whose it is; None: nobody's), then remove it there."""

    def subscribe(self, changed: Callable[[], None]) -> None:
        """`changed` is called, from any thread, when `nodes()` would answer differently."""


class Gateway(Protocol):
    """The gateways of the cell as one. `publish` blocks until it is so and raises Invalid when refused."""

    def publish(self, routes: Routes) -> object: ...

    def stats(self) -> tuple[RouteStats, ...]: ...

    def wait_held(self, wait_s: float) -> Mapping[str, int]:
        """Requests held now by "WORKSPACE/NAME": as soon as there are any, or after `wait_s`."""


class EventSink(Protocol):
    """Where what happened is written for people; `telemetry.events.Events` is one."""

    def add(
        self,
        workspace: str,
        kind: str,
        name: str,
        type: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        uid: str | None = None,
    ) -> None: ...
