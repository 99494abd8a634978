"""Networks, balance and host names, through real Envoys."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from lepton_ai.errors import Invalid, Unavailable
from lepton_ai.spec.container import Balance
from lepton_ai.spec.route import HostRoute, HostTarget, Route, Routes


def host(domain: str, *targets: tuple[str, int], **fields: Any) -> HostRoute:
    found = tuple(HostTarget(name=name, weight=weight) for name, weight in targets)
    return HostRoute(workspace="default", domain=domain, targets=found, **fields)


def get_from(place: Any, source: str, path: str, **headers: str) -> tuple[int, Any]:
    """GET from an address of the loopback network of one's own."""
    with socket.create_connection(("127.0.0.1", place.port), 30, source_address=(source, 0)) as sock:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n".encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if b"chunked" not in head else body


def test_only_the_networks_of_a_route_get_through(place: Any, route: Callable[..., Route]) -> None:
    one = place.replica("one")
    place.publish(
        route("open", [one]),
        route("near", [one], allowlist=("127.0.0.2/32", "::1/128")),
        route("both", [one], allowlist=("127.0.0.2",), tokens=("secret-token",)),
    )
    assert get_from(place, "127.0.0.1", "/default/open/")[0] == 200
    assert get_from(place, "127.0.0.2", "/default/near/")[0] == 200
    status, body = get_from(place, "127.0.0.3", "/default/near/")
    assert (status, body["code"]) == (403, "Forbidden")
    assert body["hint"]
    # What a caller writes of itself changes nothing.
    for forged in ({"X-Forwarded-For": "127.0.0.2"}, {"x-lepton-admitted": "1"}, {"X-Real-IP": "127.0.0.2"}):
        assert get_from(place, "127.0.0.3", "/default/near/", **forged)[0] in (401, 403)
    token = {"Authorization": "Bearer secret-token"}
    assert get_from(place, "127.0.0.2", "/default/both/", **token)[0] == 200
    assert get_from(place, "127.0.0.2", "/default/both/")[0] == 401
    assert get_from(place, "127.0.0.3", "/default/both/", **token)[0] == 403
    assert "x-lepton-admitted" not in get_from(place, "127.0.0.2", "/default/both/", **token)[1]["fields"]


def test_only_a_trusted_proxy_says_who_calls(behind: Any, route: Callable[..., Route]) -> None:
    one, two = behind.replica("one"), behind.replica("two")
    behind.publish(
        route("near", [one], allowlist=("192.0.2.0/24",)),
        route("sticky", [one, two], balance=Balance(policy="maglev")),
    )
    caller = {"X-Forwarded-For": "192.0.2.9"}
    assert get_from(behind, "127.0.7.1", "/default/near/", **caller)[0] == 200
    # The last word is the proxy's own; what its caller wrote before that counts for nothing.
    forged = {"X-Forwarded-For": "192.0.2.9, 203.0.113.5"}
    assert get_from(behind, "127.0.7.1", "/default/near/", **forged)[0] == 403
    assert get_from(behind, "127.0.7.1", "/default/near/", **{"X-Forwarded-For": "203.0.113.5"})[0] == 403
    assert get_from(behind, "127.0.7.1", "/default/near/")[0] == 403, "the proxy itself is not on the list"
    assert get_from(behind, "127.0.0.1", "/default/near/", **caller)[0] == 403
    status, body = get_from(behind, "127.0.7.1", "/default/near/", **caller, **{"x-envoy-retry-on": "5xx"})
    assert status == 200
    assert "x-envoy-retry-on" not in body["fields"]
    behind.until(lambda: {get_from(behind, f"127.0.7.{n}", "/default/sticky/")[0] for n in range(1, 30)} == {200})
    # Callers behind one proxy are told apart, and each stays where it is whichever way it comes.
    found = {
        n: {
            get_from(behind, f"127.0.7.{way}", "/default/sticky/", **{"X-Forwarded-For": f"192.0.2.{n}"})[1]["name"]
            for way in (1, 2, 3)
        }
        for n in range(1, 40)
    }
    assert all(len(names) == 1 for names in found.values())
    assert set().union(*found.values()) == {"one", "two"}


def test_maglev_keeps_a_caller_at_its_replica(place: Any, route: Callable[..., Route]) -> None:
    replicas = [place.replica(name) for name in "abc"]
    place.publish(route("sticky", replicas, balance=Balance(policy="maglev")))
    place.until(lambda: {get_from(place, f"127.0.0.{n}", "/default/sticky/")[0] for n in range(2, 40)} == {200})
    by_caller = {
        n: {get_from(place, f"127.0.0.{n}", "/default/sticky/")[1]["name"] for _ in range(4)} for n in range(2, 40)
    }
    assert all(len(names) == 1 for names in by_caller.values())
    assert set().union(*by_caller.values()) == {"a", "b", "c"}


def test_a_change_of_balance_loses_no_request(place: Any, route: Callable[..., Route]) -> None:
    replicas = [place.replica(name) for name in "abc"]
    place.publish(route("movies", replicas))
    load = place.load("/default/movies/")
    for balance in (Balance(policy="maglev"), Balance(choices=5), Balance(), Balance(policy="maglev"), Balance()):
        place.publish(route("movies", replicas, balance=balance))
        seen = load.ok
        place.until(lambda seen=seen: load.ok > seen + 50)
    assert load.stop().failed == []


def test_a_host_name_shares_its_requests_by_weight(place: Any, route: Callable[..., Route]) -> None:
    one, two = place.replica("one"), place.replica("two")
    routes = (route("a", [one]), route("b", [two], tokens=("secret-token",)))
    domains = (host("Films.Example.com", ("a", 80), ("b", 20), ("gone", 50)), host("empty.example.com", ("gone", 100)))
    place.gateway.publish(Routes(routes=routes, hosts=domains))
    seen: Counter[int] = Counter()
    for _ in range(400):
        seen[place.get("/any/path", host="films.example.com:8443")[0]] += 1
    assert set(seen) == {200, 401}  # a target's own tokens hold behind a host name too
    assert 0.70 < seen[200] / 400 < 0.90
    status, body = place.get("/any/path?x=1", host="films.example.com", Authorization="Bearer secret-token")
    assert (status, body["path"]) == (200, "/any/path?x=1")
    assert place.get("/", host="empty.example.com")[0] == 404
    assert place.get("/default/a/", host="another.example.com")[0] == 200


def test_networks_of_a_host_name_hold_besides_those_of_its_targets(place: Any, route: Callable[..., Route]) -> None:
    one = place.replica("one")
    routes = (route("a", [one], allowlist=("127.0.0.0/8",)),)
    closed = host("closed.example.com", ("a", 1), allowlist=("10.0.0.0/8",))
    opened = host("open.example.com", ("a", 1), allowlist=("127.0.0.1",))
    place.gateway.publish(Routes(routes=routes, hosts=(closed, opened)))
    assert place.get("/", host="closed.example.com")[0] == 403
    assert place.get("/", host="open.example.com")[0] == 200
    assert place.get("/default/a/")[0] == 200


def test_weights_move_under_load_without_a_failed_request(place: Any, route: Callable[..., Route]) -> None:
    one, two = place.replica("one"), place.replica("two")
    routes = (route("a", [one]), route("b", [two]))
    place.gateway.publish(Routes(routes=routes, hosts=(host("w.example.com", ("a", 100)),)))
    load = place.load("/default/a/")
    for weight in (0, 30, 50, 100):
        place.gateway.publish(Routes(routes=routes, hosts=(host("w.example.com", ("a", 100 - weight), ("b", weight)),)))
        names = {place.get("/", host="w.example.com")[1]["name"] for _ in range(60)}
        assert names == {0: {"one"}, 30: {"one", "two"}, 50: {"one", "two"}, 100: {"two"}}[weight]
    assert load.stop().failed == []


@pytest.mark.parametrize("domain", ["", "nodot", "a..b", "-a.com", "movies.default.localhost", "a.com/x", "x" * 300])
def test_a_host_name_that_could_be_anothers_is_refused(place: Any, route: Callable[..., Route], domain: str) -> None:
    with pytest.raises(Invalid):
        place.gateway.publish(Routes(hosts=(host(domain, ("a", 1)),)))
    twice = (host("twice.example.com", ("a", 1)), host("Twice.example.com", ("a", 1)))
    with pytest.raises(Invalid):
        place.gateway.publish(Routes(hosts=twice))


def test_a_target_at_zero_holds_its_share_until_a_replica_is_there(place: Any, route: Callable[..., Route]) -> None:
    place.start_activator()
    one = place.replica("one")
    domain = host("idle.example.com", ("a", 50), ("b", 50))
    place.gateway.publish(Routes(routes=(route("a", [one]), route("b", activate=True)), hosts=(domain,)))
    found: list[tuple[int, Any]] = []
    callers = [
        threading.Thread(target=lambda: found.append(place.get("/x", host="idle.example.com"))) for _ in range(60)
    ]
    for caller in callers:
        caller.start()
    place.until(lambda: place.gateway.held().get("default/b", 0) + len(found) == 60)
    held = place.gateway.held()["default/b"]
    assert 10 < held < 50
    assert {body["name"] for _, body in found} == {"one"}
    two = place.replica("two")
    routes = (route("a", [one]), route("b", [two], activate=True))
    place.gateway.publish(Routes(routes=routes, hosts=(domain,)))
    for caller in callers:
        caller.join(60)
    assert Counter(status for status, _ in found) == {200: 60}
    assert Counter(body["name"] for _, body in found) == {"one": 60 - held, "two": held}


def test_requests_by_a_host_name_count_for_the_deployment_that_took_them(
    place: Any, route: Callable[..., Route]
) -> None:
    one, two = place.replica("one"), place.replica("two")
    routes = (route("a", [one]), route("b", [two]))
    place.gateway.publish(Routes(routes=routes, hosts=(host("c.example.com", ("a", 1), ("b", 1)),)))
    seen = Counter(place.get("/", host="c.example.com")[1]["name"] for _ in range(50))
    place.get("/default/b/")
    stats = {item.name: item for item in place.gateway.stats()}
    assert {name: item.requests for name, item in stats.items()} == {"a": seen["one"], "b": seen["two"] + 1}
    assert stats["b"].last_request_ms > 0


def test_a_deployment_that_leaves_and_comes_back_behind_a_host_name(place: Any, route: Callable[..., Route]) -> None:
    one, two = place.replica("one"), place.replica("two")
    both = (route("a", [one]), route("b", [two]))
    domain = host("d.example.com", ("a", 50), ("b", 50))

    def names() -> set[str]:
        return {place.get("/", host="d.example.com")[1].get("name", "") for _ in range(40)}

    for routes, wanted in ((both, {"one", "two"}), (both[:1], {"one"}), ((), {""}), (both, {"one", "two"})):
        place.gateway.publish(Routes(routes=routes, hosts=(domain,)))
        assert names() == wanted
    # Of another workspace's it takes nothing, whatever it is called.
    theirs = HostRoute(workspace="other", domain="d.example.com", targets=domain.targets)
    place.gateway.publish(Routes(routes=both, hosts=(theirs,)))
    assert names() == {""}


def test_no_figures_are_not_figures_of_nothing(place: Any, route: Callable[..., Route]) -> None:
    place.publish(route("a", [place.replica("one")]))
    assert place.get("/default/a/")[0] == 200
    before = place.gateway.stats()[0]
    assert before.requests == 1
    place.processes["envoy-1"].send_signal(signal.SIGSTOP)
    with pytest.raises(Unavailable):
        place.gateway.stats()  # what is in flight there nobody knows
    place.processes["envoy-1"].send_signal(signal.SIGCONT)
    place.kill("envoy-1")
    assert place.gateway.stats()[0].requests == 1, "one that is away takes nothing back"
    place.kill("envoy-2")
    with pytest.raises(Unavailable):
        place.gateway.stats()
    place.start(1)
    place.until(lambda: place.gateway.live() == 1)
    assert place.gateway.stats()[0].requests == 1
