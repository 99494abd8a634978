"""Node groups, nodes and machines as the public client knows them: a cell is one group, under the cell's name."""

from __future__ import annotations

from collections.abc import Iterable

from lepton_ai.wire.record import Json

PROVIDER = "local"


def group_id(cell: str) -> str:
    return f"{cell}-0001"


def group(cell: str, nodes: Iterable[Json], volumes: Iterable[Json], workspace: str) -> Json:
    """The cell as a node group, as `workspace` sees it. `nodes` in our own JSON, `volumes` in the client's."""
    items = list(nodes)
    ready = sum(item["state"] == "ready" for item in items)
    products = sorted({item["accelerator_type"] for item in items if item["accelerator_type"]})
    spec: Json = {
        "node_mode": "customer-node",
        "desired_nodes": len(items),
        "volumes": list(volumes),
        "enable_object_storage": True,
        "workspaces": [workspace],
    }
    if products:
        spec["gpu_product"] = ", ".join(products)
    metadata = {"id": group_id(cell), "name": cell}
    created = [item["created_ms"] for item in items]
    if created:
        metadata |= {"created_at": min(created)}
    return {"metadata": metadata, "spec": spec, "status": {"ready_nodes": ready, "quota_enabled": True}}


def shown(node: Json, cell: str, replicas: Iterable[Json], workspace: str, share: int = 1) -> Json:
    """A node; `replicas` (our JSON) are those of the caller's workspace.

    `share`: so many nodes are on its machine. Each shows that part of the disk, because the client adds them up.
    """
    words = _words(node)
    machine = node.get("machine") or {}
    return {
        "metadata": {
            "id": node["name"],
            "name": node["name"],
            "created_at": node["created_ms"],
            "labels": {"cell": cell, "runtime": node["runtime"], "isolation": node["isolation"]},
        },
        "spec": {
            "unschedulable": node["unschedulable"],
            "provider": PROVIDER,
            "hostname": machine.get("hostname") or node["name"],
            "local_ip": node["address"],
            "machine_id": machine_id(node),
            "dedicated_node_group": group_id(cell),
            "resource": _resource(node, share),
        },
        "status": {
            "status": words,
            "machine_status": words[0],
            "hostname": machine.get("hostname") or node["name"],
            "workloads": [
                _workload(item, workspace)
                for item in replicas
                if item["node"] == node["name"] and item["phase"] != "exited"
            ],
        },
    }


def machines(nodes: Iterable[Json]) -> list[Json]:
    """The machines that the nodes are on, each once."""
    found: dict[str, list[Json]] = {}
    for node in nodes:
        found.setdefault(machine_id(node), []).append(node)
    return [_machine(identity, here) for identity, here in found.items()]


def machine_id(node: Json) -> str:
    """Nodes with the same one are on the same machine; before its agent was heard, its address has to do."""
    return str((node.get("machine") or {}).get("id") or f"at-{node['address']}")


def _words(node: Json) -> list[str]:
    """What the client calls its state. Usable to it: Ready, not Unhealthy, and schedulable."""
    state = node["state"]
    if state == "unreachable":
        return ["Offline"]
    if node["reason"] and state == "ready":
        return ["Ready", "Unhealthy"]
    return ["Ready", "Draining"] if state == "draining" else ["Ready", "Healthy"]


def _resource(node: Json, share: int = 1) -> Json:
    machine = node.get("machine") or {}
    found: Json = {
        "cpu": {"allocated": node["cpu_placed_milli"] / 1000, "total": node["cpu_milli"] / 1000},
        "memory": {"allocated": node["memory_placed_mib"], "total": node["memory_mib"]},
    }
    if machine.get("processor"):
        found["cpu"]["type"] = machine["processor"]
    if node["accelerator_milli"]:
        found["gpu"] = {
            "product": node["accelerator_type"] or "",
            "allocated": node["accelerator_placed_milli"] / 1000,
            "total": node["accelerator_milli"] / 1000,
        }
    if machine.get("disk_mib"):
        used = max(0, machine["disk_mib"] - node["disk_free_mib"])
        found["disk"] = {
            "total_bytes": (machine["disk_mib"] << 20) // share,
            "used_bytes": (used << 20) // share,
        }
    if machine.get("os"):
        found["system"] = {"os": machine["os"], "kernel_version": machine.get("kernel") or ""}
    return found


def _workload(item: Json, workspace: str) -> Json:
    held = item["resources"]
    return {
        "type": item["owner_kind"],
        "name": item["owner"],
        "id": item["owner"],
        "replica_id": item["name"],
        "workspace": workspace,
        "cpu": (held.get("cpu_milli") or 0) / 1000,
        "memory": held.get("memory_mib") or 0,
        "gpu_count": (held.get("accelerator_milli") or 0) / 1000,
    }


def _machine(identity: str, nodes: list[Json]) -> Json:
    """A machine; its nodes share it, so its sizes are theirs together."""
    first, machine = nodes[0], nodes[0].get("machine") or {}
    whole = dict(first)
    for field in ("cpu", "memory", "accelerator"):
        unit = "mib" if field == "memory" else "milli"
        whole[f"{field}_{unit}"] = sum(node[f"{field}_{unit}"] for node in nodes)
        whole[f"{field}_placed_{unit}"] = sum(node[f"{field}_placed_{unit}"] for node in nodes)
    away = all(node["state"] == "unreachable" for node in nodes)
    name = machine.get("hostname") or identity
    return {
        "metadata": {"id": identity, "name": name, "created_at": min(node["created_ms"] for node in nodes)},
        "status": {
            "machine_id": identity,
            "node_name": first["name"],
            "provider": PROVIDER,
            "private_ip": first["address"],
            "hostname": name,
            "status": "Offline" if away else "Ready",
            "resource": _resource(whole),
        },
    }
