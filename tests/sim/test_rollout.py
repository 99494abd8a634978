"""One release for another: never fewer replicas than wanted, no request lost, and back when it cannot start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sim.world import World

Cell = Callable[..., World]


def up(world: World, count: int = 3, *words: str, **fields: Any) -> None:
    spec = {"replicas": {"min": count, "max": count}, "survive": {"node": 1}, **fields}
    world.person.deploy("movies", *words, **spec)
    world.until(lambda: world.ready("movies", count) and world.state("movies") == "ready", 10)
    world.call("movies", 12, 900)
    world.run(2)
    world.watch_lowest("movies")


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_rolling_update_and_a_rollback_fail_no_request(cell: Cell, count: int, idempotent: bool) -> None:
    world = cell(5)
    survive: dict[str, int] = {"node": 1} if count > 1 else {}
    up(world, count, idempotent=idempotent, survive=survive)
    most = 0
    for number, change in (
        (2, lambda: world.person.release("movies", "start=1500", idempotent=idempotent)),
        (3, lambda: world.person.rollback("movies", 1)),
    ):
        assert change() == number
        while not (world.ready("movies", count, number) and world.status("movies")["rollout"]["state"] == "done"):
            world.step()
            most = max(most, len(world.copies("movies")))
            assert world.clock.elapsed_ms() < 1_200_000, world.tell()
        world.run(3)
        assert world.state("movies") == "ready"
    assert world.lowest["movies"] == count
    assert most <= count + max(1, round(count * 0.25 + 0.49)) + 2  # the surge, and those that still drain
    assert world.gateway.failed == []
    assert world.gateway.waited == []
    assert world.at_rest() == []
    assert world.notes.of("deployment/movies", "Release") == [
        "release 1 serves",
        "release 2 serves",
        "release 3 serves",
    ]


def test_a_request_in_flight_is_waited_for_but_not_for_ever(cell: Cell) -> None:
    world = cell()
    up(world, 1, survive={}, drain_s=5)
    world.gateway.callers.clear()
    world.run(2)
    world.call("movies", 1, 60_000)
    world.step()
    world.gateway.callers.clear()
    world.person.release("movies")
    took_s = world.until(lambda: world.ready("movies", 1, 2), 30)
    assert 5 <= took_s < 10
    assert len(world.gateway.failed) == 1


def test_a_release_that_never_becomes_healthy_is_taken_back(cell: Cell) -> None:
    world = cell(4)
    up(world, 3)
    before = {copy.spec.uid for _, copy in world.copies("movies")}
    world.person.release("movies", "never", "log=cannot load the model", health={"startup_deadline_s": 5})
    world.until(lambda: world.status("movies")["rollout"]["state"] == "failed", 60)
    world.run(5)
    status = world.status("movies")
    assert status["serving"] == 1
    assert status["state"] == "ready"
    assert "release 2 failed" in status["reason"]
    assert "not ready within 5 s" in status["reason"]
    assert status["rollout"]["log"] == ["cannot load the model"]
    assert status["rollout"]["replica"].startswith("movies-2-")
    assert {copy.spec.uid for _, copy in world.copies("movies")} == before
    assert world.lowest["movies"] == 3
    assert world.gateway.failed == []
    assert world.at_rest() == []
    assert any("release 2 failed" in text for text in world.notes.of("deployment/movies", "Release"))
    # What replaces a replica from here on is of the release that served.
    node, copy = world.copies("movies")[0]
    world.machines[node].crash(copy.spec.uid)
    world.until(lambda: world.ready("movies", 3, 1), 10)


def test_a_release_that_crashes_is_taken_back_and_a_repaired_one_serves(cell: Cell) -> None:
    world = cell(4)
    up(world, 3)
    world.person.release("movies", "start=800", "exit=1@300", "log=no module named x")
    world.until(lambda: world.status("movies")["rollout"]["state"] == "failed", 30)
    assert world.status("movies")["rollout"]["log"] == ["no module named x"]
    world.run(3)
    assert world.person.release("movies", "start=800") == 3
    world.until(lambda: world.ready("movies", 3, 3) and world.state("movies") == "ready", 30)
    assert world.status("movies")["rollout"] | {"since_ms": 0} == {
        "release": 3, "state": "done", "reason": "", "since_ms": 0,
    }  # fmt: skip
    assert world.gateway.failed == []
    assert world.lowest["movies"] == 3


def test_a_first_release_that_fails_is_said_and_stopped(cell: Cell) -> None:
    world = cell()
    world.person.deploy("movies", "exit=3@100", "log=boom", replicas={"min": 2, "max": 2})
    world.until(lambda: world.state("movies") == "failed", 30)
    status = world.status("movies")
    assert "exit code 3" in status["reason"]
    assert status["rollout"]["log"] == ["boom"]
    world.run(60)
    assert world.copies("movies") == []
    assert world.at_rest() == []
    starts = len(world.store.list("replica"))
    assert starts <= 5
    # The gateway does not hold requests for what will not come.
    assert [route.activate for route in world.gateway.live.routes] == [False]
    assert world.person.release("movies") == 2
    world.until(lambda: world.ready("movies", 2, 2), 10)


def test_a_new_release_in_the_middle_of_another(cell: Cell) -> None:
    world = cell(5)
    up(world, 4)
    world.person.release("movies", "start=3000")
    world.run(4.5)
    world.person.release("movies", "start=500")
    world.until(lambda: world.ready("movies", 4, 3), 40)
    assert world.lowest["movies"] >= 4
    assert world.gateway.failed == []
    world.run(3)
    assert world.at_rest() == []


def test_a_rollback_in_the_middle_of_a_failing_release(cell: Cell) -> None:
    world = cell(5)
    up(world, 3)
    world.person.release("movies", "never", health={"startup_deadline_s": 60})
    world.run(5)
    assert world.state("movies") == "updating"
    assert "connection refused" in world.status("movies")["reason"]
    world.person.rollback("movies", 1)
    world.until(lambda: world.ready("movies", 3, 3), 30)
    assert world.lowest["movies"] == 3
    assert world.gateway.failed == []


@pytest.mark.parametrize("moment_s", [0.3, 1.2, 2.5, 4.0])
def test_a_node_dies_in_the_middle_of_an_update(cell: Cell, moment_s: float) -> None:
    world = cell(5)
    up(world, 3, idempotent=True)
    world.person.release("movies", "start=1200", idempotent=True)
    world.run(moment_s)
    world.machines["node-1"].kill()
    world.until(lambda: world.ready("movies", 3, 2), 40)
    assert world.gateway.failed == []
    assert world.gateway.waited == []
    assert world.lowest["movies"] >= 2
    world.run(3)
    assert world.at_rest() == []


@pytest.mark.parametrize("moment_s", [1.0, 2.4, 3.2])
def test_a_moment_of_silence_in_an_update_ends_nothing_that_serves(cell: Cell, moment_s: float) -> None:
    world = cell(5)
    up(world, 3)
    world.person.release("movies", "start=1200")
    world.run(moment_s)
    for machine in world.machines.values():
        machine.kill_agent()
    world.run(0.7)
    for machine in world.machines.values():
        machine.start_agent()
    world.until(lambda: world.ready("movies", 3, 2), 40)
    assert world.lowest["movies"] == 3
    assert world.gateway.failed == []


def test_a_sick_old_release_is_replaced_all_the_same(cell: Cell) -> None:
    world = cell(5)
    up(world, 3)
    for node, copy in world.copies("movies"):
        world.machines[node].sicken(copy.spec.uid)
    world.gateway.callers.clear()
    world.run(1)
    world.person.release("movies")
    world.until(lambda: world.ready("movies", 3, 2), 40)


def test_without_room_for_a_second_copy_the_old_one_serves_on_and_the_reason_is_said(cell: Cell) -> None:
    world = cell(2)
    up(world, 2, resources={"cpu_milli": 3000, "memory_mib": 100})
    world.person.release("movies", resources={"cpu_milli": 3000, "memory_mib": 100})
    world.run(20)
    assert world.lowest["movies"] == 2
    assert world.gateway.failed == []
    assert "full: cpu 3000 wanted" in world.status("movies")["reason"]


class TestGateway:
    def test_a_gateway_that_refuses_holds_up_the_exchange_and_nothing_else(self, cell: Cell) -> None:
        world = cell(4)
        up(world, 2)
        world.gateway.refuse = True
        world.person.release("movies")
        world.run(30)
        assert world.gateway.failed == []
        assert sum(copy.spec.release == 1 for _, copy in world.serving("movies")) == 2
        world.gateway.refuse = False
        world.until(lambda: world.ready("movies", 2, 2), 30)
        assert world.gateway.failed == []

    def test_a_set_that_is_taken_but_not_confirmed_counts_as_both(self, cell: Cell) -> None:
        world = cell(4)
        up(world, 2)
        world.gateway.lose = True
        world.person.release("movies")
        world.run(20)
        assert world.gateway.failed == []
        world.person.rollback("movies", 1)
        world.run(5)
        world.gateway.lose = False
        world.until(lambda: world.ready("movies", 2, 3), 30)
        assert world.gateway.failed == []
        assert world.lowest["movies"] == 2

    def test_a_slow_gateway_costs_no_request(self, cell: Cell) -> None:
        world = cell(4)
        up(world, 3)
        world.gateway.slow_ms = 2000
        world.person.release("movies")
        world.until(lambda: world.ready("movies", 3, 2), 120)
        assert world.gateway.failed == []
        assert world.lowest["movies"] == 3

    def test_a_gateway_that_refuses_for_long_keeps_what_it_knows(self, cell: Cell) -> None:
        world = cell(5)
        up(world, 3)
        world.gateway.refuse = True
        routed = world.routed("movies")
        node, _ = world.copies("movies")[0]
        world.person.drain(node)
        world.run(20)
        world.machines["node-5"].partition()
        world.kill_control()
        world.start_control()
        world.person.release("movies")
        world.run(60)
        assert world.gateway.failed == []
        assert world.routed("movies") == routed
        assert routed <= {copy.spec.uid for _, copy in world.serving("movies")}
        world.machines["node-5"].heal()
        world.gateway.refuse = False
        world.until(lambda: world.ready("movies", 3, 2), 60)
        assert world.gateway.failed == []

    def test_what_drains_while_the_gateway_still_routes_to_it_goes_on(self, cell: Cell) -> None:
        world = cell(5)
        up(world, 3, drain_s=2)
        world.person.release("movies")
        world.until(
            lambda: world.routed("movies") & {c.spec.uid for _, c in world.serving("movies") if c.spec.release == 2}
        )
        world.gateway.refuse = True
        routed = world.routed("movies")
        world.until(lambda: any(item.status["phase"] == "draining" for item in world.replicas("movies")))
        world.run(40)
        assert routed <= {copy.spec.uid for _, copy in world.serving("movies")}
        world.gateway.refuse = False
        world.until(lambda: world.ready("movies", 3, 2), 60)
        assert world.gateway.failed == []

    def test_a_gateway_that_confirms_nothing_holds_up_an_end_only_so_long(self, cell: Cell) -> None:
        world = cell(4)
        up(world, 2, drain_s=5)
        world.gateway.callers.clear()
        world.gateway.refuse = True
        world.person.change("movies", replicas={"min": 0, "max": 2})
        took_s = world.until(lambda: not world.copies("movies"), 60)
        assert 5 + world.options.drain_margin_s <= took_s < 5 + world.options.drain_margin_s + 3


@pytest.mark.parametrize("jump_h", [1, -1])
def test_a_wall_clock_that_jumps_cuts_no_drain_short_and_prolongs_none(cell: Cell, jump_h: int) -> None:
    world = cell(4)
    up(world, 2)
    world.call("movies", 6, 4000)
    world.run(5)
    world.person.release("movies")
    world.until(lambda: any(item.status["phase"] == "draining" for item in world.replicas("movies")))
    world.clock.jump(jump_h * 3_600_000)
    world.until(lambda: world.ready("movies", 2, 2), 40)
    assert world.gateway.failed == []


def test_a_release_that_came_while_nothing_ran_must_show_that_it_can(cell: Cell) -> None:
    world = cell(4)
    up(world, 2)
    world.gateway.callers.clear()
    world.person.change("movies", replicas={"min": 0, "max": 2})
    world.until(lambda: world.state("movies") == "stopped" and not world.copies("movies"), 20)
    world.person.release("movies", "exit=1@100", "log=boom")
    world.until(lambda: world.status("movies")["rollout"]["release"] == 2, 5)
    assert world.status("movies")["rollout"]["state"] == "done"
    assert world.status("movies")["serving"] == 1
    world.person.change("movies", replicas={"min": 2, "max": 2})
    world.until(lambda: world.status("movies")["rollout"]["state"] == "failed", 30)
    world.until(lambda: world.ready("movies", 2, 1), 20)
