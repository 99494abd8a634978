"""The workspace as the public client knows it: what it asks at login."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lepton_ai.wire.record import Json
from lepton_ai.wire.shapes import SHAPES

NEVER_MS = 253_402_300_799_000
"""The last millisecond of the year 9999: the client wants a number where a token has no end."""


def named(workspace: str) -> Json:
    """The answer to GET {base}."""
    return {"id": workspace, "display_name": workspace}


def token(masked: str, expires_ms: int | None) -> Json:
    """A token; the client finds its own by what stands before and after "..."."""
    return {"masked_value": masked.replace("…", "..."), "expires_at": NEVER_MS if expires_ms is None else expires_ms}


def shown(
    workspace: str, version: str, counts: Mapping[str, int], nodes: Iterable[Json], replicas: Iterable[Json]
) -> Json:
    """The answer to GET /workspace. `nodes` of the cell and `replicas` of the workspace in our own JSON."""
    items = list(nodes)
    held = [item["resources"] for item in replicas if item["phase"] != "exited"]
    return {
        "build_time": "",
        "git_commit": version,
        "workspace_name": workspace,
        "workspace_tier": "owned",
        "workspace_state": "normal",
        "supported_shapes": {
            name: {"cpu": size.cpu_milli / 1000, "memory": size.memory_mib} for name, size in SHAPES.items()
        },
        "workspace_disk_usage_bytes": 0,
        "workloads": {
            "num_deployments": counts.get("deployment", 0),
            "num_jobs": counts.get("job", 0),
            "num_pods": 0,
            "num_secrets": counts.get("secret", 0),
            "num_image_pull_secrets": 0,
        },
        "resource_quota": {
            "limit": {
                "cpu": sum(item["cpu_milli"] for item in items) / 1000,
                "memory": sum(item["memory_mib"] for item in items),
                "accelerator_num": 0.0,
            },
            "used": {
                "cpu": sum(item.get("cpu_milli", 0) for item in held) / 1000,
                "memory": sum(item.get("memory_mib", 0) for item in held),
                "accelerator_num": 0.0,
            },
        },
        "features": {"enable_new_deployment_api": False},
    }
