"""Statistics, confirmation, verdicts and the activator's reading of heads and files, on made-up input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lepton_ai.errors import Forbidden, Invalid, Timeout
from lepton_ai.gateway import sockets as sockets_module
from lepton_ai.gateway.activator import Head, Table, _closing
from lepton_ai.gateway.confirm import CLUSTERS, ROUTES, confirm
from lepton_ai.gateway.envoy import addresses, bridge
from lepton_ai.gateway.files import Files
from lepton_ai.gateway.sockets import sockets
from lepton_ai.gateway.stats import PATTERN, Stats
from lepton_ai.gateway.validate import explain
from lepton_ai.spec.route import Backend, Endpoint, Route, Routes

ENDPOINTS = (Endpoint(replica="a", address="127.0.0.1", port=1), Endpoint(replica="b", address="::1", port=2))
ROUTES_WANTED = Routes(
    routes=(Route(workspace="w", name="n", backends=(Backend(release=3, endpoints=ENDPOINTS),)),),
)


def counters(completed: int, failed: int, active: int = 0) -> dict[str, str]:
    return {
        "vhost.paths.route.w/n.upstream_rq_completed": str(completed),
        "vhost.paths.route.w/n.upstream_rq_5xx": str(failed),
        "vhost.n.w.localhost.route.w/n.upstream_rq_completed": "0",
        "cluster.w/n/3.upstream_rq_active": str(active),
        "cluster.w/n/3.endpoint.127.0.0.1_1.rq_active": str(active),
        "cluster.w/n/3.endpoint.[__1]_2.rq_active": "0",
    }


def test_counters_add_up_over_envoys_and_their_restarts():
    stats = Stats()
    (first,) = stats.update({"e1": counters(5, 1), "e2": counters(7, 0)}, ROUTES_WANTED, {}, 100)
    assert (first.requests, first.failed, first.last_request_ms) == (12, 1, 100)
    (idle,) = stats.update({"e1": counters(5, 1), "e2": counters(7, 0)}, ROUTES_WANTED, {}, 200)
    assert (idle.requests, idle.last_request_ms) == (12, 100)
    (again,) = stats.update({"e1": counters(2, 0), "e2": counters(7, 0, active=3)}, ROUTES_WANTED, {"w/n": 4}, 300)
    assert (again.requests, again.failed, again.in_flight, again.held) == (14, 1, 3, 4)
    assert again.in_flight_by_replica == {"a": 3, "b": 0}
    assert again.last_request_ms == 300


def test_an_envoy_that_is_away_takes_nothing_back():
    stats = Stats()
    stats.update({"e1": counters(5, 0), "e2": counters(5, 0)}, ROUTES_WANTED, {}, 1)
    (one,) = stats.update({"e2": counters(6, 0)}, ROUTES_WANTED, {}, 2)
    (both,) = stats.update({"e1": counters(5, 0), "e2": counters(6, 0)}, ROUTES_WANTED, {}, 3)
    assert (one.requests, both.requests) == (11, 11)


def test_the_pattern_asks_for_all_that_is_read():
    import re

    for name in counters(0, 0):
        assert re.search(PATTERN, name)
    assert not re.search(PATTERN, "cluster.w/n/3.membership_total")


class FakeAdmin:
    """Answers with the given statistics, one after the other."""

    def __init__(self, *answers: dict[str, str], running: bool = True) -> None:
        self.path = Path("fake.sock")
        self._answers = list(answers)
        self._running = running

    def running(self) -> bool:
        return self._running

    def stats(self, pattern: str) -> dict[str, str]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def confirm_with(admin: FakeAdmin, versions: dict[str, str], before: dict | None = None) -> int:
    clock = Clock()
    return confirm([admin], versions, before or {}, timeout_s=5, clock=clock, sleep=clock.sleep)  # type: ignore[list-item]


def test_confirmed_when_the_version_is_there_and_nothing_warms():
    old, new = {f"{CLUSTERS}.version_text": "1"}, {f"{CLUSTERS}.version_text": "2"}
    warming = {**new, "cluster_manager.warming_clusters": "1"}
    assert confirm_with(FakeAdmin(old, warming, {**new, "cluster_manager.warming_clusters": "0"}), {CLUSTERS: "2"}) == 1
    with pytest.raises(Timeout, match="warming"):
        confirm_with(FakeAdmin(warming), {CLUSTERS: "2"})


def test_a_refusal_is_told_from_an_older_one():
    refused = {f"{ROUTES}.version_text": "1", f"{ROUTES}.update_rejected": "3"}
    with pytest.raises(Invalid, match="refused"):
        confirm_with(FakeAdmin(refused), {ROUTES: "2"}, {("fake.sock", ROUTES): 2})
    with pytest.raises(Timeout):
        confirm_with(FakeAdmin(refused), {ROUTES: "2"}, {("fake.sock", ROUTES): 3})


def test_an_envoy_that_does_not_run_is_not_waited_for():
    assert confirm_with(FakeAdmin({}, running=False), {ROUTES: "2"}) == 0


def test_a_verdict_never_repeats_the_dump_with_its_tokens():
    said = "Proto constraint validation failed (Domains: value must contain at least 1 item(s))"
    dump = f"error initializing configuration '/x/f.json': goo.gle/debugstr\n exact: \"Bearer key\"\n: {said}\n"
    assert explain(dump, "/x/f.json") == said
    assert "Bearer" not in explain(dump.replace("validation failed", "bad"), "/x/f.json")
    assert explain("error initializing configuration '/x/f.json': no such field", "/x/f.json").endswith("no such field")
    assert explain("", "f") == "no reason given"


def assignment(*levels: list[int]) -> dict:
    return {
        "endpoints": [
            {
                "priority": number,
                "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
                    for port in level
                ],
            }
            for number, level in enumerate(levels)
        ]
    }


def test_a_bridge_keeps_the_old_endpoints_and_names_each_once():
    made = bridge(assignment([1, 2], [9]), assignment([2, 3], [1, 4]))
    assert addresses(made) == {("127.0.0.1", port) for port in (1, 2, 3)}
    second = [
        item["endpoint"]["address"]["socket_address"]["port_value"] for item in made["endpoints"][1]["lb_endpoints"]
    ]
    assert second == [4]


def test_heads_are_read_and_closed():
    raw = b"GET /a?x=1 HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nX-Lepton-Route: w/n\r\n\r\n"
    head = Head.parse(raw)
    assert (head.target, head.route, head.upgrade) == ("/a?x=1", "w/n", False)
    assert _closing(raw) == b"GET /a?x=1 HTTP/1.1\r\nHost: h\r\nX-Lepton-Route: w/n\r\nConnection: close\r\n\r\n"
    assert Head.parse(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n").upgrade
    assert Head.parse(b"GET /-/held HTTP/1.1\r\n\r\n").route is None


def test_the_table_follows_its_file_and_survives_a_bad_one(tmp_path):
    path = tmp_path / "activator.json"
    table = Table(path)
    assert table.endpoints("w/n") == []
    replace(path, {"w/n": {"endpoints": [["127.0.0.1", 5], ["10.0.0.9", 6, "n.node"]]}})
    assert table.endpoints("w/n") == [("127.0.0.1", 5, ""), ("10.0.0.9", 6, "n.node")]
    replace(path, {"w/n": {"endpoints": [["127.0.0.1", "x"]]}})
    assert table.endpoints("w/n") == [("127.0.0.1", 5, ""), ("10.0.0.9", 6, "n.node")]
    replace(path, {})
    assert table.endpoints("w/n") == []


def replace(path: Path, document: object) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document))
    os.replace(new, path)


def test_long_folders_have_their_sockets_elsewhere_and_privately(tmp_path, monkeypatch):
    monkeypatch.setattr(sockets_module.tempfile, "gettempdir", lambda: str(tmp_path))
    long = tmp_path / ("x" * 120)
    assert sockets(Path("/g")) == Path("/g")
    private = sockets(long)
    assert private.parent == tmp_path
    assert private == sockets(long)
    private.chmod(0o755)
    with pytest.raises(Forbidden):
        sockets(long)


def test_a_cut_off_file_counts_as_missing(tmp_path):
    files = Files(tmp_path)
    files.write_resources(files.clusters, [{"name": "w/n/1"}])
    assert files.read_rendered().clusters == ({"name": "w/n/1"},)
    files.clusters.write_text('{"version_info": "1", "resou')
    assert files.read_rendered().clusters == ()
    files.endpoints_path("w/n/1").write_text("{}")
    files.sweep(frozenset())
    assert list(files.endpoints.iterdir()) == []
