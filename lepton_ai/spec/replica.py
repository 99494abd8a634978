"""One running copy: what an agent is told to run and what it reports back."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from lepton_ai.spec.base import Model, Name
from lepton_ai.spec.container import LOCAL, Port, PortMap
from lepton_ai.spec.workload import BlobRef, Health, Resources

Phase = Literal[
    "pending",  # recorded, not yet placed (reason says why)
    "placed",  # on a node's list, not yet reported by it
    "fetching",  # its blobs are being fetched and verified
    "starting",  # the process runs, its health check does not pass yet
    "ready",  # takes requests (a job's replica: runs)
    "unready",  # was ready, health check fails now
    "unknown",  # its node is not reachable
    "draining",  # out of the gateway, finishing its requests
    "stopping",  # TERM was sent
    "exited",  # ended; `exit` says how
]
FINAL: frozenset[str] = frozenset({"exited"})
GATEWAY_HOST = "gateway.client"
"""The name in the certificate by which gateways prove themselves to nodes."""


def node_host(node: str) -> str:
    """The name in a node's certificate."""
    return f"{node}.node"


LIE = -1
"""What stands where a report says something that no amount can be: no other word of the report is lost for that."""


def _or_lie(value: Any, known: ValidatorFunctionWrapHandler) -> Any:
    try:
        return known(value)
    except ValidationError:
        return LIE


Amount = Annotated[int, WrapValidator(_or_lie)]
"""A measured amount; whoever uses it asks whether it can be one."""


class FetchBlob(Model):
    """A blob as an agent gets it: where to fetch, and a short-lived header to send."""

    ref: BlobRef
    url: str
    headers: dict[str, str] = Field(default_factory=dict)


class MountOrder(Model):
    """A mount as an agent gets it. `root`: the volume's folder on the node; None: the node's own for the workspace."""

    volume: str = LOCAL
    root: str | None = None
    path: str = "/"
    target: str
    read_only: bool = False


class RegistryLogin(Model):
    """How to log in at a registry when an image is pulled; never recorded with an order."""

    registry: str
    username: str
    password: str = Field(repr=False)


class ReplicaSpec(Model):
    """What an agent is told to run. Self-contained: an agent sees no database.

    `command` still holds ``{port}`` and ``{blobs}``; the node fills them in. `env` already holds resolved secrets.
    """

    uid: str
    workspace: Name
    name: str = Field(max_length=128)
    owner_kind: Literal["deployment", "job"]
    owner: str = Field(max_length=64)
    release: int = Field(default=0, ge=0)
    worker: int = Field(default=0, ge=0)
    command: tuple[str, ...]
    image: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    blobs: tuple[FetchBlob, ...] = ()
    resources: Resources = Resources()
    devices: tuple[int, ...] = Field(default=(), max_length=64, description="numbers of the accelerators it uses")
    port: int | None = None
    needs_port: bool = True
    prefer_port: int | None = Field(default=None, description="this one, when it is free, of those it could be given")
    own: dict[str, Literal["address", "port"]] = Field(
        default_factory=dict, description="environment names that its node sets, where it knows better than `env`"
    )
    ports: tuple[Port, ...] = ()
    mounts: tuple[MountOrder, ...] = ()
    shared_memory_mib: int | None = None
    logins: tuple[RegistryLogin, ...] = ()
    health: Health = Health()
    grace_s: float = 10.0
    exclusive: bool = False
    lease_s: float = 15.0


class Exit(Model):
    """How a replica's process ended, from its shim. Exactly one of `code`, `signal` is set, or neither if lost."""

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    reason: str = ""
    started_ms: int = 0
    ended_ms: int = 0

    @property
    def ok(self) -> bool:
        return self.code == 0

    def describe(self) -> str:
        if self.out_of_memory:
            return "killed: out of memory"
        if self.code is not None:
            return f"exit code {self.code}"
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        return self.reason or "lost"


class Gauged(Model):
    """Measured figures, each None where it cannot be measured. What a newer agent measures besides is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def read(cls, value: Any, known: ValidatorFunctionWrapHandler) -> Any:
        """What can be read; where nothing can, one figure that nobody takes for a measurement."""
        try:
            return known(value)
        except ValidationError:
            return cls.model_construct(cpu_stall=math.nan)


class ReplicaGauges(Gauged):
    """What one replica does besides using processors and memory, over the last few seconds.

    `cpu_stall`: the share of time for which it was ready to run and waited for a processor. Network figures are there
    only where it has a network of its own.
    """

    cpu_stall: float | None = None
    disk_read_bytes_s: float | None = None
    disk_write_bytes_s: float | None = None
    network_in_bytes_s: float | None = None
    network_out_bytes_s: float | None = None


class NodeGauges(Gauged):
    """What a node's agent measured of its whole machine, everything else that runs there included.

    `cores_milli`, `memory_mib` are what the agent may use of the machine (its processors, quota and limit);
    `cpu_milli` counts time that a hypervisor gave to others as used. A stall is the share of time for which somebody
    waited for a processor, or for which all that could run waited for memory or a disk. `samples` counts the looks:
    an agent that stands still says old figures. `gpu_used` is the mean share of time in which a GPU was busy.
    """

    samples: int = 0
    cores_milli: float | None = None
    cpu_milli: float | None = None
    memory_mib: float | None = None
    memory_used_mib: float | None = None
    cpu_stall: float | None = None
    memory_stall: float | None = None
    io_stall: float | None = None
    disk_busy: float | None = None
    disk_read_bytes_s: float | None = None
    disk_write_bytes_s: float | None = None
    network_in_bytes_s: float | None = None
    network_out_bytes_s: float | None = None
    gpus: int = 0
    gpu_used: float | None = None
    gpu_memory_mib: float | None = None
    gpu_memory_used_mib: float | None = None


class ReplicaReport(Model):
    """What an agent says about one replica on its node."""

    uid: str
    phase: Phase
    reason: str = ""
    address: str | None = None
    port: int | None = None
    inner_address: str | None = Field(
        default=None, description="its own address, for replicas of its workspace on its host: every port as it is"
    )
    pid: int | None = None
    started_ms: int = 0
    ready_ms: int = 0
    exit: Exit | None = None
    limits: Literal["cgroup", "rlimit", "none"] = "none"
    isolation: Literal["none", "uid", "container"] = "none"
    ports: tuple[PortMap, ...] = ()
    tls: bool = Field(default=False, description="address and port speak TLS, with certificates of the cell")
    image: Literal["", "advisory", "used"] = Field(default="", description="advisory: kept, but a process runs")
    cpu_milli: Amount = 0
    memory_mib: Amount = 0
    gauges: Annotated[ReplicaGauges | None, WrapValidator(ReplicaGauges.read)] = None
    last_log: str = ""


class Machine(Model):
    """What a node is on. Two nodes on one machine have the same `id`; if they see one loopback, `network` too."""

    id: str = ""
    network: str = ""
    hostname: str = ""
    os: str = ""
    kernel: str = ""
    processor: str = ""
    disk_mib: int = 0


class NodeReport(Model):
    """What an agent says about its node: capacity, use, and every replica it knows."""

    node: Name
    boot_id: str
    agent_uid: str = Field(description="new at every start of the agent process")
    protocol: int = 1
    time_ms: int
    address: str
    capacity: Resources
    cpu_used_milli: Amount = 0
    memory_used_mib: Amount = 0
    disk_free_mib: Amount = 0
    gauges: Annotated[NodeGauges | None, WrapValidator(NodeGauges.read)] = None
    epoch: int = Field(default=0, description="largest leader epoch the agent has seen")
    runtime: Literal["process", "docker"] = "process"
    isolation: Literal["none", "uid", "container"] = "none"
    forwards: bool = Field(default=False, description="a fixed port may be taken by many replicas: the node maps it")
    machine: Machine = Machine()
    replicas: tuple[ReplicaReport, ...] = ()
