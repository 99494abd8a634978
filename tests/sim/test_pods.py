"""Pods: one replica that no gateway routes to, restarted when its process ends, never two at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.world import World

from lepton_ai.spec.container import Port

Cell = Callable[..., World]
SSH = {"number": 2222, "name": "ssh", "exposed": True}


def pod(world: World, name: str = "box", *words: str, **fields: Any) -> None:
    world.person.deploy(name, *words, pod=True, ports=(Port.model_validate(SSH),), **fields)
    world.until(lambda: world.state(name) == "ready", 10)


def test_a_pod_runs_without_a_route_and_says_where_its_ports_are(cell: Cell) -> None:
    world = cell()
    pod(world)
    ((_, copy),) = world.copies("box")
    (record,) = world.replicas("box")
    assert record.status["ports"] == [{"number": 2222, "host_port": 2222, "protocol": "TCP", "name": "ssh"}]
    assert (record.status["port"], copy.spec.needs_port) == (None, False)
    assert [route.name for route in world.gateway.live.routes] == []
    assert (world.status("box")["ready"], world.status("box")["wanted"]) == (1, 1)
    world.run(3)
    assert world.at_rest() == []


def test_its_process_is_started_again_when_it_ends_with_growing_pauses(cell: Cell) -> None:
    world = cell()
    pod(world, "box", "exit=0@3000")
    seen: dict[str, int] = {}
    for _ in range(900):
        world.step()
        assert len(world.copies("box")) <= 1
        for _, copy in world.copies("box"):
            seen.setdefault(copy.spec.uid, world.clock.elapsed_ms())
    starts = sorted(seen.values())
    assert len(starts) > 4
    assert starts[4] - starts[3] > starts[1] - starts[0] + 500
    assert world.status("box")["rollout"]["state"] == "done"


def test_an_update_ends_the_old_one_before_the_new_one_starts(cell: Cell) -> None:
    world = cell()
    pod(world, "box", "term=3000")
    ((_, old),) = world.copies("box")
    world.person.release("box", "start=200", ports=(Port.model_validate(SSH),))
    while world.state("box") != "ready" or not [c for _, c in world.copies("box") if c.spec.release == 2]:
        world.step()
        assert len(world.copies("box")) <= 1
    assert not old.lives
    world.run(3)
    assert world.at_rest() == []


def test_stopped_and_back(cell: Cell) -> None:
    world = cell()
    pod(world)
    world.person.change("box", replicas={"min": 0, "max": 1})
    world.until(lambda: world.state("box") == "stopped" and not world.copies("box"), 10)
    world.run(3)
    assert world.at_rest() == []
    world.person.change("box", replicas={"min": 1, "max": 1})
    world.until(lambda: world.state("box") == "ready" and len(world.copies("box")) == 1, 10)


def test_the_loss_of_its_node_moves_it_and_the_old_one_ends_when_the_node_is_back(cell: Cell) -> None:
    world = cell()
    for machine in world.machines.values():
        machine.forwards = True
    pod(world)
    ((node, old),) = world.copies("box")
    world.machines[node].partition()
    world.run(world.options.job_grace_s - 3)
    assert len(world.replicas("box")) == 1  # a short silence moves nothing
    world.until(lambda: len(world.copies("box")) == 2, 20)  # nobody can know that the old one lives
    world.machines[node].heal()
    world.until(lambda: [copy for _, copy in world.copies("box")] != [old] and len(world.copies("box")) == 1, 10)
    assert not old.lives
    world.run(3)
    assert world.at_rest() == []


def test_a_second_pod_with_the_same_port_says_who_has_it(cell: Cell) -> None:
    world = cell(2)
    pod(world)
    world.person.deploy("other", pod=True, ports=(Port.model_validate(SSH),))
    world.run(3)
    assert world.state("other") == "waiting"
    (first,) = world.replicas("box")
    assert f"port 2222 of 127.0.0.1 is taken by {first.name}" in world.status("other")["reason"]
    world.person.remove("deployment", "box")
    world.until(lambda: world.state("other") == "ready", 10)
    assert world.copies("box") == []


def test_removed(cell: Cell) -> None:
    world = cell()
    pod(world)
    world.person.remove("deployment", "box")
    world.until(lambda: world.store.find("default", "deployment", "box") is None, 10)
    assert world.store.list("replica") == world.store.list("release") == []
    assert all(not machine.copies for machine in world.machines.values())
