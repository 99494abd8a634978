"""The port between a node and what runs its replicas: processes of the machine, or a container engine.

Owns the Protocol, and what a replica is told of itself whatever runs it. Adapters: `process` (process://), `docker`
(docker://). All of it is called from one agent; what blocks (`fetch`, `prepare`, `started`, `release`, `sweep`) is
called in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from lepton_ai.node.launch import ShimSpec
from lepton_ai.spec.container import PortMap
from lepton_ai.spec.replica import ReplicaSpec

RuntimeName = Literal["process", "docker"]
Isolation = Literal["none", "uid", "container"]
ImageUse = Literal["", "advisory", "used"]


class Runtime(Protocol):
    """Turns an order into what a shim runs, and looks after what lies around that process.

    With `forwards`, a replica has ports of its own: (node address, host port) leads to them, so many replicas of a
    node may listen on one number. Without, a workload's port is the host's.
    """

    @property
    def name(self) -> RuntimeName: ...

    @property
    def isolation(self) -> Isolation: ...

    @property
    def forwards(self) -> bool: ...

    @property
    def holds(self) -> bool:
        """Whether the agent keeps the host ports bound, as nobody listens where they are forwarded."""

    def check(self, spec: ReplicaSpec) -> None:
        """Raises Unsupported when this runtime cannot run `spec`. Quick: called on the agent's loop."""

    def fetch(self, spec: ReplicaSpec, say: Callable[[str], None]) -> None:
        """Bring here what runs `spec`, before `prepare`; may take minutes. Raises LeptonError.

        Args:
            say: is told what is waited for; what it raises ends the fetch.
        """

    def prepare(
        self,
        spec: ReplicaSpec,
        folder: Path,
        port: int | None,
        blobs: Mapping[str, Path],
        maps: Sequence[PortMap] = (),
    ) -> ShimSpec:
        """Lay out the replica's folder and say what its shim runs. Called once a start; raises LeptonError.

        Args:
            port: the number that the workload listens on.
            blobs: files, by the path at which the replica finds them.
            maps: every port that is reached from outside; with `forwards` it is this runtime that leads there.
        """

    def started(self, spec: ReplicaSpec, folder: Path) -> None:
        """The shim's child is recorded in `folder`, and may have ended already.

        Called at least once a start, also by an agent that adopts the replica. A LeptonError ends the replica.
        """

    def limits(self, groups: tuple[str, ...]) -> Literal["cgroup", "rlimit", "none"]:
        """Which kind of limit holds for a replica with these control groups."""

    def image(self, spec: ReplicaSpec) -> ImageUse:
        """What becomes of the order's image."""

    def reached(self, spec: ReplicaSpec) -> str | None:
        """The replica's own address, at which others of its workspace on this machine reach all its ports.

        None when it has none: then they reach it as everyone does. Quick.
        """

    def release(self, spec: ReplicaSpec, groups: tuple[str, ...]) -> bool:
        """Give back what `prepare` took, after the replica has ended; False while something still dies in a group.

        Idempotent; called again until it is True.
        """

    def sweep(self, live: Collection[str]) -> None:
        """Remove what belongs to this node and to no replica of `live` (uids).

        Called at the agent's start and now and then. Raises nothing that matters: what fails is tried again.
        """

    def close(self) -> None:
        """The agent ends; its replicas run on."""


def told(spec: ReplicaSpec, node: str, port: int | None) -> dict[str, str]:
    """What a replica is told of itself, as environment."""
    env = {
        "LEPTON_AI_NODE": node,
        "LEPTON_AI_REPLICA_UID": spec.uid,
        "LEPTON_WORKSPACE_ID": spec.workspace,
        "LEPTON_REPLICA_NAME": spec.name,
        "LEPTON_DEPLOYMENT_NAME" if spec.owner_kind == "deployment" else "LEPTON_JOB_NAME": spec.owner,
        "LEPTON_WORKER_INDEX": str(spec.worker),
    }
    return env if port is None else {**env, "PORT": str(port)}


def wanted(spec: ReplicaSpec, told: Mapping[str, str], address: str | None, port: int | None) -> dict[str, str]:
    """What is `told`, with the workload's own on top, and what its node knows better than both."""
    known = {"address": address, "port": None if port is None else str(port)}
    found = {name: value for name, what in spec.own.items() if (value := known[what]) is not None}
    return {**told, **spec.env, **found, **accelerators(spec)}


def accelerators(spec: ReplicaSpec) -> dict[str, str]:
    """Which GPUs it sees, by their numbers on the node, whatever its own environment says: they are not all its."""
    if not spec.devices:
        return {}
    numbers = ",".join(str(device) for device in spec.devices)
    return {"CUDA_VISIBLE_DEVICES": numbers, "NVIDIA_VISIBLE_DEVICES": numbers, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
