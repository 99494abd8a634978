"""What is measured over HTTP: loads of nodes, use of replicas, Prometheus text, and whose names are in it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from lepton_ai.api import app
from lepton_ai.control.machines import shown
from lepton_ai.control.monitor import Shown
from lepton_ai.scheduler.load import load
from lepton_ai.spec.replica import NodeGauges, NodeReport, ReplicaGauges, ReplicaReport
from lepton_ai.spec.route import RouteStats

LINE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (-?[0-9.e+-]+)$')


def measure(stand: Any, *copies: ReplicaReport, **more: Any) -> None:
    """The monitor has seen node-1 with these replicas, and endpoints."""
    loads = {one.name: one for one in load(["node-1"], [[0.5, 0.2]], [[0.95, 0.2]], network=True)}
    reports = {"node-1": NodeReport.model_construct(node="node-1", replicas=copies)}
    values = {"loads": loads, "measured_ms": 5000, "startup_s": 7.5, "reports": reports, **more}
    stand.cell = dataclasses.replace(stand.cell, measures=lambda: Shown(**values))
    stand.app = app(stand.cell)


def series(text: str) -> dict[str, dict[str, float]]:
    """Metric -> labels as text -> value. Every line has to be of the form, under a HELP and a TYPE of its own."""
    found: dict[str, dict[str, float]] = {}
    told: set[str] = set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# "):
            told.add(" ".join(line.split()[1:3]))
            continue
        match = LINE.match(line)
        assert match, line
        name, labels, value = match.groups()
        assert {f"HELP {name}", f"TYPE {name}"} <= told, name
        assert (labels or "") not in found.setdefault(name, {}), line
        found[name][labels or ""] = float(value)
    return found


def replica(stand: Any, record: Any, **status: Any) -> Any:
    return stand.replica(record, "node-1", **status)


def test_nodes_show_u_w_s_and_the_verdict(stand: Any) -> None:
    stand.node("node-1", state="ready", gauges={"cpu_stall": 0.25})
    stand.node("node-2", state="ready", load=shown(load(["node-2"], [[0.1, 0.1]], [[0.1, 0.1]])[0]))
    stand.node("node-3", state="unreachable", load={"u": 1.0}, gauges={"cpu_stall": 0.25})
    measure(stand)
    one, recorded, away = stand.client("viewer").get("/x/nodes").json()
    known = one["load"]
    assert {name: known[name] for name in ("u", "w", "s", "limit", "mark", "resource", "network", "stale")} == {
        "u": 0.5, "w": 1.9, "s": 0.95, "limit": 0.85, "mark": "overloaded", "resource": "cpu", "network": True,
        "stale": False,
    }  # fmt: skip
    assert known["parts"]["memory"] == {"u": 0.2, "w": 1.0, "s": 0.2}
    assert one["gauges"] == {"cpu_stall": 0.25}
    assert recorded["load"]["mark"] == "idle"  # as it was written down, where another process leads
    assert (away["load"], away["gauges"]) == (None, {})


def test_top_lists_replicas_of_the_workspace_by_use(stand: Any) -> None:
    movies = stand.deploy("movies")
    small, large, unknown = (replica(stand, movies) for _ in range(3))
    gauges = ReplicaGauges(cpu_stall=0.5, disk_read_bytes_s=float("nan"))
    measure(
        stand,
        ReplicaReport(uid=small.uid, phase="ready", cpu_milli=10, memory_mib=7),
        ReplicaReport(uid=large.uid, phase="ready", cpu_milli=900, memory_mib=-1, gauges=gauges),
    )
    rows = stand.client("viewer").get("/x/top").json()
    assert [row["name"] for row in rows] == [large.name, small.name, unknown.name]
    assert (rows[0]["cpu_milli"], rows[0]["memory_mib"], rows[0]["cpu_stall"]) == (900, None, 0.5)
    assert rows[0]["disk_read_bytes_s"] is None
    assert rows[2]["cpu_milli"] is None
    assert stand.client(token=stand.foreign, ws="other").get("/x/top").json() == []


def test_metrics_are_prometheus_text(stand: Any) -> None:
    gauges = {"cores_milli": 2000, "memory_stall": 0.1, "network_in_bytes_s": 7}
    stand.node("node-1", state="ready", gauges=gauges, cpu_used_milli=250, memory_used_mib=2)
    movies = stand.deploy("movies")
    copy = replica(stand, movies)
    replica(stand, movies, phase="starting")
    replica(stand, movies, phase="exited")
    said = ReplicaReport(uid=copy.uid, phase="ready", cpu_milli=500, memory_mib=3, gauges=ReplicaGauges(cpu_stall=0.5))
    of_copy = {"in_flight_by_replica": {copy.uid: 4}, "answered_by_replica": {copy.uid: 9, "gone": 3}}
    stats = RouteStats(workspace="default", name="movies", requests=30, failed=2, in_flight=4, held=1, **of_copy)
    measure(stand, said, endpoints={("default", "movies"): (stats, 2.5)})
    answer = stand.client("viewer").get("/x/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = series(answer.text)
    node = 'node="node-1"'
    assert found["lepton_node_utilisation"] == {node: 0.5}
    assert found["lepton_node_growth"] == {node: 1.9}
    assert found["lepton_node_planned"] == {node: 0.95}
    assert found["lepton_node_limit"] == {node: 0.85}
    assert found["lepton_node_mark"] == {
        f'{node},mark="idle"': 0,
        f'{node},mark="normal"': 0,
        f'{node},mark="overloaded"': 1,
    }
    assert found["lepton_node_resource_planned"] == {f'{node},resource="cpu"': 0.95, f'{node},resource="memory"': 0.2}
    assert found["lepton_node_stall_ratio"] == {f'{node},resource="memory"': 0.1}
    assert found["lepton_node_cpu_used_cores"] == {node: 0.25}
    assert found["lepton_node_memory_used_bytes"] == {node: 2 << 20}
    assert found["lepton_node_machine_cores"] == {node: 2}
    assert "lepton_node_gpu_used_ratio" not in found
    owner = 'workspace="default",kind="deployment",owner="movies"'
    assert found["lepton_replicas"] == {f'{owner},phase="ready"': 1, f'{owner},phase="starting"': 1}
    assert found["lepton_replica_cpu_cores"] == {f'{owner},replica="{copy.name}",node="node-1"': 0.5}
    assert list(found["lepton_replica_cpu_stall_ratio"].values()) == [0.5]
    assert list(found["lepton_replica_in_flight"].values()) == [4]
    assert list(found["lepton_replica_answered_total"].values()) == [9]
    assert "lepton_replica_failed_total" not in found
    endpoint = 'workspace="default",endpoint="movies"'
    for metric, value in (("requests_total", 30), ("failed_total", 2), ("in_flight", 4), ("held", 1)):
        assert found[f"lepton_endpoint_{metric}"] == {endpoint: value}
    assert found["lepton_endpoint_requests_per_second"] == {endpoint: 2.5}
    assert (found["lepton_measured_seconds"][""], found["lepton_startup_seconds"][""]) == (5, 7.5)


def test_before_anything_was_measured_there_is_little_to_say(stand: Any) -> None:
    stand.node("node-1")
    found = series(stand.client("viewer").get("/x/metrics").text)
    assert found["lepton_node_ready"] == {'node="node-1"': 0}
    assert "lepton_node_planned" not in found


def test_labels_are_escaped(stand: Any) -> None:
    stats = RouteStats.model_construct(workspace="default", name='a"b\\c\nd', requests=1, failed=0, in_flight=0, held=0)
    measure(stand, endpoints={("default", stats.name): (stats, 0.0)})
    found = series(stand.client("viewer").get("/x/metrics").text)
    assert list(found["lepton_endpoint_requests_total"]) == [r'workspace="default",endpoint="a\"b\\c\nd"']


def test_a_tenant_sees_no_other_names_and_who_runs_the_cell_sees_all(stand: Any) -> None:
    copy = replica(stand, stand.deploy("movies"))
    said = ReplicaReport(uid=copy.uid, phase="ready", cpu_milli=500, memory_mib=3)
    both = {
        ("default", "movies"): (RouteStats(workspace="default", name="movies"), 0.0),
        ("other", "theirs"): (RouteStats(workspace="other", name="theirs"), 0.0),
    }
    measure(stand, said, endpoints=both)
    tenant = stand.client(token=stand.foreign, ws="other").get("/x/metrics").text
    assert "theirs" in tenant
    assert "movies" not in tenant
    assert "default" not in tenant
    for role in ("owner", "admin"):
        text = stand.client(role).get("/x/metrics").text
        assert "theirs" in text
        assert copy.name in text
    for role in ("developer", "viewer"):
        text = stand.client(role).get("/x/metrics").text
        assert "theirs" not in text
        assert copy.name in text
    assert stand.client("caller").get("/x/metrics").status_code == 403
    assert stand.client(token="lta_wrong").get("/x/metrics").status_code == 401


@pytest.mark.parametrize("path", ["/x/top", "/x/metrics"])
def test_private_work_is_there_for_its_maker_only(stand: Any, path: str) -> None:
    secret = stand.deploy("hidden", visibility="private")
    replica(stand, secret)
    stats = RouteStats(workspace="default", name="hidden")
    measure(stand, endpoints={("default", "hidden"): (stats, 0.0)})
    assert "hidden" in stand.client("owner").get(path).text
    assert "hidden" not in stand.client("developer").get(path).text


def test_gauges_of_a_report_name_no_lie(stand: Any) -> None:
    from lepton_ai.control.machines import figures

    assert figures(NodeGauges(samples=3, cpu_milli=float("nan"), memory_mib=-1, disk_busy=0.5)) == {
        "samples": 3, "disk_busy": 0.5, "gpus": 0,
    }  # fmt: skip
    assert figures(None) == {}
