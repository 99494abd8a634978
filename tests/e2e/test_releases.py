"""Releases under load: a rolling update, a rollback, a release that never starts, and scaling fail no request."""

from __future__ import annotations

import pytest
from cell import Cell, eventually, service
from traffic import traffic

from lepton_ai.errors import Failed

SPEC = {"name": "web", "replicas": {"min": 2, "max": 2}, "survive": {"node": 1}}


def test_update_rollback_and_a_sick_release(cell: Cell) -> None:
    cloud = cell.cloud
    assert cloud.deploy({**SPEC, "template": service("one")}).release == 1
    assert cloud.deploy({**SPEC, "template": service("one")}).release == 1, "the same content is no new release"
    with traffic(cell.url("web")) as seen:
        assert cloud.deploy({**SPEC, "template": service("two")}).release == 2
        assert cloud.call("web", {"value": 1})["release"] == "two"
        assert cloud.rollback("web", None).release == 3
        assert cloud.call("web", {"value": 1})["release"] == "one"
        sick = service("bad", mode="sick", health={"path": "/", "startup_deadline_s": 1})
        with pytest.raises(Failed) as raised:
            cloud.deploy({**SPEC, "template": sick})
        assert "cannot reach the database" in str(raised.value.details["log"])
        assert cloud.call("web", {"value": 1})["release"] == "one"
        before = seen.ok
        eventually(lambda: seen.ok > before + 50, "it goes on")
    assert not seen.failed, seen.failed
    assert set(seen.releases) == {"one", "two"}
    found = cloud.deployment("web")
    assert (found.state, found.serving) == ("ready", 3), found
    assert [item.number for item in cloud.releases("web")] == [4, 3, 2, 1]
    events = [event for event in cloud.events(kind="deployment", name="web") if event.type == "Warning"]
    assert any("failed" in event.message for event in events), events


def test_scaling_down_and_up_under_load(cell: Cell) -> None:
    cloud = cell.cloud
    spec = {"name": "wide", "template": service("one")}
    cloud.deploy({**spec, "replicas": {"min": 3, "max": 3}})
    with traffic(cell.url("wide")) as seen:
        for count in (1, 3, 1, 2):
            cloud.deploy({**spec, "replicas": {"min": count, "max": count}})
            eventually(
                lambda count=count: sum(copy.phase != "exited" for copy in cloud.replicas("wide")) == count,
                f"{count} replicas",
            )
    assert not seen.failed, seen.failed
    assert cloud.deployment("wide").release == 1


def test_asleep_until_somebody_calls(cell: Cell) -> None:
    cloud = cell.cloud
    cloud.deploy({"name": "nap", "template": service("one"), "replicas": {"min": 1, "max": 2}, "idle_timeout_s": 1})
    eventually(lambda: cloud.deployment("nap").state == "idle", "it falls asleep")
    eventually(lambda: all(copy.phase == "exited" for copy in cloud.replicas("nap")), "nothing of it runs")
    assert cloud.call("nap", {"value": 9})["echo"] == 9, "the first request is held, not failed"


def test_a_drained_node_is_left_without_a_failed_request(cell: Cell) -> None:
    cloud = cell.cloud
    cloud.deploy({"name": "moved", "template": service("one"), "replicas": 2, "survive": {"node": 1}})
    node = next(copy.node for copy in cloud.replicas("moved") if copy.phase == "ready")
    with traffic(cell.url("moved")) as seen:
        cloud.drain(node)
        eventually(
            lambda: node not in {copy.node for copy in cloud.replicas("moved") if copy.phase != "exited"},
            f"{node} is empty",
        )
        cloud.undrain(node)
    assert not seen.failed, seen.failed
    assert cloud.deployment("moved").state == "ready"
