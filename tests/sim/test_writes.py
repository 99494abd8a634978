"""What a pass writes for many records at once: trouble with one of them is its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sim.world import World

from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Op, Update
from lepton_ai.errors import Invalid

Cell = Callable[..., World]


def context(world: World) -> Context:
    loop = world.controls[0].loop
    lease = loop.leader.ensure()
    assert lease is not None
    return Context(loop.services, loop._memory, lease, 0)


def test_one_that_cannot_be_written_stops_no_other(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    world = cell(1)
    made = [world.person.deploy(name) for name in ("good", "bad", "fine")]
    world.run(2)
    ctx = context(world)
    write_each = ctx.mirror.write_each

    def refuse(ops: Sequence[Op], lease: Any) -> None:
        if any(isinstance(op, Update) and op.record.name == "bad" for op in ops):
            raise Invalid("a value that no store takes", hint="take another")
        write_each(ops, lease)

    monkeypatch.setattr(ctx.mirror, "write_each", refuse)
    for record in made:
        now = world.store.get(record.workspace, "deployment", record.name)
        ctx.write_soon(now, [Update(now, status={**now.status, "mark": record.name})])
    assert "mark" not in world.status("good"), "nothing is written before it is flushed"
    ctx.flush()
    assert [world.status(name).get("mark") for name in ("good", "bad", "fine")] == ["good", None, "fine"]
    bad = world.store.get(made[1].workspace, "deployment", "bad")
    ctx.write_soon(bad, [Update(bad, status={**bad.status, "mark": "bad"})])
    ctx.flush()
    assert ctx.memory.trouble.wait_ms(bad.uid, ctx.tick_ms) > 0, "after the second time it is left alone for a while"


def test_what_waits_is_written_before_anything_else_is(cell: Cell) -> None:
    world = cell(1)
    first, second = (world.person.deploy(name) for name in ("first", "second"))
    world.run(2)
    ctx = context(world)
    one, two = (world.store.get(item.workspace, "deployment", item.name) for item in (first, second))
    ctx.write_soon(one, [Update(one, status={**one.status, "mark": 1})])
    ctx.write(Update(two, status={**two.status, "mark": 2}))
    assert [world.status(name)["mark"] for name in ("first", "second")] == [1, 2]
