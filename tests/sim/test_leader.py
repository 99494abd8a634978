"""Who leads: control may die or be replaced in the middle of anything, and nothing that runs notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim.world import World

from lepton_ai.errors import StaleEpoch
from lepton_ai.store import Update

Cell = Callable[..., World]


def up(world: World, count: int = 3) -> set[str]:
    world.person.deploy("movies", replicas={"min": count, "max": count}, survive={"node": 1}, idempotent=True)
    world.person.run("count", "exit=0@45000")
    world.until(lambda: world.ready("movies", count) and world.job("count").get("state") == "running", 10)
    world.call("movies", 8)
    world.run(2)
    return {copy.spec.uid for name in ("movies", "count") for _, copy in world.copies(name)}


def test_a_new_leader_restarts_nothing(cell: Cell) -> None:
    world = cell()
    before = up(world)
    world.kill_control()
    world.run(20)
    assert world.gateway.failed == []
    world.start_control()
    world.until(lambda: world.controls[0].leader.lease is not None, 10)
    world.run(10)
    assert {copy.spec.uid for name in ("movies", "count") for _, copy in world.copies(name)} == before
    world.run(20)
    assert world.job("count")["state"] == "succeeded"
    assert world.gateway.failed == []
    assert world.at_rest() == []


def test_what_ended_while_nobody_led_is_known(cell: Cell) -> None:
    world = cell()
    up(world)
    world.kill_control()
    node, copy = world.copies("movies")[0]
    world.machines[node].crash(copy.spec.uid)
    world.run(50)
    world.start_control()
    world.until(lambda: world.job("count")["state"] == "succeeded", 15)
    world.until(lambda: world.ready("movies", 3), 10)
    assert world.gateway.failed == []
    assert len([item for item in world.store.list("replica") if item.name.startswith("count")]) == 1


def test_a_node_that_died_while_nobody_led_is_replaced(cell: Cell) -> None:
    world = cell(4)
    up(world)
    world.kill_control()
    world.machines[world.copies("movies")[0][0]].kill()
    world.run(20)
    world.start_control()
    world.until(lambda: world.ready("movies", 3), 15)
    assert world.gateway.failed == []


def test_a_new_leader_does_not_take_nodes_for_dead_before_it_has_met_them(cell: Cell) -> None:
    """Its first connections may take a moment: as long as `first_report_s` nothing is missing."""
    world = cell()
    before = up(world)
    world.kill_control()
    for machine in world.machines.values():
        machine.kill_agent()
    world.start_control()
    world.until(lambda: world.controls[0].leader.lease is not None, 10)
    world.run(2)
    for machine in world.machines.values():
        machine.start_agent()
    world.run(10)
    assert {copy.spec.uid for name in ("movies", "count") for _, copy in world.copies(name)} == before


def test_a_frozen_leader_that_wakes_changes_nothing(cell: Cell) -> None:
    world = cell()
    before = up(world)
    old = world.controls[0]
    old.frozen = True
    new = world.start_control()
    world.until(lambda: new.leader.lease is not None, 20)
    world.run(5)
    stale = old.leader.lease
    assert stale is not None
    with pytest.raises(StaleEpoch):
        world.store.batch([Update(world.person.deployment("movies"), status={})], lease=stale)
    refused = world.network.refused
    old.fleet.stop("node-1", next(iter(before)), None, stale.epoch)
    world.run(1)
    assert world.network.refused == refused + 1
    published = world.gateway.published
    old.frozen = False
    world.run(5)
    assert not old.loop.leading
    assert new.loop.leading
    assert world.gateway.published == published
    assert {copy.spec.uid for name in ("movies", "count") for _, copy in world.copies(name)} == before


def test_one_that_leads_again_publishes_again(cell: Cell) -> None:
    world = cell()
    up(world)
    first = world.controls[0]
    first.frozen = True
    second = world.start_control()
    world.until(lambda: second.leader.lease is not None, 20)
    world.run(2)
    second.frozen = True
    first.frozen = False
    from lepton_ai.spec.route import Routes

    world.gateway.live = Routes()  # what the second one had published when it died
    world.gateway.callers.clear()
    world.until(lambda: first.loop.leading and world.ready("movies", 3), 20)


@pytest.mark.parametrize("moment", range(1, 41, 3))
def test_killed_between_any_two_writes_of_an_update(cell: Cell, moment: int) -> None:
    world = cell(5, seed=moment)
    up(world)
    world.person.release("movies", idempotent=True)
    world.store.at = moment
    world.until(lambda: not world.controls or world.ready("movies", 3, 2), 60)
    if not world.controls:
        world.run(2)
        world.start_control()
    world.until(lambda: world.ready("movies", 3, 2), 60)
    world.store.at = -1
    world.run(50)
    assert world.gateway.failed == []
    assert world.job("count")["state"] == "succeeded"
    assert world.at_rest() == []


@pytest.mark.parametrize("moment", range(1, 20, 2))
def test_killed_between_any_two_writes_of_a_first_start(cell: Cell, moment: int) -> None:
    world = cell(3, seed=moment)
    world.store.at = moment
    world.person.deploy("movies", replicas={"min": 3, "max": 3}, survive={"node": 1})
    world.person.run("gang", "exit=0@5000", workers=3, resources={"cpu_milli": 3000, "memory_mib": 10})
    world.until(lambda: not world.controls, 20)
    world.start_control()
    world.until(lambda: world.ready("movies", 3) and world.job("gang").get("state") == "succeeded", 60)
    world.run(2)
    assert world.at_rest() == []
