"""The listener of the gateway and what it answers itself: errors as JSON, with a hint.

Owns the port, TLS, path normalisation and the bodies of local replies. Which path leads where is in `resources`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.gateway import guards
from lepton_ai.settings import Settings, is_loopback, networks

Resource = dict[str, Any]


@dataclass(frozen=True)
class Listen:
    """Where the gateway listens.

    What X-Forwarded-For says of a caller is believed from the networks in `trusted` only: those of proxies before it.

    Raises:
        Invalid: an address beyond loopback without TLS, a certificate without its key, or no network.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    trusted: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings, host: str, port: int) -> Listen:
        """What a cell's settings say of its gateway at `host`:`port`."""
        return cls(host, port, settings.tls_cert, settings.tls_key, networks(settings.trusted_proxies))

    def __post_init__(self) -> None:
        for text in self.trusted:
            guards.network(text)
        if bool(self.tls_cert) != bool(self.tls_key):
            raise Invalid("tls_cert and tls_key go together", hint="set both, or neither")
        if not is_loopback(self.host) and not self.tls_cert:
            raise Invalid(
                f"the gateway would listen on {self.host}, beyond this machine, without TLS",
                hint="set tls_cert and tls_key, or listen on 127.0.0.1",
            )
        if not 1 <= self.port <= 65535:
            raise Invalid(f"gateway port {self.port} is not a port", hint="choose 1 to 65535")

    @property
    def address(self) -> str:
        return "127.0.0.1" if self.host == "localhost" else self.host


def listener(listen: Listen, routes_file: str) -> Resource:
    """The one listener; several Envoys bind the same port (SO_REUSEPORT)."""
    chains = [chain(listen, routes_file)]
    if listen.trusted:
        ranges = [guards.network(text) for text in listen.trusted]
        chains.insert(0, {**chain(listen, routes_file, hops=1), "filter_chain_match": {"source_prefix_ranges": ranges}})
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "gateway",
        "address": {"socket_address": {"address": listen.address, "port_value": listen.port}},
        "enable_reuse_port": True,
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": chains,
    }


def chain(listen: Listen, routes_file: str, hops: int = 0) -> Resource:
    """What becomes of a connection. `hops`: so many proxies before it say who calls; at 0 it is who connects."""
    manager: Resource = {
        "@type": _HTTP + "HttpConnectionManager",
        **connection_manager(),
        "rds": {
            "route_config_name": "routes",
            "config_source": {"resource_api_version": "V3", "path_config_source": {"path": routes_file}},
        },
    }
    if hops:
        manager["xff_num_trusted_hops"] = hops
    made: Resource = {"name": f"hops-{hops}", "filters": [{"name": "http", "typed_config": manager}]}
    if listen.tls_cert:
        made["transport_socket"] = tls(listen)
        made["transport_socket_connect_timeout"] = "30s"  # as for the head of a request
    return made


_HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."


def connection_manager() -> Resource:
    """How a request is read, and what it passes. Dot segments (%2e too) and double slashes are resolved first."""
    networks, tokens = guards.filters()
    return {
        "stat_prefix": "gateway",
        "normalize_path": True,
        "merge_slashes": True,
        # %2f stays as it is: it never separates segments here, and applications use it inside names.
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "use_remote_address": True,
        # Nobody is internal: a caller on this machine must not steer retries and timeouts by x-envoy-* headers.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "request_headers_timeout": "30s",
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": "300s", "headers_with_underscores_action": "ALLOW"},
        "http2_protocol_options": {"max_concurrent_streams": 1024},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [
            networks,
            {
                # Reached only by who came through: a refusal after it is the tokens' (see `local_replies`).
                "name": "admitted",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                    "mutations": {"request_mutations": [{"append": {**_ADMITTED, "append_action": _OVERWRITE}}]},
                },
            },
            tokens,
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            },
        ],
        "local_reply_config": local_replies(),
    }


ADMITTED = "x-lepton-admitted"
_ADMITTED = {"header": {"key": ADMITTED, "value": "1"}}
_OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"
_REPLIES = (
    (400, "InvalidParameter", "the request is not valid HTTP", "check the request line, the headers and the path"),
    (401, "Unauthorized", "the endpoint token is missing or wrong", "send the header Authorization: Bearer TOKEN"),
    (403, "Forbidden", "callers from this address are not let in", "see the endpoint's allowlist"),
    (404, "NotFound", "no deployment is served under this address", "run: lepton ps"),
    (408, "Timeout", "the request did not arrive in time", "send the request again"),
    (413, "TooLarge", "the request is too large to be held", "send a smaller body"),
    (426, "InvalidParameter", "this protocol is not spoken here", "use HTTP/1.1 or HTTP/2"),
    (429, "Busy", "too many requests", "try again later"),
    (431, "TooLarge", "the request headers are too large", "send smaller headers"),
    (502, "Unavailable", "the replica's answer was not valid HTTP", "run: lepton logs NAME"),
    (503, "Unavailable", "no healthy replica takes the request", "run: lepton ps, then lepton logs NAME"),
    (504, "Timeout", "the replica did not answer in time", "raise request_timeout_s, or look at: lepton logs NAME"),
)


def local_replies() -> Resource:
    """{"code", "message", "hint"} for every answer that Envoy gives itself; what a replica answers is untouched."""
    mappers = []
    for status, code, message, hint in _REPLIES:
        # The filter that checks tokens says 403; what it means is 401 (RFC 9110, 15.5.2).
        asked: Resource = {"status_code_filter": {"comparison": _is(403 if status == 401 else status)}}
        mapper: Resource = {"filter": asked, "body_format_override": json_body(code, message, hint)}
        if status == 401:
            admitted = {"header_filter": {"header": {"name": ADMITTED, "present_match": True}}}
            mapper["filter"] = {"and_filter": {"filters": [asked, admitted]}}
            mapper["status_code"] = 401
            mapper["headers_to_add"] = [{"header": {"key": "www-authenticate", "value": "Bearer"}}]
        mappers.append(mapper)
    fallback = json_body("Internal", "the gateway could not pass the request on", "try again; then: lepton doctor")
    return {"mappers": mappers, "body_format": fallback}


def _is(status: int) -> Resource:
    return {"op": "EQ", "value": {"default_value": status, "runtime_key": "lepton.reply"}}


def json_body(code: str, message: str, hint: str) -> Resource:
    """Envoy's own form of a fixed JSON body; its reason (response flags) goes into the details."""
    details = {"reason": "%RESPONSE_CODE_DETAILS%"}
    return {
        "json_format": {"code": code, "message": message, "hint": hint, "details": details},
        "content_type": "application/json",
    }


def tls(listen: Listen) -> Resource:
    """TLS 1.2 or newer with the given certificate."""
    pair = {"certificate_chain": {"filename": listen.tls_cert}, "private_key": {"filename": listen.tls_key}}
    return {
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "tls_certificates": [pair],
            },
        },
    }
