"""Deployments come up, lose replicas and nodes, move, and are made whole again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from sim.world import World

Cell = Callable[..., World]


def up(world: World, name: str = "movies", count: int = 3, *words: str, **fields: Any) -> None:
    """A deployment of `count` replicas on as many nodes, ready and called."""
    spec = {"replicas": {"min": count, "max": count}, "survive": {"node": 1}, "idempotent": True, **fields}
    world.person.deploy(name, *words, **spec)
    world.until(lambda: world.ready(name, count) and world.state(name) == "ready", 10)
    world.call(name, 6)
    world.run(2)


def test_replicas_come_up_on_different_nodes(cell: Cell) -> None:
    world = cell(3)
    world.person.deploy("movies", replicas={"min": 3, "max": 3}, survive={"node": 1})
    took_s = world.until(lambda: world.state("movies") == "ready")
    assert took_s < 3
    assert world.nodes_of("movies") == {"node-1": 1, "node-2": 1, "node-3": 1}
    assert world.status("movies")["ready"] == 3
    world.run(3)
    assert world.at_rest() == []


class TestCrashes:
    def test_a_replica_that_crashes_is_replaced_at_once(self, cell: Cell) -> None:
        world = cell()
        up(world, count=2)
        node, copy = world.copies("movies")[0]
        world.run(15)  # well for long enough to be a first failure
        world.machines[node].crash(copy.spec.uid)
        assert world.until(lambda: world.ready("movies", 2)) < 2  # a start takes 0.8 s
        assert world.gateway.failed == []
        world.run(2)
        assert world.at_rest() == []

    def test_crash_after_crash_is_replaced_with_growing_pauses(self, cell: Cell) -> None:
        world = cell()
        world.person.deploy("movies", "start=200", "exit=1@400")
        starts: list[int] = []
        seen: set[str] = set()
        for _ in range(1200):
            world.step()
            for _, copy in world.copies("movies"):
                if copy.spec.uid not in seen:
                    seen.add(copy.spec.uid)
                    starts.append(world.clock.elapsed_ms())
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        assert gaps[0] < 1000
        assert all(later > sooner * 1.3 for sooner, later in itertools.pairwise(gaps[1:7])), gaps
        assert max(gaps) <= 75_000
        assert "pause" in world.status("movies")["reason"]

    def test_a_replica_that_stays_unhealthy_is_replaced(self, cell: Cell) -> None:
        world = cell()
        up(world, count=2, health={"startup_deadline_s": 5})
        node, sick = world.copies("movies")[0]
        world.machines[node].sicken(sick.spec.uid)
        world.run(1)
        assert world.routed("movies") == {copy.spec.uid for _, copy in world.serving("movies")}
        world.until(lambda: world.ready("movies", 2), 20)
        assert sick not in [copy for _, copy in world.copies("movies")]
        assert world.gateway.failed == []

    def test_two_sick_replicas_of_two_are_not_both_taken_away_at_once(self, cell: Cell) -> None:
        world = cell()
        up(world, count=2, health={"startup_deadline_s": 5})
        sick = {copy.spec.uid for _, copy in world.copies("movies")}
        for node, copy in world.copies("movies"):
            world.machines[node].sicken(copy.spec.uid)
        world.until(lambda: len(sick & {item.uid for item in world.replicas("movies")}) < 2, 20)
        while not world.serving("movies"):
            ended = [item for item in world.replicas("movies") if item.uid in sick and item.status.get("ending")]
            assert len(ended) < 2
            world.step()
        world.until(lambda: world.ready("movies", 2), 40)

    def test_ended_replicas_are_kept_a_few_and_forgotten_on_their_nodes(self, cell: Cell) -> None:
        world = cell()
        world.person.deploy("movies", "start=100", "exit=1@200", "log=boom")
        world.run(120)
        record = world.person.deployment("movies")
        ended = [item for item in world.store.list("replica", owner_uid=record.uid)]
        assert len(ended) <= world.options.kept_ended + 1
        assert all(len(machine.copies) <= 1 for machine in world.machines.values())
        assert len(world.controls[0].fleet.archived) >= len(ended) - 1  # each log was kept before it was forgotten


class TestNodes:
    @pytest.mark.parametrize("count", [2, 3])
    def test_a_dead_node_is_replaced_on_another(self, cell: Cell, count: int) -> None:
        world = cell(5)
        up(world, count=count)
        node, _ = world.copies("movies")[0]
        world.machines[node].kill()
        took_s = world.until(lambda: len(world.serving("movies")) == count)
        assert took_s <= world.options.node_grace_s + 0.8 + 1.0
        assert node not in world.nodes_of("movies")
        assert len(world.nodes_of("movies")) == count
        assert world.gateway.failed == []
        assert world.gateway.waited == []
        world.run(3)
        assert world.at_rest() == []

    def test_a_node_that_returns_with_its_replicas_costs_no_capacity(self, cell: Cell) -> None:
        world = cell(5)
        up(world, count=3)
        node, _ = world.copies("movies")[0]
        world.watch_lowest("movies")
        world.machines[node].partition()
        world.until(lambda: len(world.serving("movies")) == 4, 10)
        world.machines[node].heal()
        world.until(lambda: world.ready("movies", 3), 10)
        assert world.lowest["movies"] == 3
        assert world.gateway.failed == []
        world.run(5)
        assert world.at_rest() == []

    @pytest.mark.parametrize("silent", [1, 3])
    def test_a_silence_within_the_grace_time_moves_nothing(self, cell: Cell, silent: int) -> None:
        world = cell(3)
        up(world, count=2)
        before = {copy.spec.uid for _, copy in world.copies("movies")}
        machines = [world.machines[node] for node in sorted(world.machines, key=lambda n: -world.nodes_of("movies")[n])]
        for machine in machines[:silent]:
            machine.partition()
        world.run(2.5)  # 2 s until it is noticed, then less than the grace time
        for machine in machines:
            machine.heal()
        records = len(world.store.list("replica"))
        world.run(5)
        assert len(world.store.list("replica")) == records == 2
        assert {copy.spec.uid for _, copy in world.copies("movies")} == before
        assert world.at_rest() == []

    def test_when_control_is_cut_off_from_all_nodes_requests_go_on(self, cell: Cell) -> None:
        world = cell(3)
        up(world, count=3)
        before = {copy.spec.uid for _, copy in world.copies("movies")}
        for machine in world.machines.values():
            machine.partition()
        world.run(60)
        assert world.gateway.failed == []
        assert world.gateway.waited == []
        assert len(world.serving("movies")) == 3
        for machine in world.machines.values():
            machine.heal()
        world.until(lambda: world.ready("movies", 3), 10)
        assert {copy.spec.uid for _, copy in world.copies("movies")} == before

    def test_an_agent_that_restarts_keeps_its_replicas(self, cell: Cell) -> None:
        world = cell(3)
        up(world, count=3)
        before = {copy.spec.uid for _, copy in world.copies("movies")}
        world.machines["node-1"].kill_agent()
        world.run(0.5)
        world.machines["node-1"].start_agent()
        world.run(5)
        assert {copy.spec.uid for _, copy in world.copies("movies")} == before
        assert world.at_rest() == []

    @pytest.mark.parametrize("empty", [True, False])
    def test_a_node_that_returns_without_its_replicas_is_used_again(self, cell: Cell, empty: bool) -> None:
        world = cell(3)
        up(world, count=3)
        world.machines["node-2"].kill()
        world.run(8)
        assert world.state("movies") in ("degraded", "ready")
        world.machines["node-2"].restore(empty=empty)
        world.until(lambda: world.ready("movies", 3) and len(world.nodes_of("movies")) == 3, 20)
        assert world.gateway.failed == []
        world.run(3)
        assert world.at_rest() == []

    def test_a_dead_node_leaves_the_routes_once_others_have_its_load(self, cell: Cell) -> None:
        world = cell(4)
        up(world, count=3)
        node, copy = world.copies("movies")[0]
        world.machines[node].kill()
        world.run(10)
        assert copy.spec.uid not in world.routed("movies")
        assert world.ready("movies", 3)

    def test_a_port_of_a_dead_node_that_another_got_is_not_called_for_the_dead_one(self, cell: Cell) -> None:
        world = cell(3)
        up(world, count=3)
        world.machines["node-1"].kill()  # its ports are free, and the next starts take the lowest free one
        world.person.deploy("other", "start=100", replicas={"min": 3, "max": 3})
        world.until(lambda: world.state("other") == "ready")
        world.call("other", 3)
        world.run(10)  # the world fails when a request of one reaches the other
        assert world.gateway.failed == []

    def test_draining_a_node_moves_its_replicas_make_before_break(self, cell: Cell) -> None:
        world = cell(4)
        up(world, count=3, idempotent=False)
        world.call("movies", 20, 700)
        world.run(2)
        node, _ = world.copies("movies")[0]
        world.watch_lowest("movies")
        world.person.drain(node)
        world.until(lambda: world.ready("movies", 3) and node not in world.nodes_of("movies"), 20)
        assert world.lowest["movies"] == 3
        assert world.gateway.failed == []
        assert world.store.get("system", "node", node).status["state"] == "draining"
        world.person.drain(node, False)
        world.run(2)
        assert world.store.get("system", "node", node).status["state"] == "ready"
        assert world.at_rest() == []

    def test_draining_where_there_is_no_other_room_keeps_what_serves(self, cell: Cell) -> None:
        world = cell(2)
        up(world, count=2)
        world.watch_lowest("movies")
        world.person.drain("node-1")
        world.run(30)
        assert world.lowest["movies"] == 2
        assert world.gateway.failed == []

    @pytest.mark.parametrize("dead", [False, True])
    def test_a_node_that_is_removed_gives_up_its_work_and_its_record(self, cell: Cell, dead: bool) -> None:
        world = cell(4)
        up(world, count=3)
        if dead:
            world.machines["node-1"].kill()
        world.person.remove("node", "node-1")
        world.until(lambda: world.store.find("system", "node", "node-1") is None, 40)
        world.until(lambda: world.ready("movies", 3), 10)
        assert world.gateway.failed == []
        world.run(2)
        assert [text for text in world.at_rest() if "node-1" not in text] == []


class TestRemoval:
    def test_a_removed_deployment_leaves_nothing(self, cell: Cell) -> None:
        world = cell(3)
        up(world, count=3)
        world.gateway.callers.clear()
        world.person.remove("deployment", "movies")
        world.until(lambda: world.store.find("default", "deployment", "movies") is None, 20)
        assert world.store.list("replica") == world.store.list("release") == []
        assert all(not machine.copies for machine in world.machines.values())
        assert world.gateway.live.routes == ()

    def test_removal_waits_for_a_node_that_is_away_and_says_so(self, cell: Cell) -> None:
        world = cell(3)
        up(world, count=3)
        world.gateway.callers.clear()
        world.machines["node-3"].partition()
        world.run(5)
        world.person.remove("deployment", "movies")
        world.run(30)
        assert "node-3" in world.status("movies")["reason"]
        world.machines["node-3"].heal()
        world.until(lambda: world.store.find("default", "deployment", "movies") is None, 20)
        assert all(not machine.copies for machine in world.machines.values())

    def test_what_ended_on_a_node_that_died_later_does_not_hold_up_a_removal(self, cell: Cell) -> None:
        world = cell(3)
        up(world, count=2)
        node, copy = world.copies("movies")[0]
        world.machines[node].crash(copy.spec.uid)
        world.until(lambda: world.ready("movies", 2), 10)
        world.person.drain(node)
        world.until(lambda: node not in {item.spec["node"] for item in world.replicas("movies")}, 20)
        world.gateway.callers.clear()
        world.machines[node].kill()
        world.run(20)
        world.person.remove("deployment", "movies")
        world.until(lambda: world.store.find("default", "deployment", "movies") is None, 30)


class TestRoom:
    def test_what_fits_nowhere_waits_with_every_nodes_verdict_and_starts_when_there_is_room(self, cell: Cell) -> None:
        world = cell(3)
        big = {"cpu_milli": 3000, "memory_mib": 100}
        up(world, "first", 3, resources=big)
        world.person.deploy("second", resources=big, replicas={"min": 1, "max": 1})
        world.run(3)
        status = world.status("second")
        assert status["state"] == "waiting"
        for node in ("node-1", "node-2", "node-3"):
            assert f"{node}: full: cpu 3000 wanted, 1000 of 4000 free" in status["reason"]
        world.gateway.callers.clear()
        world.person.remove("deployment", "first")
        world.until(lambda: world.ready("second", 1), 20)

    def test_too_few_nodes_for_survive_are_said(self, cell: Cell) -> None:
        world = cell(1)
        world.person.deploy("movies", replicas={"min": 2, "max": 2}, survive={"node": 1})
        world.until(lambda: world.ready("movies", 2), 10)
        assert "needs at least 2 nodes" in world.status("movies")["warning"]

    def test_when_the_second_node_comes_the_replicas_spread(self, cell: Cell) -> None:
        world = cell(2)
        world.machines["node-2"].kill()
        world.person.deploy("movies", replicas={"min": 2, "max": 2}, survive={"node": 1}, idempotent=True)
        world.until(lambda: world.ready("movies", 2), 10)
        world.call("movies", 4)
        world.watch_lowest("movies")
        world.machines["node-2"].restore(empty=True)
        world.until(lambda: world.ready("movies", 2) and len(world.nodes_of("movies")) == 2, 20)
        assert world.lowest["movies"] == 2
        assert world.gateway.failed == []

    def test_a_secret_that_does_not_exist_is_said(self, cell: Cell) -> None:
        world = cell()
        world.person.deploy("movies", secrets={"KEY": "absent"})
        world.until(lambda: world.state("movies") == "failed", 30)
        assert "no secret 'absent'" in world.status("movies")["reason"]

    def test_what_a_node_does_not_take_is_said_and_placed_again(self, cell: Cell) -> None:
        world = cell()
        for machine in world.machines.values():
            machine.refuses = "process:// runs no images"
        world.person.deploy("movies", image="python:3")
        world.until(lambda: world.state("movies") == "failed", 30)
        assert "node-1 does not run it: process:// runs no images" in world.status("movies")["reason"]
        for machine in world.machines.values():
            machine.refuses = ""
        world.person.release("movies")
        world.until(lambda: world.ready("movies", 1), 10)
