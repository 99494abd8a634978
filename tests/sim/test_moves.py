"""Overloaded nodes give work away: make before break, no ping-pong, and whatever dies meanwhile, nobody notices."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from sim.machine import Copy
from sim.world import World

from lepton_ai.control.options import Options
from lepton_ai.spec.workload import Resources

Cell = Callable[..., World]
SMALL = {"cpu_milli": 100, "memory_mib": 64}
NODE = Resources(cpu_milli=1000, memory_mib=4096)


def run(world: World, seconds: int, each_milli: int = 150, name: str = "movies", step_s: int = 1) -> None:
    """Every copy uses the same wherever it runs; the figures of a live machine always move a little."""
    for second in range(0, seconds, step_s):
        for node, copy in world.copies(name):
            world.machines[node].works(copy.spec.uid, each_milli + second % 3, 32 + second % 2)
        world.run(step_s)


def imbalance(world: World) -> float:
    uses = [
        sum(machine.uses.get(uid, (0, 0))[0] for uid, copy in machine.copies.items() if copy.lives)
        for machine in world.machines.values()
        if machine.powered
    ]
    return max(uses) / max(1.0, sum(uses) / len(uses))


def crowded(cell: Cell, **options: object) -> World:
    """Eight replicas stand on one node, for which they use more than it has; two other nodes are empty."""
    world = cell(3, capacity=NODE, options=Options(**options))  # type: ignore[arg-type]
    world.person.drain("node-2")
    world.person.drain("node-3")
    world.run(1)
    world.person.deploy("movies", replicas={"min": 8, "max": 8}, resources=SMALL, idempotent=True)
    world.until(lambda: world.ready("movies", 8), 20)
    world.person.drain("node-2", False)
    world.person.drain("node-3", False)
    world.call("movies", 16)
    world.run(2)
    assert world.nodes_of("movies") == {"node-1": 8}
    return world


def moved(world: World) -> list[str]:
    return world.notes.of("deployment/movies", "Moved")


def test_an_overloaded_node_gives_work_away_and_no_request_fails(cell: Cell) -> None:
    world = crowded(cell)
    world.watch_lowest("movies")
    run(world, 5)
    before = imbalance(world)
    run(world, 240)
    assert imbalance(world) < before * 0.7
    assert 2 <= len(moved(world)) <= 4
    assert all("over its limit" in text and "node-1" in text for text in moved(world))
    assert world.lowest["movies"] == 8
    assert world.gateway.failed == []
    run(world, 3)
    assert world.at_rest() == []


def test_nothing_goes_back_and_forth_within_an_hour(cell: Cell) -> None:
    world = crowded(cell, tick_s=2.5)
    world.call("movies", 1, 5000)
    run(world, 300, step_s=5)
    count, there = len(moved(world)), world.nodes_of("movies")
    assert count > 1
    run(world, 3300, step_s=5)
    assert len(moved(world)) <= count + 1
    assert all(world.nodes_of("movies")[node] >= some for node, some in there.items() if node != "node-1")
    assert world.gateway.failed == []


def test_it_can_be_switched_off(cell: Cell) -> None:
    world = crowded(cell, rebalance_s=0.0)
    run(world, 120)
    assert world.nodes_of("movies") == {"node-1": 8}


def test_a_spike_moves_nothing(cell: Cell) -> None:
    world = crowded(cell)
    run(world, 60, 60)
    run(world, 10, 200)
    run(world, 120, 60)
    assert moved(world) == []


def test_a_node_that_lies_is_neither_source_nor_destination(cell: Cell) -> None:
    world = crowded(cell)
    world.machines["node-2"].says(cpu_used_milli=-5)
    run(world, 200)
    assert moved(world)
    assert world.nodes_of("movies")["node-2"] == 0
    assert world.nodes_of("movies")["node-3"] > 0


def under_way(world: World) -> tuple[str, Copy]:
    """Runs until a replacement has been started somewhere else; (node, copy) of it."""
    for _ in range(200):
        run(world, 1)
        found = [(node, copy) for node, copy in world.copies("movies") if node != "node-1"]
        if found:
            return found[0]
    raise AssertionError(world.tell())


def slow(cell: Cell) -> World:
    world = cell(3, capacity=NODE)
    world.person.drain("node-2")
    world.person.drain("node-3")
    world.run(1)
    world.person.deploy("movies", "start=6000", replicas={"min": 8, "max": 8}, resources=SMALL, idempotent=True)
    world.until(lambda: world.ready("movies", 8), 30)
    world.person.drain("node-2", False)
    world.person.drain("node-3", False)
    world.call("movies", 16)
    world.run(2)
    return world


def test_a_destination_that_dies_leaves_the_source_serving(cell: Cell) -> None:
    world = slow(cell)
    node, _ = under_way(world)
    world.watch_lowest("movies")
    world.machines[node].kill()
    run(world, 10)
    assert world.nodes_of("movies") == {"node-1": 8}
    assert world.lowest["movies"] == 8
    assert any(node in text for text in world.notes.of("deployment/movies", "NotMoved"))
    run(world, 120)
    assert world.nodes_of("movies")["node-1"] < 8, "another node takes what it could not"
    assert world.gateway.failed == []


def test_a_destination_where_nothing_gets_ready_is_given_up(cell: Cell) -> None:
    world = crowded(cell, move_s=20.0)
    for machine in world.machines.values():
        machine.refuses = "" if machine.name == "node-1" else "no more processes"
    run(world, 90)
    assert world.nodes_of("movies") == {"node-1": 8}
    assert world.notes.of("deployment/movies", "NotMoved")
    assert moved(world) == []
    assert world.gateway.failed == []
    assert world.state("movies") == "ready"


def test_one_whose_move_failed_may_move_later(cell: Cell) -> None:
    world = crowded(cell, rebalance_s=0.0)
    first = world.replicas("movies")[0].uid

    def send(ms: int) -> None:  # as the leader before this one decided
        world.kill_control()
        record = world.store.fetch([first])[0]
        note = {"to": "node-2", "why": "it is too much", "ms": ms}
        world.store.update(record, status={**record.status, "move": note})
        world.start_control()

    send(1)
    world.until(lambda: world.nodes_of("movies")["node-2"], 10)
    (new,) = [copy for node, copy in world.copies("movies") if node == "node-2"]
    world.machines["node-2"].crash(new.spec.uid)
    world.until(lambda: world.notes.of("deployment/movies", "NotMoved"), 10)
    world.run(5)
    send(2)
    world.until(lambda: world.nodes_of("movies") == {"node-1": 7, "node-2": 1}, 20)
    assert len(moved(world)) == 1
    assert len(world.notes.of("deployment/movies", "NotMoved")) == 1
    assert world.gateway.failed == []


@pytest.mark.parametrize("later_s", [0, 3, 6, 8])
def test_a_new_leader_goes_on_with_a_move(cell: Cell, later_s: int) -> None:
    world = slow(cell)
    node, copy = under_way(world)
    run(world, later_s)
    world.kill_control()
    run(world, 8)
    world.start_control()
    run(world, 20)
    assert world.ready("movies", 8)
    assert copy.lives
    assert world.nodes_of("movies")[node] == 1
    assert len(moved(world)) == 1
    assert world.gateway.failed == []
    run(world, 3)
    assert world.at_rest() == []


def test_a_drain_a_release_and_a_scale_down_go_before_a_move(cell: Cell) -> None:
    world = slow(cell)
    node, _ = under_way(world)
    world.person.drain(node)
    run(world, 20)
    assert world.nodes_of("movies")[node] == 0
    assert world.gateway.failed == []
    world.person.drain(node, False)
    under_way(world)
    world.person.change("movies", replicas={"min": 4, "max": 4})
    run(world, 30)
    assert world.ready("movies", 4)
    world.person.release("movies", idempotent=True, resources=SMALL)
    run(world, 40)
    assert world.ready("movies", 4, 2)
    assert world.gateway.failed == []
    assert world.at_rest() == []


def test_survive_is_kept_while_things_move(cell: Cell) -> None:
    world = cell(4, capacity=NODE)
    for node in ("node-3", "node-4"):
        world.person.drain(node)
    world.run(1)
    fields = {"replicas": {"min": 4, "max": 4}, "survive": {"node": 1}, "resources": SMALL, "idempotent": True}
    world.person.deploy("movies", **fields)
    world.until(lambda: world.ready("movies", 4), 20)
    hog = world.person.run("hog", nodes=("node-1",), resources=SMALL)
    world.until(lambda: world.job("hog").get("state") == "running", 10)
    for node in ("node-3", "node-4"):
        world.person.drain(node, False)
    world.call("movies", 8)
    for second in range(120):
        for node, copy in world.copies("hog"):
            world.machines[node].works(copy.spec.uid, 900 + second % 2)
        run(world, 1, 100)
        nodes = {node for node, copy in world.copies("movies") if copy.serves}
        assert len(nodes) >= 2, world.tell()
    assert hog.name
    assert world.nodes_of("movies")["node-1"] <= 1
    assert world.copies("hog")[0][0] == "node-1", "a job without a checkpoint stays"
    assert world.gateway.failed == []


def trained(cell: Cell, **fields: object) -> World:
    """Six jobs of one worker crowd a node; each writes down where it is when it is told to end."""
    world = cell(2, capacity=NODE)
    world.person.drain("node-2")
    world.run(1)
    for number in range(6):
        world.person.run(f"train-{number}", "term=3000", resources=SMALL, **fields)
    names = [f"train-{number}" for number in range(6)]
    world.until(lambda: all(world.job(name).get("state") == "running" for name in names), 20)
    world.person.drain("node-2", False)
    for _ in range(150):
        for name in names:
            for node, copy in world.copies(name):
                world.machines[node].works(copy.spec.uid, 200 + world.clock.elapsed_ms() // 1000 % 3)
        world.run(1)
        for name in names:  # never two at once: the second begins with what the first wrote down
            assert len(world.copies(name)) <= 1, world.tell()
    return world


def test_a_job_moves_when_it_has_a_checkpoint_and_that_is_no_failure(cell: Cell) -> None:
    world = trained(cell, checkpoint=True)
    there = {name: node for name in (f"train-{n}" for n in range(6)) for node, _ in world.copies(name)}
    assert len(there) == 6
    gone = [name for name, node in there.items() if node == "node-2"]
    assert 1 <= len(gone) <= 3
    for name in there:
        assert world.job(name)["state"] == "running"
        assert world.job(name)["failed"] == 0
        assert bool(world.notes.of(f"job/{name}", "Moved")) == (name in gone)
    assert world.at_rest() == []


def test_a_job_without_a_checkpoint_stays(cell: Cell) -> None:
    world = trained(cell)
    assert all(node == "node-1" for number in range(6) for node, _ in world.copies(f"train-{number}"))
    assert any("without a checkpoint: 6" in text for text in world.notes.of("node/node-1", "Overloaded"))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_while_things_move(cell: Cell, seed: int) -> None:
    """Loads that change, drains, releases, other sizes, agents and leaders that die: requests and replicas are kept."""
    rng = random.Random(seed)
    world = cell(4, seed=seed, capacity=NODE, options=Options(rebalance_s=3.0, rebalance_patience_s=3.0, move_s=10.0))
    fields = {"resources": SMALL, "idempotent": True}
    world.person.deploy("movies", "start=1500", replicas={"min": 6, "max": 6}, survive={"node": 1}, **fields)
    world.person.deploy("other", replicas={"min": 3, "max": 3}, survive={"node": 1}, **fields)
    world.until(lambda: world.ready("movies", 6) and world.ready("other", 3), 30)
    world.call("movies", 8)
    world.call("other", 4)
    world.run(2)
    drained = ""
    for _ in range(12):
        for node, copy in [*world.copies("movies"), *world.copies("other")]:
            hot = rng.random() < 0.4
            world.machines[node].works(copy.spec.uid, rng.randint(300, 600) if hot else rng.randint(20, 120))
        event = rng.choice(["drain", "undrain", "release", "size", "agent", "leader", "nothing", "nothing", "nothing"])
        if event == "drain" and not drained:
            drained = rng.choice(list(world.machines))
            world.person.drain(drained)
        elif event == "undrain" and drained:
            world.person.drain(drained, False)
            drained = ""
        elif event == "release":
            world.person.release("movies", "start=1500", **fields)
        elif event == "size":
            size = rng.choice([4, 6, 7])
            world.person.change("movies", replicas={"min": size, "max": size})
        elif event == "agent":
            name = rng.choice(list(world.machines))
            world.machines[name].kill_agent()
            world.run(0.5)
            world.machines[name].start_agent()
        elif event == "leader":
            world.kill_control()
            world.run(rng.uniform(0, 8))
            world.start_control()
        run_only(world, rng.randint(3, 15))
    if drained:
        world.person.drain(drained, False)
    world.until(lambda: not world.at_rest(), 90, world.at_rest)
    assert world.gateway.failed == []
    assert world.notes.of("deployment/movies", "Moving") or world.notes.of("deployment/other", "Moving")


def run_only(world: World, seconds: int) -> None:
    """Use stays about what it was; the figures of a live machine always move a little."""
    for second in range(seconds):
        for machine in world.machines.values():
            for uid, (cpu, memory) in list(machine.uses.items()):
                machine.works(uid, cpu + 1 - 2 * (second % 2), memory)
        world.run(1)
