"""Routes wanted -> the resources of Envoy's discovery services, as plain dictionaries (protobuf JSON). Pure.

Owns what the gateway does with a request: matching, tokens, retries, health, weights, errors. Touches no file and
no process: `bootstrap` says how an Envoy starts, `envoy` writes what is rendered here.

Every endpoint change must touch one small file only, so each cluster (one release of one deployment) has its
endpoints in a file of its own; clusters, routes and listener are one file each.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.gateway.balance import balance, standing
from lepton_ai.gateway.guards import guards, network
from lepton_ai.gateway.listener import ADMITTED, Listen, listener
from lepton_ai.gateway.upstream import Upstream, connections, marks
from lepton_ai.gateway.upstream import check as check_endpoint
from lepton_ai.spec.route import Backend, Endpoint, HostRoute, Route, Routes

Resource = dict[str, Any]

NOBODY = 0
"""Release number of the cluster of a route that has no backend yet; releases start at 1."""


@dataclass(frozen=True)
class Paths:
    """Where Envoy finds what it is not told in the resources themselves."""

    routes: str
    endpoints: str
    activator: str
    upstream: Upstream | None = None
    picker: str | None = None


@dataclass(frozen=True)
class Rendered:
    """One whole set. `endpoints` maps a cluster's name to its ClusterLoadAssignment."""

    listeners: tuple[Resource, ...] = ()
    clusters: tuple[Resource, ...] = ()
    routes: tuple[Resource, ...] = ()
    endpoints: Mapping[str, Resource] = field(default_factory=dict)


def render(routes: Routes, listen: Listen, paths: Paths, *, hold_s: float = 0.0) -> Rendered:
    """Everything an Envoy needs to serve `routes`.

    Args:
        hold_s: how long the activator may hold a request; added to the timeout of routes with `activate`.

    Raises:
        Invalid: an address that is no IP address, a timeout, token or health path that cannot be expressed, or two
            routes of one name.
    """
    seen: set[tuple[str, str]] = set()
    hosts: list[Resource] = []
    entries: list[Resource] = []
    clusters: list[Resource] = []
    endpoints: dict[str, Resource] = {}
    for route in sorted(routes.routes, key=lambda item: (item.workspace, item.name)):
        check(route, paths.upstream)
        if (route.workspace, route.name) in seen:
            raise Invalid(f"route {route.workspace}/{route.name} is there twice", hint="name each route once")
        seen.add((route.workspace, route.name))
        for backend in backends_of(route):
            name = cluster_name(route, backend.release)
            clusters.append(cluster(name, route, paths))
            endpoints[name] = assignment(name, route, backend, paths)
        entries += path_routes(route, hold_s)
        hosts.append(virtual_host(route, hold_s))
    hosts += [host_routes(item, routes, hold_s) for item in named_hosts(routes)]
    everything = {"name": "paths", "domains": ["*"], "routes": entries}
    table = {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": "routes",
        "ignore_port_in_host_matching": True,
        "virtual_hosts": [*hosts, everything],
    }
    return Rendered((listener(listen, paths.routes),), tuple(clusters), (table,), endpoints)


def version(resources: object) -> str:
    """A short name of these resources that changes exactly when they do."""
    return hashlib.sha256(json.dumps(resources, sort_keys=True).encode()).hexdigest()[:16]


def cluster_name(route: Route, release: int) -> str:
    """Name of the cluster of one release; names are DNS labels, so the parts can be split at the slashes."""
    return f"{route.workspace}/{route.name}/{release}"


_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}\Z")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_PATH = re.compile(r"/[\x21-\x7e]{0,2047}\Z")


def check(route: Route, upstream: Upstream | None = None) -> None:
    """Raises Invalid for what Envoy would refuse or, worse, understand in another way."""
    label = f"route {route.workspace}/{route.name}"
    if not (math.isfinite(route.request_timeout_s) and 0 <= route.request_timeout_s <= 86_400):
        raise Invalid(
            f"{label}: request_timeout_s = {route.request_timeout_s} is out of range",
            hint="use 0 (no limit) to 86400 seconds",
        )
    if route.health_path is not None and not _PATH.match(route.health_path):
        raise Invalid(f"{label}: health_path = {route.health_path!r} is not a path", hint="for example: /healthz")
    if any(not _TOKEN.match(token) for token in route.tokens or ()):
        raise Invalid(f"{label}: a token has a character that a header cannot carry", hint="use printable ASCII")
    for text in route.allowlist:
        network(text)
    releases = [backend.release for backend in route.backends]
    if len(set(releases)) != len(releases):
        raise Invalid(f"{label}: a release is there twice", hint="name each release once")
    for endpoint in (endpoint for backend in route.backends for endpoint in backend.endpoints):
        check_endpoint(endpoint, upstream)


def backends_of(route: Route) -> tuple[Backend, ...]:
    """The backends, or one without endpoints, so that a route always leads to a cluster."""
    return route.backends or (Backend.model_construct(release=NOBODY, weight=100, endpoints=()),)


# ---------------------------------------------------------------------------------------------- routes


def path_routes(route: Route, hold_s: float) -> list[Resource]:
    """/WORKSPACE/NAME and /WORKSPACE/NAME/..., the prefix stripped."""
    base = f"/{route.workspace}/{route.name}"
    return [
        entry(route, {"prefix": base + "/"}, hold_s, rewrite="/"),
        entry(route, {"path": base}, hold_s, rewrite="/"),
    ]


def named_hosts(routes: Routes) -> list[HostRoute]:
    """The host names, by name. Raises Invalid for one that is there twice or could be another's."""
    found: dict[str, HostRoute] = {}
    for item in routes.hosts:
        domain = item.domain.lower()
        if not _DOMAIN.match(domain) or domain.endswith(".localhost") or domain in found:
            raise Invalid(
                f"host {item.domain[:80]!r} cannot be routed", hint="each domain once, and none of .localhost"
            )
        for text in item.allowlist:
            network(text)
        found[domain] = item
    return [found[domain] for domain in sorted(found)]


def host_routes(item: HostRoute, routes: Routes, hold_s: float) -> Resource:
    """A host name and the deployments behind it. Each target keeps its own tokens, networks and timeouts.

    The shares are cumulative: Envoy draws one number a request and asks every entry with the same one.
    """
    known = {(route.workspace, route.name): route for route in routes.routes}
    targets = [
        (known[item.workspace, target.name], target.weight)
        for target in item.targets
        if target.weight > 0 and (item.workspace, target.name) in known
    ]
    total, reached = sum(weight for _, weight in targets), 0
    entries: list[Resource] = []
    for route, weight in targets:
        reached += weight
        match: Resource = {"prefix": "/"}
        if reached < total:
            share = {"numerator": reached * 1_000_000 // total, "denominator": "MILLION"}
            match["runtime_fraction"] = {"default_value": share}
        entries.append(entry(route, match, hold_s, allowlists=(item.allowlist,)))
    if not entries:
        # Answered in the listener's words for 404.
        entries.append({"match": {"prefix": "/"}, "direct_response": {"status": 404}})
    domain = item.domain.lower()
    return {"name": domain, "domains": [domain], "routes": entries}


def virtual_host(route: Route, hold_s: float) -> Resource:
    """NAME.WORKSPACE.localhost, the path unchanged."""
    host = f"{route.name}.{route.workspace}.localhost"
    return {"name": host, "domains": [host], "routes": [entry(route, {"prefix": "/"}, hold_s)]}


def entry(
    route: Route,
    match: Resource,
    hold_s: float,
    rewrite: str | None = None,
    *,
    allowlists: tuple[tuple[str, ...], ...] = (),
) -> Resource:
    """One way to reach `route`. Counted under its own prefix, so that statistics need no access log.

    `allowlists` hold besides the route's own.
    """
    label = f"{route.workspace}/{route.name}"
    timeout_s = route.request_timeout_s
    if timeout_s and route.activate:
        timeout_s += hold_s  # a held request still has its whole time once a replica is there
    action: Resource = {
        "timeout": seconds(timeout_s),
        "idle_timeout": seconds(max(300.0, timeout_s) if timeout_s else 3600.0),
        "retry_policy": retry_policy(route.idempotent),
        **destination(route),
    }
    if route.balance.policy == "maglev":
        action["hash_policy"] = [{"connection_properties": {"source_ip": True}}]
    if rewrite is not None:
        action["prefix_rewrite"] = rewrite
    result: Resource = {
        "match": match,
        "route": action,
        "stat_prefix": label,
        # The activator knows by this header what it holds; a caller cannot set it.
        "request_headers_to_add": [
            {"header": {"key": "x-lepton-route", "value": label}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ],
        "request_headers_to_remove": [ADMITTED],
        "request_body_buffer_limit": 4 << 20,
    }
    guarded = guards(route.tokens, (route.allowlist, *allowlists))
    if guarded:
        result["typed_per_filter_config"] = guarded
    return result


def destination(route: Route) -> Resource:
    """The cluster, or the clusters by weight. A release without endpoints gets no share while another has some."""
    backends = backends_of(route)
    filled = [backend for backend in backends if backend.endpoints and backend.weight > 0]
    shares = filled or [backend for backend in backends if backend.weight > 0] or [backends[0]]
    if len(shares) == 1:
        return {"cluster": cluster_name(route, shares[0].release)}
    parts = [{"name": cluster_name(route, item.release), "weight": item.weight} for item in shares]
    return {"weighted_clusters": {"clusters": parts}}


def retry_policy(idempotent: bool) -> Resource:
    """What may be sent again: what never reached a replica; for idempotent routes also what broke on the way.

    503 is what a draining replica answers. `reset` may run a request twice: only for work declared idempotent.
    """
    retry_on = "connect-failure,refused-stream,reset-before-request"
    policy: Resource = {
        "retry_on": retry_on + (",reset,retriable-status-codes" if idempotent else ""),
        "num_retries": 4,
        # Least-request likes a replica that fails fast: ask often enough to get another one.
        "host_selection_retry_max_attempts": 32,
        "retry_host_predicate": [
            {
                "name": "previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "retry_back_off": {"base_interval": "0.010s", "max_interval": "0.250s"},
    }
    if idempotent:
        policy["retriable_status_codes"] = [503]
    return policy


# ---------------------------------------------------------------------------------------------- clusters


def cluster(name: str, route: Route, paths: Paths) -> Resource:
    """One release: balanced over its endpoints, watched by health checks and by what connections do."""
    limits = {
        "max_connections": 100_000,
        "max_pending_requests": 100_000,
        "max_requests": 1_000_000,
        "max_retries": 100_000,
    }
    protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {"path": f"{paths.endpoints}/{endpoints_file(name)}"},
            }
        },
        "connect_timeout": "1s",
        **balance(route.balance, paths.picker),
        # By default Envoy gathers health changes for a second: a checked new endpoint would stay unused, with no other
        # one left after an exchange.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        "circuit_breakers": {"thresholds": [{"priority": "DEFAULT", **limits}, {"priority": "HIGH", **limits}]},
        "health_checks": [health_check(route.health_path)],
        **({"transport_socket_matches": paths.upstream.matches()} if paths.upstream else {}),
        # A removed endpoint takes no new request at once, also while it is still healthy (it drains).
        "ignore_health_on_host_removal": True,
        "outlier_detection": outlier_detection(),
        **connections(paths.upstream),
        "track_cluster_stats": {"per_endpoint_stats": True},
        "typed_extension_protocol_options": {
            protocol: {
                "@type": f"type.googleapis.com/{protocol}",
                # Shorter than the keep-alive of common servers (gunicorn 2 s, uvicorn 5 s): whoever closes an idle
                # connection first must be us, or a request could meet the closing.
                "common_http_protocol_options": {"idle_timeout": "1.5s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def endpoints_file(name: str) -> str:
    """File name of a cluster's endpoints; DNS labels have no dot, so no two clusters share one."""
    return name.replace("/", ".") + ".json"


def health_check(path: str | None) -> Resource:
    """Every 0.5 s, also without traffic. A new connection each: a server of one thread must not be occupied."""
    result: Resource = {
        "timeout": "2s",
        "interval": "0.5s",
        "no_traffic_interval": "0.5s",
        "no_traffic_healthy_interval": "0.5s",
        "unhealthy_interval": "0.25s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 1,
        "reuse_connection": False,
    }
    if path is None:
        return {**result, "tcp_health_check": {}}
    return {
        **result,
        "http_health_check": {"path": path, "host": "localhost", "expected_statuses": [{"start": 200, "end": 400}]},
    }


def outlier_detection() -> Resource:
    """Ejects an endpoint whose connections fail, before a health check can see it; never for its answers."""
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "interval": "0.5s",
        "base_ejection_time": "1s",
        "max_ejection_time": "5s",
        "max_ejection_percent": 100,
    }


def assignment(name: str, route: Route, backend: Backend, paths: Paths) -> Resource:
    """The endpoints of one release, then who may stand in when none of them is up: other releases, the activator.

    Without the huge overprovisioning factor Envoy would send part of the traffic to the stand-ins as soon as 28 %
    of the endpoints are down (its default keeps a level whole only while 1.4 × healthy share >= 1).
    """
    own = {(item.address, item.port) for item in backend.endpoints}
    others = [
        item
        for other in route.backends
        if other.release != backend.release
        for item in other.endpoints
        if (item.address, item.port) not in own
    ]
    chosen, picker = route.balance, paths.picker
    levels = [[host(item, standing(item, chosen, picker)) for item in backend.endpoints]]
    if others and backend.endpoints:
        levels.append([host(item, standing(item, chosen, picker)) for item in others])
    if route.activate:
        levels.append([activator_host(paths.activator)])
    # No locality: to Envoy an endpoint that changes its level and its locality is another one, not known to be healthy
    # for a moment, in which requests would find no replica.
    localities = [{"priority": priority, "lb_endpoints": hosts} for priority, hosts in enumerate(levels)]
    return {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": localities,
        "policy": {"overprovisioning_factor": 100_000},
    }


def host(endpoint: Endpoint, standing: Resource) -> Resource:
    """One endpoint, with its standing among its peers."""
    made: Resource = {
        "address": {"socket_address": {"address": endpoint.address, "port_value": endpoint.port}},
    }
    if not endpoint.host:
        return {"endpoint": made, **standing}
    made["hostname"] = endpoint.host
    return {"endpoint": made, "metadata": marks(), **standing}


def activator_host(path: str) -> Resource:
    """The activator: on a unix socket (nobody else reaches it), not health-checked by a replica's health path."""
    checks = {"disable_active_health_check": True}
    return {"endpoint": {"address": {"pipe": {"path": path}}, "health_check_config": checks}}


def seconds(value: float) -> str:
    """A protobuf duration."""
    return f"{value:.3f}s"
