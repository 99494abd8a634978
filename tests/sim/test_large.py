"""A hundred nodes, two hundred deployments of three: through failures, in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sim.world import World

from lepton_ai.spec.workload import Resources

Cell = Callable[..., World]
NODES, DEPLOYMENTS = 100, 200


def test_a_hundred_nodes_through_failures(cell: Cell) -> None:
    world = cell(NODES, capacity=Resources(cpu_milli=8000, memory_mib=16_384))
    names = [f"app-{number}" for number in range(DEPLOYMENTS)]
    for name in names:
        world.person.deploy(name, replicas={"min": 3, "max": 3}, survive={"node": 1}, idempotent=True)
    up_s = world.until(lambda: _ready(world, names), 30)
    assert up_s < 10
    for name in names[::10]:
        world.call(name, 3)
    world.run(3)
    assert all(max(world.nodes_of(name).values()) == 1 for name in names)

    # Ten nodes die at once, ten fall silent, and the leader dies with them.
    for number in range(1, 11):
        world.machines[f"node-{number}"].kill()
        world.machines[f"node-{number + 10}"].partition()
    world.kill_control()
    world.run(1)
    world.start_control()
    world.until(lambda: all(len(world.serving(name)) >= 3 for name in names), 30)
    for number in range(11, 21):
        world.machines[f"node-{number}"].heal()
    for number in range(1, 11):
        world.machines[f"node-{number}"].restore(empty=number % 2 == 0)
    world.run(10)
    assert world.gateway.failed == []
    assert world.at_rest() == []

    # A quiet pass over all of it is short (counted, not timed: a count is the same on every machine).
    world.run(1)
    assert _calls(lambda: world.controls[0].step(always=True)) < 250_000


def _calls(act: Callable[[], None]) -> int:
    """How many calls of functions `act` makes, all in all."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def _ready(world: World, names: list[str]) -> bool:
    found = {item.name: item.status for item in world.store.list("deployment")}
    return all(found[name].get("state") == "ready" for name in names)
