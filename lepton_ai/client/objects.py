"""What a cell answers, as small frozen values. Fields that a newer cell adds are ignored.

Owns no behaviour but how they look in a notebook, and `Deployment.call`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from lepton_ai.client.cloud import Cloud

SHOWN_ROWS = 50
ENDED = frozenset({"succeeded", "failed", "stopped"})


@dataclass(frozen=True, kw_only=True)
class Value:
    """The base: made from JSON with `of`, shown as a table of its fields."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})

    def _repr_html_(self) -> str:
        pairs = [(item.name, getattr(self, item.name)) for item in fields(self)]
        return _table(("", ""), [(name, value) for name, value in pairs if value not in (None, "", [], {})])


@dataclass(frozen=True, kw_only=True)
class Plan(Value):
    """What a deployment would change. `unplaceable`: node -> why, when not everything finds room now."""

    name: str = ""
    summary: str = ""
    changes: list[str] = field(default_factory=list)
    placements: list[dict[str, Any]] = field(default_factory=list)
    replicas: int = 0
    why: str = ""
    price_per_hour: float = 0.0
    price_per_hour_max: float = 0.0
    currency: str = "USD"
    release: int = 0
    unplaceable: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Deployment(Value):
    """A served workload, or a pod (kind). `release` is wanted, `serving` takes the traffic (0: none yet).

    `image` is "advisory" where nodes run processes; `advisory` holds options that are kept and not enforced.
    """

    kind: str = "deployment"
    name: str = ""
    uid: str = ""
    generation: int = 0
    observed: int = 0
    release: int = 0
    serving: int = 0
    state: str = ""
    reason: str = ""
    warning: str = ""
    wanted: int = 0
    needed: int = 0
    ready: int = 0
    rollout: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    url: str = ""
    image: str = ""
    protected: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    visibility: str = "public"
    created_by: str = ""
    priority: int = 4000
    can_preempt: bool = False
    preemptible: bool = False
    advisory: dict[str, Any] = field(default_factory=dict)
    price_per_hour: float = 0.0
    currency: str = "USD"
    created_ms: int = 0
    updated_ms: int = 0
    spec: dict[str, Any] = field(default_factory=dict, repr=False)

    def bound(self, cloud: Cloud) -> Self:
        """The same, able to `call`."""
        object.__setattr__(self, "_cloud", cloud)
        return self

    def call(self, _body: Any = None, *, path: str = "/", token: str | None = None, **values: Any) -> Any:
        """One request through the gateway: `movies.call(user=7)`, or any JSON value as the first argument."""
        cloud: Cloud = self._cloud  # type: ignore[attr-defined]
        return cloud.call(self.name, values if values else _body, path=path, token=token)


@dataclass(frozen=True, kw_only=True)
class Release(Value):
    """A numbered content of a deployment."""

    number: int = 0
    note: str = ""
    created_ms: int = 0
    model: str | None = None
    template: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Job(Value):
    """Work that ends. `title` is the name it was given, `name` is unique."""

    kind: str = "job"
    name: str = ""
    uid: str = ""
    title: str = ""
    generation: int = 0
    observed: int = 0
    state: str = ""
    reason: str = ""
    workers: int = 1
    retries: int = 0
    job_retries: int = 0
    start_at_ms: int | None = None
    rendezvous: bool = False
    checkpoint: bool = False
    ttl_s: int | None = None
    stopped: bool = False
    image: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    visibility: str = "public"
    created_by: str = ""
    priority: int = 4000
    can_preempt: bool = False
    preemptible: bool = False
    advisory: dict[str, Any] = field(default_factory=dict)
    active: int = 0
    ready: int = 0
    failed: int = 0
    succeeded: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    created_ms: int = 0
    updated_ms: int = 0
    template: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Replica(Value):
    """One running copy, or one that ended. `why` says why its node was chosen."""

    kind: str = "replica"
    name: str = ""
    uid: str = ""
    owner_kind: str = ""
    owner: str = ""
    release: int = 0
    worker: int = 0
    attempt: int = 0
    node: str = ""
    why: str = ""
    phase: str = ""
    reason: str = ""
    ending: str = ""
    address: str | None = None
    port: int | None = None
    pid: int | None = None
    started_ms: int = 0
    ready_ms: int = 0
    exit: dict[str, Any] | None = None
    last_log: str = ""
    limits: str = ""
    isolation: str = ""
    image: str = ""
    ports: list[dict[str, Any]] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)
    created_ms: int = 0


@dataclass(frozen=True, kw_only=True)
class Node(Value):
    """A node: what it has, what of it is promised (placed) and what is measured (used).

    `load` holds u, w, s = w * u, limit, mark and the same of each resource (`parts`); None while nothing is known.
    `gauges` is what its machine does: pressure, disk, network, GPUs.
    """

    kind: str = "node"
    name: str = ""
    state: str = ""
    reason: str = ""
    unschedulable: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[str] = field(default_factory=list)
    reservation: str = ""
    replicas: int = 0
    cpu_milli: int = 0
    cpu_placed_milli: int = 0
    cpu_used_milli: int = 0
    memory_mib: int = 0
    memory_placed_mib: int = 0
    memory_used_mib: int = 0
    accelerator_milli: int = 0
    accelerator_type: str | None = None
    disk_free_mib: int = 0
    load: dict[str, Any] | None = None
    gauges: dict[str, Any] = field(default_factory=dict)
    address: str | None = None
    port: int | None = None
    boot_id: str | None = None
    seen_ms: int = 0
    created_ms: int = 0


@dataclass(frozen=True, kw_only=True)
class Row(Value):
    """A line of `ps`. `isolation` and `image` say of a replica how it is kept apart, and whether its image runs."""

    name: str = ""
    kind: str = ""
    state: str = ""
    replicas: str = ""
    node: str | None = None
    isolation: str | None = None
    created_ms: int = 0
    reason: str = ""

    @classmethod
    def of_owner(cls, item: Deployment | Job) -> Self:
        """The line of a deployment (ready/wanted) or a job (done, or ready while it runs, of its workers)."""
        if isinstance(item, Deployment):
            count, reason = f"{item.ready}/{item.wanted}", item.reason or item.warning
        else:
            count, reason = f"{item.succeeded if item.state in ENDED else item.ready}/{item.workers}", item.reason
        return cls(
            name=item.name,
            kind=item.kind,
            state=item.state,
            replicas=count,
            created_ms=item.created_ms,
            reason=reason,
        )

    @classmethod
    def of_replica(cls, item: Replica) -> Self:
        reason = item.reason or (str(item.exit.get("text", "")) if item.exit else "")
        notes = [reason] if reason else []
        if item.image == "advisory":
            notes.append("image: advisory (the command runs on the host)")
        notes += [f"port {one['number']} at {item.address}:{one['host_port']}" for one in item.ports if item.address]
        return cls(
            name=item.name,
            kind=item.kind,
            state=item.phase,
            node=item.node,
            isolation=item.isolation,
            created_ms=item.created_ms,
            reason="; ".join(notes),
        )


@dataclass(frozen=True, kw_only=True)
class LogLine(Value):
    """A line that a replica printed; `ns` UTC nanoseconds, `stream` "o" (output) or "e" (errors)."""

    ns: int = 0
    stream: str = "o"
    line: str = ""
    replica: str = ""


@dataclass(frozen=True, kw_only=True)
class Event(Value):
    """Something that happened to an object, `count` times between `first_ms` and `last_ms`."""

    workspace: str = ""
    kind: str = ""
    name: str = ""
    uid: str | None = None
    type: str = ""
    reason: str = ""
    message: str = ""
    count: int = 1
    first_ms: int = 0
    last_ms: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer(Value):
    """The rows of a query."""

    columns: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    truncated: bool = False
    tables: list[str] = field(default_factory=list)
    elapsed_ms: float = 0.0

    def _repr_html_(self) -> str:
        more = len(self.rows) - SHOWN_ROWS
        below = f"<p>and {more} more rows</p>" if more > 0 else ""
        return _table(self.columns, self.rows[:SHOWN_ROWS]) + below


@dataclass(frozen=True, kw_only=True)
class Table(Value):
    """A table of the lake; `error` says what is wrong with one that cannot be read."""

    name: str = ""
    version: int | None = None
    rows: int | None = None
    size_bytes: int | None = None
    columns: list[dict[str, str]] = field(default_factory=list)
    created_ms: int | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableVersion(Value):
    """One committed version of a table."""

    version: int = 0
    ref: str = ""
    time_ms: int = 0
    operation: str = ""
    rows: int | None = None
    transaction: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelVersion(Value):
    """A registered model version; `ref` is NAME@NUMBER. `name` and `version` say the same as `model` and `number`."""

    model: str = ""
    number: int = 0
    ref: str = ""
    name: str = ""
    version: int = 0
    kind: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    signature: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    size_bytes: int = 0
    created_ms: int = 0

    def __str__(self) -> str:
        return self.ref


@dataclass(frozen=True, kw_only=True)
class Token(Value):
    """An API token as it may be shown."""

    name: str = ""
    role: str = ""
    masked: str = ""
    created_ms: int = 0
    expires_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class CellInfo(Value):
    """What a cell says of itself."""

    name: str = ""
    uid: str = ""
    version: str = ""
    workspace: str = ""
    role: str = ""
    api_url: str = ""
    gateway_url: str = ""
    lake_url: str = ""
    nodes: list[str] = field(default_factory=list)
    leading: bool = False
    isolation: str = "none"
    warning: str = ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
