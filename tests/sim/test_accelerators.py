"""Replicas know which accelerators are theirs: in their records, their orders, and over a change of leader."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from sim.world import World

from lepton_ai.spec.workload import Resources
from lepton_ai.store import Update

Cell = Callable[..., World]
NODE = Resources(cpu_milli=32_000, memory_mib=65_536, accelerator_milli=4000, accelerator_type="A10")


def _share(milli: int) -> dict[str, object]:
    return {"resources": {"cpu_milli": 100, "memory_mib": 100, "accelerator_milli": milli}}


def _held(world: World) -> dict[str, Counter[int]]:
    """Node -> accelerator -> thousandths used, as recorded of everything that has not ended."""
    found: dict[str, Counter[int]] = defaultdict(Counter)
    for record in world.store.list("replica", but="exited"):
        order = record.spec["replica"]
        milli = order["resources"]["accelerator_milli"]
        assert len(order["devices"]) == max(1, milli // 1000) if milli else not order["devices"]
        for device in order["devices"]:
            found[str(record.spec["node"])][device] += min(milli, 1000)
    return found


def test_no_accelerator_is_given_out_twice(cell: Cell) -> None:
    world = cell(2, capacity=NODE)
    for number, milli in enumerate((1000, 470, 810, 2000, 470, 320, 650, 0)):
        world.person.deploy(f"app-{number}", replicas={"min": 1, "max": 1}, **_share(milli))
    world.until(lambda: all(world.ready(f"app-{number}", 1) for number in range(8)), 20)
    held = _held(world)
    assert sum(counts.total() for counts in held.values()) == 5720
    assert all(used <= 1000 for counts in held.values() for used in counts.values())
    for record in world.store.list("replica", but="exited"):
        copy = world.machines[str(record.spec["node"])].copies[record.uid]
        assert list(copy.spec.devices) == record.spec["replica"]["devices"]

    # A new leader knows them from the records: what is free it gives out, what is not it does not.
    world.kill_control()
    world.start_control()
    world.person.deploy("large", replicas={"min": 1, "max": 2}, **_share(4000))
    world.person.deploy("small", replicas={"min": 2, "max": 2}, **_share(530))
    world.until(lambda: world.ready("small", 2), 20)
    assert world.state("large") == "waiting"
    assert "accelerator" in world.status("large")["reason"]
    assert all(used <= 1000 for counts in _held(world).values() for used in counts.values())


def test_workers_of_a_job_get_whole_ones(cell: Cell) -> None:
    world = cell(2, capacity=NODE)
    world.person.run("train", "run:2", workers=2, **_share(2000))
    world.until(lambda: world.job("train").get("state") == "running", 20)
    assert [sorted(counts.values()) for counts in _held(world).values()] == [[1000] * 4]


def test_replicas_of_an_earlier_release_that_name_no_accelerator_count_all_the_same(cell: Cell) -> None:
    world = cell(1, capacity=NODE)
    world.person.deploy("old", replicas={"min": 3, "max": 3}, **_share(1000))
    world.until(lambda: world.ready("old", 3), 20)
    for record in world.store.list("replica"):
        order = {key: value for key, value in record.spec["replica"].items() if key != "devices"}
        world.store.batch([Update(record, spec={**record.spec, "replica": order})])
    world.kill_control()
    world.start_control()
    world.person.deploy("new", replicas={"min": 1, "max": 1}, **_share(1000))
    world.person.deploy("more", replicas={"min": 1, "max": 1}, **_share(100))
    world.until(lambda: world.ready("new", 1) or world.ready("more", 1), 20)
    world.run(3)
    assert {world.state("new"), world.state("more")} == {"ready", "waiting"}
