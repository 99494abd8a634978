"""Replicas of one deployment are not alike: the routes follow what each can do, and nothing is written for nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim.world import World

from lepton_ai.scheduler.route import TYPICAL
from lepton_ai.spec.route import Endpoint

Cell = Callable[..., World]


def up(world: World, count: int = 4) -> list[str]:
    """A deployment under load; the uids of its replicas."""
    world.person.deploy("movies", replicas={"min": count, "max": count}, survive={})
    world.until(lambda: world.ready("movies", count) and world.state("movies") == "ready", 20)
    world.call("movies", 8, work_ms=200)
    world.run(15)
    return sorted(world.routed("movies"))


def ends(world: World) -> dict[str, Endpoint]:
    [route] = [route for route in world.gateway.live.routes if route.name == "movies"]
    return {end.replica: end for backend in route.backends for end in backend.endpoints}


def test_alike_replicas_keep_equal_weights_and_nothing_is_written(cell: Cell) -> None:
    world = cell()
    up(world)
    before = world.gateway.published
    world.run(60)
    assert world.gateway.published == before
    assert {(end.weight, end.spare) for end in ends(world).values()} == {(TYPICAL, False)}


def test_a_slow_replica_is_given_less_and_is_found_again_when_it_recovers(cell: Cell) -> None:
    world = cell()
    slow, *others = up(world)
    world.gateway.slowed[slow] = 6.0
    took_s = world.until(lambda: ends(world)[slow].weight < TYPICAL * 0.75, 30)
    assert took_s > 0
    world.run(10)
    assert ends(world)[slow].weight < min(ends(world)[uid].weight for uid in others)
    del world.gateway.slowed[slow]
    world.until(lambda: ends(world)[slow].weight == TYPICAL, 60)
    settled = world.gateway.published
    world.run(60)
    assert world.gateway.published == settled, "the weights flap"
    assert world.gateway.failed == []


def test_a_slow_replica_changes_the_routes_few_times(cell: Cell) -> None:
    world = cell()
    slow = up(world)[0]
    world.gateway.slowed[slow] = 6.0
    world.run(30)
    before = world.gateway.published
    world.run(60)
    assert world.gateway.published - before <= 6


def test_without_figures_and_without_callers_the_weights_stay(cell: Cell) -> None:
    world = cell()
    slow = up(world)[0]
    world.gateway.slowed[slow] = 6.0
    world.until(lambda: ends(world)[slow].weight < TYPICAL * 0.75, 30)
    world.gateway.callers.clear()
    world.run(5)
    before, weights = world.gateway.published, ends(world)
    world.run(30)
    world.gateway.mute = True
    world.run(30)
    assert (world.gateway.published, ends(world)) == (before, weights)


@pytest.mark.parametrize("jump_h", [1, -1])
def test_a_clock_that_jumps_does_not_move_a_weight(cell: Cell, jump_h: int) -> None:
    world = cell()
    up(world)
    world.clock.jump(jump_h * 3_600_000)
    world.run(10)
    assert {end.weight for end in ends(world).values()} == {TYPICAL}
