"""Which nodes a cell has, by the setting `cluster`: shares of this machine, or agents that others start on other hosts.

Owns what their records say, CELL/tls (the cell's authority), and what lies in CELL/nodes/NAME of a node elsewhere: the
folder to copy to its host. It has that node's token and certificate, and nothing that opens another.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil

from lepton_ai.control.folder import State
from lepton_ai.errors import DiskFull, Invalid, Unavailable, Unsupported
from lepton_ai.gateway.upstream import Upstream
from lepton_ai.settings import is_loopback
from lepton_ai.spec.replica import node_host
from lepton_ai.tenancy.authority import Authority

SCHEME = "static"
NODES_MAX = 64
MEMORY_SHARE = 0.7
"""of a machine's memory that is promised to replicas; the rest is the cell's own and everybody else's"""
_HINT = "use static://10.0.0.1:7070,10.0.0.2:7070 with the addresses that the agents listen on"
_START = """#!/bin/sh
# Runs the agent of node {name} of the cell {cell}; lepton-cloud has to be installed on this host.
# What is said after it counts, for example: sh start --cpu-milli=2000 --memory-mib=4096
# Under systemd: Restart=always, and KillMode=process, so that what runs here outlives the agent.
cd "$(dirname "$0")" || exit 1
exec "${{PYTHON:-python3}}" -m lepton_ai.node --dir=. --name={name} --address={address} --port={port} \\
  --tls-cert=node.pem --tls-key=node.key --tls-ca=ca.pem --isolation={isolation} --runtime={runtime} \\
  --cpu-milli=$(($(nproc) * 1000)) --memory-mib=$(awk '/^MemTotal/ {{print int($2 * 0.7 / 1024)}}' /proc/meminfo) "$@"
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A node that somebody else starts, at `address`:`port`."""

    name: str
    address: str
    port: int


def hosts(cluster: str) -> tuple[Host, ...]:
    """The nodes of `cluster` = static://ADDRESS:PORT,…, by their place in it: node-1, node-2; none of another scheme.

    Raises Invalid.
    """
    if not cluster.startswith(SCHEME + ":"):
        return ()
    found: list[Host] = []
    for part in cluster.removeprefix(SCHEME + "://").split(","):
        address, _, port = part.strip().rpartition(":")
        try:
            address = str(ipaddress.ip_address(address.removeprefix("[").removesuffix("]")))
        except ValueError:
            raise Invalid(f"cluster = {cluster}: {part.strip()!r} is not ADDRESS:PORT", hint=_HINT) from None
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise Invalid(f"cluster = {cluster}: {part.strip()!r} has no port", hint=_HINT)
        if any((address, int(port)) == (host.address, host.port) for host in found):
            raise Invalid(f"cluster = {cluster}: {part.strip()} is there twice", hint=_HINT)
        found.append(Host(f"node-{len(found) + 1}", address, int(port)))
    return tuple(found)


def local(cluster: str) -> int:
    """How many agents `cluster` wants on this machine. Raises Invalid, Unsupported."""
    parts = urlsplit(cluster)
    if parts.scheme == SCHEME:
        return 0
    if parts.scheme != "local":
        hint = "use local://?nodes=3 or static://ADDRESS:PORT,…"
        raise Unsupported(f"cluster = {cluster} is not part of this release", hint=hint)
    text = parse_qs(parts.query).get("nodes", ["3"])[0]
    if not text.isdecimal() or not 1 <= int(text) <= NODES_MAX:
        hint = f"use local://?nodes=1 to {NODES_MAX}"
        raise Invalid(f"cluster = {cluster}: nodes={text} is not a number of nodes", hint=hint)
    return int(text)


def check(before: State | None, cluster: str, nodes: int) -> None:
    """Whether the cell can have `nodes` nodes here and those that `cluster` names. Raises Invalid."""
    remote = hosts(cluster)
    count = nodes + len(remote)
    if not 1 <= count <= NODES_MAX:
        raise Invalid(f"{count} nodes cannot be made", hint=f"use 1 to {NODES_MAX}")
    if before is None:
        return
    anew = f"start anew: lepton down {before.name} --purge"
    known = afar(before)
    if bool(known) != bool(remote):
        was = before.settings.cluster
        raise Invalid(f"cell {before.name} has cluster = {was}, not {cluster}", hint=f"set it so, or {anew}")
    if nodes < len(before.nodes) or len(remote) < len(known):
        hint = f"drain what is too many (lepton node drain), or {anew}"
        raise Invalid(f"cell {before.name} has {len(before.nodes or known)} nodes, not {count}", hint=hint)


def afar(state: State | None) -> tuple[Host, ...]:
    """The cell's nodes on other hosts."""
    return () if state is None else hosts(state.settings.cluster)


def specs(state: State) -> dict[str, dict[str, Any]]:
    """What the records of the cell's nodes say, by name; folders for other hosts are made. Raises as `prepare`."""
    found = {
        name: {
            "address": "127.0.0.1",
            "port": 0,
            "token_file": str(state.node_dir(name) / "agent.token"),
            "capacity": share(len(state.nodes)),
        }
        for name in state.nodes
    }
    return found | {host.name: prepare(state, host) for host in afar(state)}


def share(nodes: int) -> dict[str, int]:
    """What one of `nodes` equal shares of this machine gives to replicas."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_mib = psutil.virtual_memory().total >> 20
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            memory_mib = min(memory_mib, int(limit.read_text()) >> 20)
    nodes = max(1, nodes)
    # Rounded down to what people read at a glance.
    return {
        "cpu_milli": max(50, cores * 1000 // nodes),
        "memory_mib": max(64, int(memory_mib * MEMORY_SHARE / nodes) // 64 * 64),
    }


def authority(state: State) -> Authority:
    """The cell's, made when it is first asked for."""
    return Authority(state.dir / "tls", state.name)


def upstream(state: State) -> Upstream | None:
    """What gateways prove themselves with to nodes, and believe them by; None where all is on this machine."""
    if not afar(state):
        return None
    made = authority(state)
    pair = made.client("gateway")
    return Upstream(str(made.ca), str(pair.cert), str(pair.key))


def prepare(state: State, host: Host) -> dict[str, Any]:
    """Make the folder that the node's host needs; returns what its record says. Idempotent: what is good stays.

    Raises Unavailable, DiskFull, Corrupt.
    """
    folder, made = state.node_dir(host.name), authority(state)
    made.node(host.name, folder)
    text = _START.format(
        name=host.name,
        cell=state.name,
        address=host.address,
        port=host.port,
        isolation=state.settings.isolation,
        runtime=shlex.quote(state.settings.runtime),
    )
    try:
        _write(folder / "ca.pem", made.ca.read_text("ascii"))
        _write(folder / "start", text)
        if not (folder / "agent.token").exists():
            _write(folder / "agent.token", secrets.token_urlsafe(32))
    except OSError as error:
        if error.errno in (28, 122):
            raise DiskFull(f"no room to write {folder}", hint=f"free space: df -h {folder}") from error
        raise Unavailable(f"cannot write {folder}: {error.strerror}", hint=f"check: ls -la {folder}") from error
    control = made.client("control")
    return {
        "address": host.address,
        "port": host.port,
        "token_file": str(folder / "agent.token"),
        "tls": {
            "ca": str(made.ca),
            "cert": str(control.cert),
            "key": str(control.key),
            "host": node_host(host.name),
        },
    }


def advice(state: State, host: Host) -> str:
    """What is to be done so that the node comes."""
    return f"copy {state.node_dir(host.name)} to {host.address} and run there: sh {host.name}/start"


def lacks(state: State) -> str:
    """What hosts of this cell cannot do as it is configured, in a few words; else empty."""
    if afar(state) and is_loopback(state.api_host):
        return f"nodes on other hosts cannot fetch models from {state.api_url}: set api_host, tls_cert and tls_key"
    return ""


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
