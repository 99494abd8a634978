"""Exclusive work: never two live copies. The world looks after every step; these tests only make it hard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim.world import World

Cell = Callable[..., World]


def up(world: World) -> tuple[str, str]:
    world.person.deploy("ledger", exclusive=True)
    world.until(lambda: world.ready("ledger", 1), 10)
    world.call("ledger", 2)
    world.run(1)
    ((node, copy),) = world.copies("ledger")
    return node, copy.spec.uid


def test_a_partitioned_copy_ends_itself_before_another_starts(cell: Cell) -> None:
    world = cell()
    node, uid = up(world)
    world.machines[node].partition()
    took_s = world.until(lambda: any(copy.spec.uid != uid for _, copy in world.serving("ledger")), 60)
    lease_s = 15.0
    assert took_s >= lease_s + world.options.exclusive_margin_s
    assert took_s < lease_s + world.options.exclusive_margin_s + 5
    world.machines[node].heal()
    world.run(20)
    assert world.ready("ledger", 1)
    assert world.at_rest() == []


def test_a_short_partition_moves_nothing(cell: Cell) -> None:
    world = cell()
    node, uid = up(world)
    world.machines[node].partition()
    world.run(10)
    world.machines[node].heal()
    world.run(20)
    assert [copy.spec.uid for _, copy in world.copies("ledger")] == [uid]


def test_a_partition_that_ends_just_after_the_replacement_was_placed(cell: Cell) -> None:
    world = cell()
    node, uid = up(world)
    world.machines[node].partition()
    world.until(lambda: any(item.uid != uid for item in world.replicas("ledger")), 60)
    world.machines[node].heal()
    world.run(60)
    assert world.ready("ledger", 1)


def test_an_order_that_a_silent_node_never_took_is_not_given_again_beside_the_replacement(cell: Cell) -> None:
    world = cell()
    world.network.loss = 1.0
    world.person.deploy("ledger", exclusive=True)
    world.run(1)
    (record,) = world.replicas("ledger")
    world.machines[record.spec["node"]].partition()
    world.network.loss = 0.0
    world.until(lambda: len(world.copies("ledger")) == 1, 60)
    world.machines[record.spec["node"]].heal()
    world.run(30)
    assert world.ready("ledger", 1)


@pytest.mark.parametrize("late_ms", [3000, 9000])
def test_a_late_order_does_not_bring_a_second_copy(cell: Cell, late_ms: int) -> None:
    world = cell(seed=3)
    world.network.late_ms = late_ms
    world.person.deploy("ledger", exclusive=True)
    for _ in range(6):
        world.run(1.1)
        world.person.release("ledger", exclusive=True)  # what was ordered a moment ago is wanted no more
    world.network.late_ms = 0
    world.until(lambda: world.ready("ledger", 1, 7), 120)


def test_a_dead_node_and_an_ending_copy_on_it_are_replaced_after_the_lease(cell: Cell) -> None:
    world = cell()
    node, uid = up(world)
    world.person.drain(node)
    world.run(0.3)
    world.machines[node].kill()
    world.until(lambda: world.ready("ledger", 1), 60)
    assert uid not in {copy.spec.uid for _, copy in world.copies("ledger")}


def test_an_update_ends_the_old_copy_first(cell: Cell) -> None:
    world = cell()
    up(world)
    world.person.release("ledger", exclusive=True)
    world.until(lambda: world.ready("ledger", 1, 2), 30)
    world.run(3)
    assert world.at_rest() == []


def test_a_lease_that_was_lost_is_no_failure_of_the_work(cell: Cell) -> None:
    world = cell()
    world.person.run("count", "exit=0@60000", exclusive=True)
    world.until(lambda: world.job("count").get("state") == "running")
    ((node, _),) = world.copies("count")
    world.machines[node].partition()
    world.run(25)
    world.machines[node].heal()
    world.run(5)
    assert world.job("count")["failed"] == 0
    world.until(lambda: world.job("count")["state"] == "succeeded", 120)


def test_a_loop_that_stands_still_renews_nothing(cell: Cell) -> None:
    """The old leader still reaches the node, the new one does not: the old one's renewals must end."""
    world = cell()
    node, uid = up(world)
    old = world.controls[0]
    old.frozen = True
    new = world.start_control()
    world.run(2)
    cut = {node}
    look = new.fleet._look
    from lepton_ai.control.ports import NodeView

    new.fleet._look = lambda name, before: (  # type: ignore[method-assign]
        NodeView(name, False, None, "no way there") if name in cut else look(name, before)
    )
    world.until(lambda: any(copy.spec.uid != uid for _, copy in world.serving("ledger")), 60)
    cut.clear()
    old.frozen = False
    world.run(30)
    assert world.ready("ledger", 1)
