"""The workspace as the public client knows it: what it asks at login."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lepton_ai.wire.record import Json
from lepton_ai.wire.shapes import Priced

NEVER_MS = 253_402_300_799_000
"""The last millisecond of the year 9999: the client wants a number where a token has no end."""


def named(workspace: str) -> Json:
    """The answer to GET {base}."""
    return {"id": workspace, "name": workspace, "display_name": workspace}


def token(masked: str, expires_ms: int | None) -> Json:
    """A token; the client finds its own by what stands before and after "..."."""
    return {"masked_value": masked.replace("…", "..."), "expires_at": NEVER_MS if expires_ms is None else expires_ms}


def shown(
    workspace: str,
    version: str,
    *,
    counts: Mapping[str, int],
    nodes: Iterable[Json],
    replicas: Iterable[Json],
    shapes: Iterable[Priced],
    disk_bytes: int,
) -> Json:
    """The answer to GET /workspace. `nodes` of the cell and `replicas` of the workspace in our own JSON.

    The limit of a workspace is what the cell's nodes have: there is no smaller quota yet.
    """
    items = list(nodes)
    held = [item["resources"] for item in replicas if item["phase"] != "exited"]
    return {
        "build_time": "",
        "git_commit": version,
        "workspace_name": workspace,
        "workspace_tier": "owned",
        "workspace_state": "normal",
        "supported_shapes": {item.name: _shape(item) for item in shapes},
        "workspace_disk_usage_bytes": disk_bytes,
        "workloads": {
            f"num_{kind}": counts.get(kind, 0)
            for kind in ("deployments", "jobs", "pods", "secrets", "image_pull_secrets")
        },
        "resource_quota": {
            "limit": {
                "cpu": sum(item["cpu_milli"] for item in items) / 1000,
                "memory": sum(item["memory_mib"] for item in items),
                "accelerator_num": sum(item["accelerator_milli"] for item in items) / 1000,
            },
            "used": {
                "cpu": sum(item.get("cpu_milli") or 0 for item in held) / 1000,
                "memory": sum(item.get("memory_mib") or 0 for item in held),
                "accelerator_num": sum(item.get("accelerator_milli") or 0 for item in held) / 1000,
            },
        },
        "features": {"enable_new_deployment_api": False, "enable_secure_endpoint_defaults": False},
    }


def _shape(item: Priced) -> Json:
    shape: Json = {
        "description": item.description,
        "cpu": item.resources.cpu_milli / 1000,
        "memory": item.resources.memory_mib,
    }
    if item.resources.accelerator_milli:
        shape |= {
            "accelerator_type": item.resources.accelerator_type,
            "accelerator_num": item.resources.accelerator_milli / 1000,
        }
    return shape
