"""A hundred nodes, two hundred deployments of three: through failures, in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sim.control import Control, uids
from sim.world import World

from lepton_ai.control import deployments
from lepton_ai.control.context import Context
from lepton_ai.control.options import Options
from lepton_ai.spec.replica import ReplicaSpec
from lepton_ai.spec.workload import JobSpec, Resources, Template
from lepton_ai.store import Create

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


def test_what_rests_costs_a_pass_nothing_and_no_memory(cell: Cell) -> None:
    """Counted, not timed: ten times as many finished jobs and releases make no more calls and keep no more records."""
    found = []
    for many in (20, 200):
        world = cell(2)
        world.person.deploy("movies", replicas={"min": 2, "max": 2})
        world.until(lambda world=world: world.ready("movies", 2), 10)
        _fill(world, jobs=many, releases=many // 10)
        world.kill_control()
        control = world.start_control()
        world.run(5)
        mirror = control.loop.services.mirror
        kept = len(mirror.list("job")) + len(mirror.list("replica"))
        found.append((_calls(lambda control=control: control.step(always=True)), kept, len(mirror.rest)))
    (few_calls, few_kept, few_rest), (many_calls, many_kept, many_rest) = found
    assert (few_kept, many_kept) == (2, 2)  # the two replicas of movies
    assert (few_rest, many_rest) == (20, 200)
    assert many_calls <= few_calls + 20


def test_a_stopped_deployment_costs_a_pass_little(cell: Cell) -> None:
    world = cell(1)
    for number in range(100):
        world.person.deploy(f"app-{number}", replicas={"min": 0, "max": 1})
    world.run(3)
    assert {item.status["state"] for item in world.store.list("deployment")} == {"stopped"}
    control = world.controls[0]
    ctx = _context(control)
    assert _calls(lambda: deployments.reconcile(ctx)) < 100 * 30


def _context(control: Control) -> Context:
    loop = control.loop
    assert loop.leader.lease is not None
    ctx = Context(loop.services, loop._memory, loop.leader.lease, loop.leader.since_ms)
    ctx.load()
    return ctx


def _fill(world: World, jobs: int, releases: int) -> None:
    """Jobs that have ended, each with its replica, and older releases of a deployment, as a cell leaves them."""
    owner = world.person.deployment("movies")
    first = world.store.list("release", owner_uid=owner.uid)[0]
    ops = []
    for number in range(2, releases + 2):
        document = {**first.spec, "number": number}
        ops.append(Create("default", "release", f"movies#{number}", document, {}, owner.uid))
    spec = JobSpec(template=Template(command=("run",)), ttl_s=3600).model_dump(mode="json")
    for number in range(jobs):
        uid, name = uids(), f"job-{number}"
        status = {"state": "succeeded", "ended_ms": world.clock.now_ms(), "observed": 1}
        ops.append(Create("default", "job", name, spec, status, None, uid))
        copy = ReplicaSpec(
            uid=uids(), workspace="default", name=f"{name}-0", owner_kind="job", owner=name, command=("run",)
        )
        stored = {"replica": copy.model_dump(mode="json"), "node": "node-1", "worker": 0, "attempt": 0, "run": 1}
        ops.append(Create("default", "replica", copy.name, stored, {"phase": "exited"}, uid, copy.uid))
    world.store.batch(ops)


def test_a_pass_with_very_many_changes_stops_early_and_the_next_goes_on(cell: Cell) -> None:
    world = cell(10, options=Options(max_changed_per_pass=5))
    world.run(1)
    names = [f"app-{number:02}" for number in range(23)]
    for name in names:
        world.person.deploy(name, resources={"cpu_milli": 100, "memory_mib": 100})
    begun: list[int] = []
    turns: list[int] = []
    for _ in range(5):
        world.controls[0].step(always=True)
        turns.append(world.controls[0].loop._memory.turn)
        begun.append(len({item.owner_uid for item in world.store.list("replica")}))
    assert begun == [5, 10, 15, 20, 23]
    assert turns == [5, 10, 15, 20, 0]  # where the next pass begins
    world.until(lambda: _ready(world, names), 20)
