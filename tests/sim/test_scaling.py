"""As many replicas as callers need: up with load, down after the window, to nothing and back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from sim.world import World

Cell = Callable[..., World]


def up(world: World, **fields: object) -> None:
    spec = {"replicas": {"min": 2, "max": 6}, "target_in_flight": 4.0, "survive": {"node": 1}, **fields}
    world.person.deploy("movies", **spec)
    world.until(lambda: world.state("movies") == "ready", 10)
    world.run(2)


def test_up_with_load_and_down_after_the_window(cell: Cell) -> None:
    world = cell(6)
    up(world)
    world.call("movies", 14)
    took_s = world.until(lambda: len(world.serving("movies")) == 5, 20)  # 4 for the load, 1 to spare
    assert took_s < 5
    assert "14 requests in flight" in world.status("movies")["scaled"]["reason"]
    world.run(5)
    world.watch_lowest("movies")
    world.call("movies", 2)
    world.run(55)
    assert world.lowest["movies"] == 5
    world.until(lambda: world.ready("movies", 2), 60)
    assert world.gateway.failed == []
    world.run(3)
    assert world.at_rest() == []
    numbers = changes(world)
    assert (numbers[0], max(numbers), numbers[-1]) == (2, 5, 2)
    assert turns(numbers[1:]) == 1


def changes(world: World) -> list[int]:
    """The numbers of replicas that were wanted one after the other."""
    texts = world.notes.of("deployment/movies", "Scaled")
    return [int(text.split(" -> ")[1].split()[0]) for text in texts]


def turns(numbers: list[int]) -> int:
    moves = [after > before for before, after in pairwise(numbers) if after != before]
    return sum(one != other for one, other in pairwise(moves))


def test_a_burst_scales_out_and_back_and_turns_once(cell: Cell) -> None:
    world = cell(4)
    up(world, replicas={"min": 1, "max": 8}, survive={}, idempotent=True)
    world.run(20)
    world.call("movies", 30)  # 100 requests a second of 0.3 s
    world.until(lambda: len(world.serving("movies")) == 8, 10)
    world.run(60)
    world.call("movies", 0)
    world.until(lambda: world.ready("movies", 1), 240)
    assert world.gateway.failed == []
    assert turns(changes(world)[1:]) <= 1, changes(world)


def test_a_constant_noisy_load_is_left_alone(cell: Cell) -> None:
    world = cell(4)
    up(world, replicas={"min": 1, "max": 12}, survive={}, idempotent=True)
    noise = Random(3)
    for _ in range(300):
        world.call("movies", max(0, round(noise.gauss(14, 2.5))))
        world.run(1)
    settled = len(changes(world))
    for _ in range(300):
        world.call("movies", max(0, round(noise.gauss(14, 2.5))))
        world.run(1)
    assert turns(changes(world)[settled - 1 :]) <= 1, changes(world)
    assert world.gateway.failed == []


@pytest.mark.parametrize(("start_ms", "most"), [(800, 3), (20_000, 2)])
def test_who_takes_long_to_start_is_not_started_for_what_is_gone_before(cell: Cell, start_ms: int, most: int) -> None:
    world = cell(4)
    world.person.deploy("movies", f"start={start_ms}", replicas={"min": 1, "max": 8}, target_in_flight=4.0)
    world.until(lambda: world.state("movies") == "ready", 40)
    world.call("movies", 4)
    world.run(30)
    highest = 0
    for _ in range(3):
        world.call("movies", 16)
        world.run(1)
        world.call("movies", 4)
        for _ in range(20):
            world.run(1)
            highest = max(highest, int(world.status("movies")["wanted"]))
    assert highest == most, changes(world)
    assert world.gateway.failed == []


def test_a_new_leader_takes_up_what_was_learnt(cell: Cell) -> None:
    world = cell(4)
    up(world, replicas={"min": 1, "max": 8}, survive={})
    for _ in range(11):
        world.call("movies", 14)
        world.run(20)
        world.call("movies", 2)
        world.run(40)
    learnt = world.status("movies")["demand"]
    assert learnt["ticks"] > 100
    assert world.status("movies")["start_s"] < 5
    world.kill_control()
    world.start_control()
    world.run(20)
    record = world.person.deployment("movies")
    known = world.controls[0].loop._memory.demand[record.uid]
    assert known.peak.state()["ticks"] >= learnt["ticks"]


def test_latency_over_its_target_brings_more_until_it_is_met(cell: Cell) -> None:
    world = cell(4)
    up(world, replicas={"min": 1, "max": 8}, survive={}, target_in_flight=1000.0, target_latency_ms_p95=200.0)
    world.call("movies", 6)
    world.gateway.latency_ms = lambda copies: 600.0 / max(1, copies)
    world.until(lambda: len(world.serving("movies")) >= 3, 300)
    assert "p95 of" in world.status("movies")["scaled"]["reason"]
    world.run(240)
    assert len(world.serving("movies")) in (3, 4)


def test_cpu_over_its_target_brings_more(cell: Cell) -> None:
    world = cell(4)
    up(world, replicas={"min": 1, "max": 8}, survive={}, target_in_flight=1000.0, target_utilisation=0.5)
    use(world, 400, 30)
    assert len(world.serving("movies")) == 4  # each asked for 200, 400 are in use, half of what is asked for at most
    assert "the cpu of 2 replicas is in use, at most 50%" in world.status("movies")["scaled"]["reason"]
    use(world, 20, 120)
    assert world.ready("movies", 1)


def use(world: World, cpu_milli: int, seconds: int) -> None:
    """For so long all copies together use so much."""
    for _ in range(seconds):
        serving = world.serving("movies")
        for node, copy in serving:
            world.machines[node].works(copy.spec.uid, cpu_milli // len(serving))
        world.run(1)


def test_without_figures_from_the_gateway_nothing_shrinks(cell: Cell) -> None:
    world = cell(6)
    up(world, idle_timeout_s=30)
    world.call("movies", 14)
    world.until(lambda: len(world.serving("movies")) == 5, 20)
    world.gateway.mute = True
    world.run(200)
    assert len(world.serving("movies")) == 5
    world.gateway.mute = False
    world.gateway.callers.clear()
    world.until(lambda: world.state("movies") == "idle", 120)


def test_a_new_leader_does_not_shrink_before_it_has_seen_a_window(cell: Cell) -> None:
    world = cell(6)
    up(world)
    world.call("movies", 14)
    world.until(lambda: len(world.serving("movies")) == 5, 20)
    world.call("movies", 1)
    world.run(10)
    world.kill_control()
    world.start_control()
    world.watch_lowest("movies")
    world.run(50)
    assert world.lowest["movies"] == 5
    world.until(lambda: world.ready("movies", 2), 40)


def test_to_zero_and_back_at_the_first_request(cell: Cell) -> None:
    world = cell()
    up(world, idle_timeout_s=20, replicas={"min": 1, "max": 2}, survive={})
    world.run(10)
    assert world.state("movies") == "ready"
    world.until(lambda: world.state("movies") == "idle" and not world.copies("movies"), 40)
    world.run(60)
    assert world.at_rest() == []
    world.call("movies", 1)
    took_s = world.until(lambda: world.gateway.answered["default", "movies"] > 0, 10)
    assert took_s < 2.5
    world.run(60)
    assert world.state("movies") == "ready"
    assert world.gateway.failed == []
    world.gateway.callers.clear()
    world.until(lambda: world.state("movies") == "idle" and not world.copies("movies"), 60)


def test_a_held_request_that_gives_up_does_not_leave_it_half_awake(cell: Cell) -> None:
    world = cell()
    up(world, idle_timeout_s=5, replicas={"min": 1, "max": 2}, survive={})
    world.until(lambda: world.state("movies") == "idle" and not world.copies("movies"), 40)
    world.call("movies", 1)
    world.run(0.3)
    world.gateway.callers.clear()
    world.gateway._requests.clear()
    world.run(1)
    world.until(lambda: world.state("movies") == "idle" and not world.copies("movies"), 40)


@pytest.mark.parametrize("start_ms", [800, 5000])
def test_a_new_deployment_that_may_sleep_is_started_once(cell: Cell, start_ms: int) -> None:
    world = cell()
    world.person.deploy("movies", f"start={start_ms}", idle_timeout_s=2, replicas={"min": 1, "max": 2})
    world.until(lambda: (world.status("movies").get("rollout") or {}).get("state") == "done", 20)
    world.until(lambda: world.state("movies") == "idle", 20)
    assert world.person.release("movies", f"start={start_ms}") == 2
    world.until(lambda: world.status("movies")["rollout"] | {"since_ms": 0} == {
        "release": 2, "state": "done", "reason": "", "since_ms": 0,
    }, 20)  # fmt: skip
    world.until(lambda: world.state("movies") == "idle" and not world.copies("movies"), 40)


def test_a_release_that_fails_while_asleep_is_known_before_anybody_asks(cell: Cell) -> None:
    world = cell()
    up(world, idle_timeout_s=5, replicas={"min": 1, "max": 2}, survive={})
    world.until(lambda: world.state("movies") == "idle", 40)
    world.person.release("movies", "exit=1@100")
    world.until(lambda: world.status("movies")["rollout"]["state"] == "failed", 40)
    world.call("movies", 1)
    world.until(lambda: world.gateway.answered["default", "movies"] > 0, 10)
    assert world.gateway.failed == []


def test_stopped_and_back(cell: Cell) -> None:
    world = cell()
    up(world)
    world.person.change("movies", replicas={"min": 0, "max": 6})
    world.until(lambda: world.state("movies") == "stopped" and not world.copies("movies"), 20)
    assert [route.activate for route in world.gateway.live.routes] == [False]
    world.run(3)
    assert world.at_rest() == []
    world.person.change("movies", replicas={"min": 2, "max": 6})
    world.until(lambda: world.ready("movies", 2) and world.state("movies") == "ready", 20)
    assert [route.activate for route in world.gateway.live.routes] == [True]


def test_fewer_are_wanted(cell: Cell) -> None:
    world = cell()
    up(world, replicas={"min": 5, "max": 5}, survive={})
    world.call("movies", 8)
    world.person.change("movies", replicas={"min": 2, "max": 2})
    world.watch_lowest("movies")
    world.until(lambda: world.ready("movies", 2), 20)
    assert world.lowest["movies"] == 2
    assert world.gateway.failed == []


@pytest.mark.parametrize("jump_h", [1, -1])
def test_a_wall_clock_that_jumps_puts_nothing_to_sleep_and_keeps_nothing_awake(cell: Cell, jump_h: int) -> None:
    world = cell()
    up(world, idle_timeout_s=60, replicas={"min": 1, "max": 2}, survive={})
    world.call("movies", 1)
    world.run(5)
    world.gateway.callers.clear()
    world.run(5)
    world.clock.jump(jump_h * 3_600_000)
    world.run(40)
    assert world.state("movies") == "ready"
    world.until(lambda: world.state("movies") == "idle", 30)
