"""Rendering: what Envoy is told, without an Envoy."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest

from lepton_ai.errors import Invalid
from lepton_ai.gateway.bootstrap import bootstrap, static_bootstrap
from lepton_ai.gateway.listener import Listen
from lepton_ai.gateway.resources import Paths, render, version
from lepton_ai.gateway.upstream import SILENT_S, Upstream
from lepton_ai.spec.route import Backend, Endpoint, Route, Routes

LISTEN = Listen("127.0.0.1", 8600)
PATHS = Paths("/g/routes.json", "/g/endpoints", "/g/activator.sock", picker="/g/picker.so")


def end(port: int, **fields: object) -> Endpoint:
    return Endpoint(replica=f"r{port}", address="127.0.0.1", port=port, **fields)


def one(**fields: object) -> Route:
    return Route(workspace="default", name="movies", **fields)


def rendered(*routes: Route, **fields: float):
    return render(Routes(routes=routes), LISTEN, PATHS, **fields)


def entries(result) -> list[dict]:
    return [entry for host in result.routes[0]["virtual_hosts"] for entry in host["routes"]]


def ports(level: dict) -> list[int]:
    addresses = [item["endpoint"]["address"].get("socket_address") for item in level["lb_endpoints"]]
    return [address["port_value"] for address in addresses if address]


def test_an_endpoint_changes_nothing_but_its_assignment():
    before = rendered(one(backends=(Backend(release=1, endpoints=(end(1),)),)))
    after = rendered(one(backends=(Backend(release=1, endpoints=(end(1), end(2, weight=7))),)))
    assert (before.listeners, before.clusters, before.routes) == (after.listeners, after.clusters, after.routes)
    level = after.endpoints["default/movies/1"]["endpoints"][0]
    assert ports(level) == [1, 2]
    assert level["lb_endpoints"][1]["load_balancing_weight"] == 7


def test_the_order_of_the_routes_does_not_matter():
    other = Route(workspace="default", name="a")
    assert rendered(one(), other) == rendered(other, one())


def test_only_idempotent_routes_may_be_sent_twice():
    for idempotent in (False, True):
        for entry in entries(rendered(one(idempotent=idempotent))):
            policy = entry["route"]["retry_policy"]
            reasons = policy["retry_on"].split(",")
            assert {"connect-failure", "refused-stream"} <= set(reasons)
            assert ("reset" in reasons) is idempotent
            assert ("retriable_status_codes" in policy) is idempotent


def test_tokens_are_on_every_way_to_a_route_and_on_no_other():
    result = rendered(one(tokens=("b", "a")), Route(workspace="default", name="open"))
    locked = [entry for entry in entries(result) if entry["stat_prefix"] == "default/movies"]
    free = [entry for entry in entries(result) if entry["stat_prefix"] == "default/open"]
    assert len(locked) == len(free) == 3
    for entry in locked:
        rules = entry["typed_per_filter_config"]["tokens"]["rbac"]["rules"]
        values = [item["header"]["string_match"]["exact"] for item in rules["policies"]["callers"]["principals"]]
        assert (rules["action"], values) == ("ALLOW", ["Bearer a", "Bearer b"])
    assert all("typed_per_filter_config" not in entry for entry in free)


def test_without_any_token_nobody_may_call():
    for entry in entries(rendered(one(tokens=()))):
        assert entry["typed_per_filter_config"]["tokens"]["rbac"]["rules"] == {"action": "ALLOW", "policies": {}}


def test_shares_go_to_releases_that_have_endpoints():
    full, empty = Backend(release=1, weight=90, endpoints=(end(1),)), Backend(release=2, weight=10)
    assert entries(rendered(one(backends=(full, empty))))[0]["route"]["cluster"] == "default/movies/1"
    both = (full, Backend(release=2, weight=10, endpoints=(end(2),)))
    parts = entries(rendered(one(backends=both)))[0]["route"]["weighted_clusters"]["clusters"]
    assert [(part["name"], part["weight"]) for part in parts] == [("default/movies/1", 90), ("default/movies/2", 10)]
    none = (Backend(release=3, weight=0, endpoints=(end(1),)), Backend(release=4))
    assert entries(rendered(one(backends=none)))[0]["route"]["cluster"] == "default/movies/4"


def test_other_releases_then_the_activator_stand_in():
    backends = (Backend(release=1, endpoints=(end(1),)), Backend(release=2, endpoints=(end(2), end(1))))
    levels = rendered(one(backends=backends, activate=True)).endpoints["default/movies/1"]["endpoints"]
    assert [ports(level) for level in levels] == [[1], [2], []]
    assert levels[2]["lb_endpoints"][0]["endpoint"]["address"] == {"pipe": {"path": PATHS.activator}}
    assert [level["priority"] for level in levels] == [0, 1, 2]
    # With a locality of its own, an endpoint that changes its level would be a new one to Envoy, unhealthy at first.
    assert all("locality" not in level for level in levels)


def test_at_zero_the_activator_is_all_there_is():
    levels = rendered(one(activate=True)).endpoints["default/movies/0"]["endpoints"]
    assert [len(level["lb_endpoints"]) for level in levels] == [0, 1]
    levels = rendered(one()).endpoints["default/movies/0"]["endpoints"]
    assert [len(level["lb_endpoints"]) for level in levels] == [0]


def test_holding_comes_on_top_of_the_timeout():
    def timeout(**fields: object) -> str:
        return str(entries(rendered(one(**fields), hold_s=100))[0]["route"]["timeout"])

    assert timeout(request_timeout_s=5) == "5.000s"
    assert timeout(request_timeout_s=5, activate=True) == "105.000s"
    assert timeout(request_timeout_s=0, activate=True) == "0.000s"


def test_health_by_path_or_by_connection():
    assert "tcp_health_check" in rendered(one()).clusters[0]["health_checks"][0]
    check = rendered(one(health_path="/ok")).clusters[0]["health_checks"][0]
    assert check["http_health_check"]["path"] == "/ok"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"backends": (Backend(release=1, endpoints=(Endpoint(replica="r", address="host", port=1),)),)}, "IP"),
        ({"backends": (Backend(release=1), Backend(release=1))}, "twice"),
        ({"tokens": ("a\r\nb",)}, "token"),
        ({"tokens": ("",)}, "token"),
        ({"health_path": "ok"}, "health_path"),
        ({"health_path": "/a b"}, "health_path"),
        ({"request_timeout_s": float("inf")}, "request_timeout_s"),
        ({"request_timeout_s": -1}, "request_timeout_s"),
    ],
)
def test_what_cannot_be_served_is_refused(fields, said):
    with pytest.raises(Invalid, match=said) as caught:
        rendered(one(**fields))
    assert caught.value.hint


def test_a_name_twice_is_refused():
    with pytest.raises(Invalid, match="twice"):
        rendered(one(), one(idempotent=True))


@pytest.mark.parametrize(("host", "tls"), [("0.0.0.0", False), ("10.0.0.1", False), ("127.0.0.1", True)])
def test_listening_beyond_loopback_wants_tls(host, tls):
    with pytest.raises(Invalid):
        Listen(host, 8600, tls_cert="cert.pem" if tls else "")
    assert Listen(host, 8600, "cert.pem", "key.pem").port == 8600


def test_the_static_form_looks_nothing_up():
    static = static_bootstrap(rendered(one(backends=(Backend(release=1, endpoints=(end(1),)),)), one_other()))
    text = json.dumps(static)
    assert "path_config_source" not in text
    assert "admin" not in static
    clusters = static["static_resources"]["clusters"]
    assert [cluster["load_assignment"]["cluster_name"] for cluster in clusters] == [item["name"] for item in clusters]
    manager = static["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["route_config"]["validate_clusters"] is True


def one_other() -> Route:
    return Route(workspace="default", name="other")


def test_admin_is_a_unix_socket():
    assert bootstrap("envoy-1", "/g/a.sock", "l", "c")["admin"]["address"] == {
        "pipe": {"path": "/g/a.sock", "mode": 0o600}
    }


def test_version_follows_the_content():
    assert version([{"a": 1, "b": 2}]) == version([{"b": 2, "a": 1}])
    assert version([{"a": 1}]) != version([{"a": 2}])


def test_only_where_there_are_other_hosts_is_one_that_vanishes_given_up_soon():
    near = rendered(one()).clusters[0]
    assert "upstream_bind_config" not in near
    assert near["upstream_connection_options"]["tcp_keepalive"]["keepalive_time"] == 30
    upstream = Upstream("/c/ca.pem", "/c/gateway.pem", "/c/gateway.key")
    far = render(Routes(routes=(one(),)), LISTEN, replace(PATHS, upstream=upstream)).clusters[0]
    probes = far["upstream_connection_options"]["tcp_keepalive"]
    assert probes["keepalive_time"] + probes["keepalive_probes"] * probes["keepalive_interval"] <= SILENT_S
    (option,) = far["upstream_bind_config"]["socket_options"]
    assert (option["level"], option["name"]) == (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert option["int_value"] == SILENT_S * 1000
