"""What the client says of one replica (container, ports, mounts, size, place) as our template, and the way back.

Shared by the families that run something; owns nothing of how many there are or who may call them.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lepton_ai.errors import Invalid, NotFound
from lepton_ai.spec.container import LOCAL, Mount, Port
from lepton_ai.spec.workload import Template
from lepton_ai.wire import shapes
from lepton_ai.wire.kept import extras
from lepton_ai.wire.record import Json, environment, envs, number, rows, table, text, texts, truth, whole

HOST_PORT = "HostPortMapping"
PROXY = "IngressProxy"
CONTAINER = ("container.command", "container.image", "container.ports")
SIZE = (
    "resource_shape", "cpu", "memory", "accelerator_type", "accelerator_num", "shared_memory_size", "host_network",
    "affinity.allowed_dedicated_node_groups", "affinity.allowed_nodes_in_node_group",
)  # fmt: skip
_SYSTEM = frozenset(
    {
        "/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/media", "/opt", "/proc", "/run", "/sbin", "/srv",
        "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/sbin", "/var", "/sys/fs/cgroup",
        "/sys/kernel/security", "/proc/sys", "/proc/bus",
    }
)  # fmt: skip
"""Where the client itself refuses to mount; what lies below some of them is allowed."""


@dataclass(frozen=True)
class Where:
    """What must be known of the cell to read and to show a workload: its group, the kind of each volume."""

    group: str = ""
    group_name: str = ""
    volumes: Mapping[str, str] = field(default_factory=dict)
    runs_images: bool = False

    def image(self, template: Template) -> str:
        """Whether the image is what runs: "", "advisory" or "used"."""
        return "" if template.image is None else "used" if self.runs_images else "advisory"


# -- from the client


def template_given(spec: Json, size: Json, where: Where, base: Json | None = None) -> tuple[Json, Json]:
    """The template that `spec` asks for on top of `base`, and what of its arrays is only kept.

    `size` holds shape, memory and place: a part of `spec`, or all of it. Raises Invalid, NotFound.
    """
    template: Json = dict(base or {})
    refuse_rights(spec, size)
    container = table(spec.get("container"), "spec.container")
    template["command"] = texts(container.get("command"), "spec.container.command")
    image = container.get("image")
    template["image"] = text(image, "spec.container.image", 512) if image else None
    if template["image"] is None and not template["command"]:
        raise Invalid("spec.container has neither a command nor an image", hint="give one of them, or both")
    template["env"], template["secrets"] = environment(spec.get("envs"))
    template["image_pull_secrets"] = texts(spec.get("image_pull_secrets"), "spec.image_pull_secrets", 8)
    template["mounts"], kept = mounts_given(spec.get("mounts"), where)
    _size(template, size)
    template["nodes"] = affinity(size.get("affinity"), where)
    return template, kept


def refuse_rights(spec: Json, size: Json) -> None:
    """Raises Invalid for what no workload here is given."""
    context = table(spec.get("user_security_context"), "spec.user_security_context")
    if truth(context.get("privileged"), "spec.user_security_context.privileged"):
        hint = "leave --privileged out: a workload here is kept apart from its host"
        raise Invalid("spec.user_security_context.privileged: nothing runs privileged here", hint=hint)
    if truth(size.get("host_network"), "host_network"):
        hint = "leave it out; container ports with HostPortMapping are reached at the node's address"
        raise Invalid("host_network: a workload here has no part in its host's network", hint=hint)
    if rows(spec.get("storage_attachments"), "spec.storage_attachments"):
        hint = "hand the bucket's keys over as secrets (--secret AWS_ACCESS_KEY_ID), or mount a volume (--mount)"
        raise Invalid("spec.storage_attachments: nodes here write no profiles for data sources", hint=hint)


def ports_given(container: Json, *, served: bool, exposed: bool) -> tuple[int | None, list[Json], Json]:
    """(the served port, the others, what of them is only kept). `served`: the first one is what is served.

    `exposed`: every port is reached from outside, whatever strategy was asked for. Raises Invalid.
    """
    main: int | None = None
    ports: list[Json] = []
    kept: Json = {}
    seen = set()
    for index, item in enumerate(rows(container.get("ports"), "spec.container.ports")):
        at = f"spec.container.ports[{index}]"
        port, rest = _port(item, at)
        key = (port["number"], port["protocol"])
        if key in seen:
            raise Invalid(f"{at}: port {key[0]}/{key[1]} is there twice", hint="give each port once")
        seen.add(key)
        strategies = texts(item.get("expose_strategies"), f"{at}.expose_strategies", 2)
        for strategy in strategies:
            if strategy not in (HOST_PORT, PROXY):
                raise Invalid(f"{at}: strategy {strategy[:40]!r} is not known", hint=f"use {HOST_PORT} or {PROXY}")
        if served and main is None:
            if port["protocol"] != "TCP":
                raise Invalid(f"{at}: an endpoint is served over TCP", hint=f"for example {port['number']}:tcp")
            main = port["number"]
            if strategies not in ([], [PROXY]):
                rest["expose_strategies"] = strategies
        else:
            port["exposed"] = exposed or HOST_PORT in strategies
            ports.append(port)
            if strategies != ([HOST_PORT] if port["exposed"] else []):
                rest["expose_strategies"] = strategies
        if rest:
            kept[f"container.ports[{key[0]}/{key[1]}]"] = rest
    return main, ports, kept


def _port(item: Json, at: str) -> tuple[Json, Json]:
    number_ = whole(item.get("container_port"), f"{at}.container_port", 0, 1, 65535)
    if not number_:
        raise Invalid(f"{at} has no container_port", hint='for example {"container_port": 8080}')
    protocol = text(item.get("protocol") or "TCP", f"{at}.protocol", 8).upper()
    if protocol not in ("TCP", "UDP"):
        raise Invalid(f"{at}: protocol {protocol!r} is not carried here", hint="use TCP or UDP")
    port: Json = {"number": number_, "protocol": protocol}
    if item.get("name"):
        port["name"] = text(item["name"], f"{at}.name", 63)
    rest: Json = {}
    if item.get("app_protocol") is not None:
        rest["app_protocol"] = text(item["app_protocol"], f"{at}.app_protocol", 64)
    if item.get("enable_load_balancer") is not None:
        rest["enable_load_balancer"] = truth(item["enable_load_balancer"], f"{at}.enable_load_balancer")
    if item.get("host_port") is not None:
        rest["host_port"] = whole(item["host_port"], f"{at}.host_port", 0, 0, 65535)
    return port, rest


def mounts_given(value: object, where: Where) -> tuple[list[Json], Json]:
    """(our mounts, what of them is only kept). Raises Invalid, NotFound."""
    mounts: list[Json] = []
    kept: Json = {}
    for index, item in enumerate(rows(value, "spec.mounts")):
        at = f"spec.mounts[{index}]"
        target = text(item.get("mount_path"), f"{at}.mount_path", 1024)
        normal = posixpath.normpath(target).replace("//", "/")
        if normal in _SYSTEM:
            raise Invalid(f"{at}: {normal} is a folder of the system", hint="mount elsewhere, e.g. /mnt/data")
        options = table(item.get("mount_options"), f"{at}.mount_options")
        mounts.append(
            {
                "volume": _volume(text(item.get("from"), f"{at}.from", 255), at, where),
                "path": text(item.get("path") or "/", f"{at}.path", 1024),
                "target": target,
                "read_only": truth(options.get("read_only"), f"{at}.mount_options.read_only"),
            }
        )
        if options.get("local_cache_size_mib"):
            size = whole(options["local_cache_size_mib"], f"{at}.mount_options.local_cache_size_mib", 0)
            kept[f"mounts[{normal}]"] = {"mount_options": {"local_cache_size_mib": size}}
    return mounts, kept


def _volume(source: str, at: str, where: Where) -> str:
    """`node-local`, `node-<type>:<name>`, or a name alone."""
    if source == "node-local":
        return LOCAL
    kind, colon, name = source.removeprefix("node-").partition(":")
    if not source.startswith("node-"):
        kind, name = "", source
    elif not colon or not kind or not name:
        raise Invalid(f"{at}.from is {source[:80]!r}", hint="use node-local, or node-<type>:<storage name>")
    known = where.volumes.get(name)
    if known is None:
        names = ", ".join(f"node-{kind}:{name}" for name, kind in where.volumes.items() if name != LOCAL)
        hint = f"storage here: node-local{', ' + names if names else ''}"
        raise NotFound(f"{at}.from: there is no storage {name[:80]!r}", hint=hint)
    if kind and kind != known:
        raise Invalid(f"{at}.from: storage {name} is of type {known}", hint=f"use node-{known}:{name}")
    return name


def affinity(value: object, where: Where) -> list[str]:
    """The nodes that are allowed; none: any. Raises NotFound for a node group that is not this cell's, Invalid."""
    asked = table(value, "affinity")
    groups = texts(asked.get("allowed_dedicated_node_groups"), "affinity.allowed_dedicated_node_groups")
    if groups and not {where.group, where.group_name}.intersection(groups):
        hint = f"this cell is node group {where.group}: lep node list"
        raise NotFound(f"there is no node group {groups[0][:80]!r}", hint=hint)
    return texts(asked.get("allowed_nodes_in_node_group"), "affinity.allowed_nodes_in_node_group")


def _size(template: Json, size: Json) -> None:
    shape, cpu, memory = size.get("resource_shape"), size.get("cpu"), size.get("memory")
    resources: Json = dict(template.get("resources") or {})
    if shape:
        name = text(shape, "resource_shape", 64).lower()
        template["shape"] = name
        found = shapes.resources(name)
        resources |= {"cpu_milli": found.cpu_milli, "memory_mib": found.memory_mib}
        for field_, given, own in (("cpu", cpu, found.cpu_milli / 1000), ("memory", memory, found.memory_mib)):
            if given is not None and number(given, field_) != own:
                raise Invalid(f"{field_} = {given} is not that of shape {name}", hint="give a shape, or cpu and memory")
        own_type, own_milli = found.accelerator_type, found.accelerator_milli
    else:
        template["shape"] = None
        if cpu is not None:
            cores = number(cpu, "resource_requirement.cpu", 0, 1024)
            resources["cpu_milli"] = max(1, math.ceil(cores * 1000 - 1e-6))
        if memory is not None:
            resources["memory_mib"] = whole(memory, "resource_requirement.memory", 256, 1, 2**26)
        own_type, own_milli = None, 0
    kind, many = size.get("accelerator_type"), size.get("accelerator_num")
    resources["accelerator_type"] = text(kind, "accelerator_type", 64) if kind else own_type
    resources["accelerator_milli"] = own_milli
    if many is not None:
        resources["accelerator_milli"] = math.ceil(number(many, "accelerator_num", 0, 64) * 1000 - 1e-6)
    elif kind and not own_milli:
        resources["accelerator_milli"] = 1000
    template["resources"] = resources
    template["shared_memory_mib"] = whole(size.get("shared_memory_size"), "shared_memory_size", 0, 0, 2**24) or None


# -- to the client


def container_shown(template: Template, advisory: Mapping[str, Any]) -> Json:
    container: Json = {}
    if template.image is not None:
        container["image"] = template.image
    if template.command:
        container["command"] = list(template.command)
    ports = [] if template.port is None else [_port_shown(Port(number=template.port), advisory, served=True)]
    ports += [_port_shown(port, advisory) for port in template.ports]
    if ports:
        container["ports"] = ports
    return container


def _port_shown(port: Port, advisory: Mapping[str, Any], *, served: bool = False) -> Json:
    shown: Json = {"container_port": port.number, "protocol": port.protocol}
    if port.name:
        shown["name"] = port.name
    if not served:
        shown["expose_strategies"] = [HOST_PORT] if port.exposed else []
    return {**shown, **extras(advisory, "container.ports", f"{port.number}/{port.protocol}")}


def mounts_shown(mounts: Iterable[Mount], advisory: Mapping[str, Any], where: Where) -> list[Json]:
    found = []
    for mount in mounts:
        source = "node-local"
        if mount.volume != LOCAL:
            source = f"node-{where.volumes.get(mount.volume, 'nfs')}:{mount.volume}"
        shown: Json = {"path": mount.path, "from": source, "mount_path": mount.target}
        options: Json = {"read_only": True} if mount.read_only else {}
        options |= extras(advisory, "mounts", mount.target).get("mount_options", {})
        found.append({**shown, "mount_options": options} if options else shown)
    return found


def size_shown(template: Template, where: Where) -> Json:
    """Shape or sizes, and where it may run."""
    resources = template.resources
    size: Json = {}
    known = shapes.SHAPES.get(template.shape or "")
    if known is not None and (known.cpu_milli, known.memory_mib) == (resources.cpu_milli, resources.memory_mib):
        size["resource_shape"] = template.shape
    else:
        known = None
        size |= {"cpu": resources.cpu_milli / 1000, "memory": resources.memory_mib}
    if resources.accelerator_milli != (known.accelerator_milli if known else 0):
        size["accelerator_num"] = resources.accelerator_milli / 1000
    if resources.accelerator_type != (known.accelerator_type if known else None):
        size["accelerator_type"] = resources.accelerator_type
    if template.shared_memory_mib is not None:
        size["shared_memory_size"] = template.shared_memory_mib
    groups: Json = {"allowed_dedicated_node_groups": [where.group]} if where.group else {}
    if template.nodes:
        groups["allowed_nodes_in_node_group"] = list(template.nodes)
    if groups:
        size["affinity"] = groups
    return size


def environment_shown(template: Template) -> list[Json]:
    return envs(template.env, template.secrets)
