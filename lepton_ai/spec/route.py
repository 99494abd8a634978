"""What the gateway must do, independent of the engine that does it: one value for the whole cell."""

from __future__ import annotations

from pydantic import Field

from lepton_ai.spec.base import Model, Name
from lepton_ai.spec.container import Balance


class Endpoint(Model):
    """A replica that takes requests."""

    replica: str = Field(description="uid of the replica")
    address: str
    port: int = Field(ge=1, le=65535)
    weight: int = Field(default=100, ge=1, le=100_000, description="what it can do beside its peers")
    spare: bool = Field(default=False, description="asked only when no other can, by a gateway that knows no weights")
    host: str = Field(default="", description="it speaks TLS and its certificate has this name; empty: plain")


class Backend(Model):
    """The replicas of one release; `weight` is its share among the route's backends (canary, cut-over)."""

    release: int = Field(ge=1)
    weight: int = Field(default=100, ge=0, le=1_000_000)
    endpoints: tuple[Endpoint, ...] = ()


class Route(Model):
    """One deployment as callers see it: http://GATEWAY/WORKSPACE/NAME/... (and NAME.WORKSPACE.localhost).

    `tokens` are literal keys, one of which must come as ``Authorization: Bearer KEY``; None means open. With
    `activate`, requests that find no endpoint are held by the activator instead of failing with 503.
    """

    workspace: Name
    name: Name
    backends: tuple[Backend, ...] = ()
    tokens: tuple[str, ...] | None = None
    idempotent: bool = False
    request_timeout_s: float = 60.0
    health_path: str | None = None
    activate: bool = False
    allowlist: tuple[str, ...] = Field(default=(), description="networks that may call; empty: anyone")
    balance: Balance = Balance()


class HostTarget(Model):
    """A deployment behind a host name; `weight` is its share among the host's targets."""

    name: Name
    weight: int = Field(default=100, ge=0, le=1_000_000)


class HostRoute(Model):
    """A host name of one workspace (an ingress): http://DOMAIN/... goes to its targets by weight."""

    workspace: Name
    domain: str
    targets: tuple[HostTarget, ...] = ()
    allowlist: tuple[str, ...] = Field(default=(), description="networks that may call, besides those of each target")


class Routes(Model):
    """Everything that the gateways of a cell must route. Rendered and validated as one set."""

    routes: tuple[Route, ...] = ()
    hosts: tuple[HostRoute, ...] = ()


class RouteStats(Model):
    """What the gateway measured for one deployment since it started (counters) and now (gauges)."""

    workspace: Name
    name: Name
    requests: int = 0
    failed: int = 0
    in_flight: int = 0
    held: int = Field(default=0, description="requests that the activator holds now")
    last_request_ms: int = 0
    latency_ms_p50: float | None = Field(default=None, description="of the answers of the last moments; None: none")
    latency_ms_p95: float | None = None
    in_flight_by_replica: dict[str, int] = Field(default_factory=dict)
    answered_by_replica: dict[str, int] = Field(default_factory=dict, description="answers other than 5xx so far")
    failed_by_replica: dict[str, int] = Field(default_factory=dict, description="5xx and broken requests so far")
