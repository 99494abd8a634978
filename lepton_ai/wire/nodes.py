"""Node groups and nodes as the public client knows them: a cell is one group, under the cell's name."""

from __future__ import annotations

from collections.abc import Iterable

from lepton_ai.wire.record import Json


def group_id(cell: str) -> str:
    return f"{cell}-0001"


def group(cell: str, nodes: Iterable[Json]) -> Json:
    """The cell as a node group. `nodes` in our own JSON."""
    items = list(nodes)
    ready = sum(item["state"] == "ready" for item in items)
    return {
        "metadata": {"id": group_id(cell), "name": cell},
        "spec": {"node_mode": "customer-node", "desired_nodes": len(items), "volumes": []},
        "status": {"ready_nodes": ready, "quota_enabled": False},
    }


def shown(node: Json, cell: str, replicas: Iterable[Json], workspace: str) -> Json:
    """A node; `replicas` (our JSON) are those of the caller's workspace."""
    words = {"ready": ["Ready", "Healthy"], "draining": ["Ready", "Draining"]}.get(node["state"], ["Offline"])
    return {
        "metadata": {"id": node["name"], "name": node["name"], "created_at": node["created_ms"]},
        "spec": {
            "unschedulable": node["unschedulable"],
            "provider": "local",
            "hostname": node["name"],
            "local_ip": node["address"],
            "dedicated_node_group": group_id(cell),
            "resource": {
                "cpu": {"allocated": node["cpu_placed_milli"] / 1000, "total": node["cpu_milli"] / 1000},
                "memory": {"allocated": node["memory_placed_mib"], "total": node["memory_mib"]},
            },
        },
        "status": {
            "status": words,
            "workloads": [
                {
                    "type": item["owner_kind"],
                    "name": item["owner"],
                    "id": item["owner"],
                    "replica_id": item["name"],
                    "workspace": workspace,
                    "cpu": item["resources"].get("cpu_milli", 0) / 1000,
                    "memory": item["resources"].get("memory_mib", 0),
                }
                for item in replicas
                if item["node"] == node["name"] and item["phase"] != "exited"
            ],
        },
    }
