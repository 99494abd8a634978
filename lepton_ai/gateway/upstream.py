"""TLS from the gateways to replicas on other hosts: who they prove to be, and whom they believe. Pure.

An endpoint with a host name speaks TLS and shows a certificate with that name by the cell's authority; one without
is on this machine. Both stand in one cluster, told apart by their metadata.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.spec.route import Endpoint

Resource = dict[str, Any]

_MATCH = {"tls": True}
SILENT_S = 10
"""A host that takes nothing for so long is given up, with what was sent to it: one that vanishes says nothing. Shorter
would also end what a busy replica leaves unread."""
_IPPROTO_TCP, _TCP_USER_TIMEOUT = 6, 18


@dataclass(frozen=True)
class Upstream:
    """Files (PEM) of the cell's authority, and of the certificate that the gateways show."""

    ca: str
    cert: str
    key: str

    def matches(self) -> list[Resource]:
        """Of a cluster: which endpoints are spoken to by TLS. The others are by plain TCP."""
        pair = {"certificate_chain": {"filename": self.cert}, "private_key": {"filename": self.key}}
        context = {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "tls_certificates": [pair],
                "validation_context": {"trusted_ca": {"filename": self.ca}},
            },
            # The name is each endpoint's own, and its certificate must have it.
            "auto_host_sni": True,
            "auto_sni_san_validation": True,
        }
        socket = {"name": "tls", "typed_config": context}
        return [{"name": "tls", "match": _MATCH, "transport_socket": socket}]

    def arguments(self) -> list[str]:
        """For the activator's command line."""
        return ["--tls-ca", self.ca, "--tls-cert", self.cert, "--tls-key", self.key]


def connections(upstream: Upstream | None) -> Resource:
    """Of a cluster: how a host that vanished is noticed, by what waits for an answer and by what was not taken."""
    if upstream is None:
        return _keepalive(30, 10)
    user = {"level": _IPPROTO_TCP, "name": _TCP_USER_TIMEOUT, "int_value": SILENT_S * 1000}
    return {
        **_keepalive(SILENT_S // 2, 1),
        "upstream_bind_config": {"socket_options": [{**user, "state": "STATE_PREBIND"}]},
    }


def _keepalive(first_s: int, then_s: int) -> Resource:
    probes = {"keepalive_probes": 3, "keepalive_time": first_s, "keepalive_interval": then_s}
    return {"upstream_connection_options": {"tcp_keepalive": probes}}


def check(endpoint: Endpoint, upstream: Upstream | None) -> None:
    """Raises Invalid for what is no address, and where something plain would leave this machine."""
    try:
        address = ipaddress.ip_address(endpoint.address)
    except ValueError:
        raise Invalid(
            f"address {endpoint.address!r} of replica {endpoint.replica} is not an IP address",
            hint="give the node a numeric address",
        ) from None
    if endpoint.host and upstream is None:
        raise Invalid(
            f"replica {endpoint.replica} speaks TLS, and the gateway has no certificate", hint="run: lepton up"
        )
    if not endpoint.host and not address.is_loopback:
        raise Invalid(
            f"requests for replica {endpoint.replica} at {endpoint.address} would leave this machine without TLS",
            hint="start its node's agent with --tls-cert, --tls-key and --tls-ca",
        )


def marks() -> Resource:
    """The metadata of an endpoint that is spoken to by TLS."""
    return {"filter_metadata": {"envoy.transport_socket_match": _MATCH}}
