"""A quiet cell writes nothing, and one bad record stops nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim.control import uids
from sim.world import World

Cell = Callable[..., World]


def up(world: World) -> None:
    world.person.deploy("movies", replicas={"min": 2, "max": 4}, survive={"node": 1}, idempotent=True)
    world.person.deploy("sleepy", replicas={"min": 1, "max": 1}, idle_timeout_s=5)
    world.person.deploy("large", resources={"cpu_milli": 64_000, "memory_mib": 10})
    world.person.deploy("broken", "exit=1@100", "log=boom")
    world.person.run("count", "exit=0@3600000")
    world.person.run("huge", "exit=0@1000", resources={"cpu_milli": 64_000, "memory_mib": 10})
    world.person.run("done", "exit=0@1000")
    world.until(lambda: world.ready("movies", 2), 10)
    world.call("movies", 3)
    world.until(lambda: world.state("broken") == "failed" and world.state("sleepy") == "idle", 60)
    world.run(3)


def test_a_quiet_pass_writes_nothing_but_what_nodes_say_now_and_then(cell: Cell) -> None:
    world = cell()
    up(world)
    world.machines["node-3"].partition()  # also with a node away
    world.run(30)
    before = {item.uid: item for kind in ("deployment", "job", "replica", "release") for item in world.store.list(kind)}
    revision, writes, passes = world.store.revision(), world.store.writes, world.controls[0].passes
    published = world.gateway.published
    world.run(60)
    after = {item.uid: item for kind in ("deployment", "job", "replica", "release") for item in world.store.list(kind)}
    assert after == before
    rounds = 60 / world.options.node_status_s
    assert world.store.revision() - revision <= (rounds + 1) * 2  # two nodes, every ten seconds
    assert world.store.writes - writes <= rounds + 2
    assert world.gateway.published == published
    assert world.controls[0].passes - passes >= 100


def test_between_those_the_revision_stands_still(cell: Cell) -> None:
    world = cell()
    up(world)
    world.run(5)
    revision = world.store.revision()
    world.until(lambda: world.store.revision() > revision, 12)
    world.step()
    revision, notes, sent = world.store.revision(), len(world.notes.all), world.network.sent
    world.run(9)
    assert world.store.revision() == revision
    assert len(world.notes.all) == notes
    assert world.network.sent - sent <= 3 * 9 / 2 + 3  # the renewals alone


def spoil(world: World, what: str) -> None:
    owner = world.person.deployment("movies")
    if what == "replica":
        for number, spec in enumerate(
            ({"nonsense": True}, {"node": "node-1", "replica": {"uid": 7}}, {"release": "x"})
        ):
            world.store.create("default", "replica", f"bad-{number}", spec, status={"phase": "ready"}, uid=uids())
            world.store.create(
                "default", "replica", f"worse-{number}", spec, status={"phase": "ready"}, uid=uids(),
                owner_uid=owner.uid,
            )  # fmt: skip
    elif what == "deployment":
        world.store.create("default", "deployment", "bad", {"template": {"command": 7}}, uid=uids())
    elif what == "tokens":
        world.person.deploy("sealed", tokens=("broken",))
    elif what == "job":
        world.store.create("default", "job", "bad", {"workers": "many"}, uid=uids())
    elif what == "node":
        world.store.create("system", "node", "bad", {"port": "x", "capacity": {"cpu_milli": "all"}}, uid=uids())
    elif what == "status":
        world.store.update(owner, status={**owner.status, "serving": "x", "needed": []})


@pytest.mark.parametrize("what", ["replica", "deployment", "tokens", "job", "node", "status"])
def test_a_bad_record_stops_nothing_else(cell: Cell, what: str) -> None:
    world = cell(4)
    world.expects_errors = True
    world.person.deploy("movies", replicas={"min": 2, "max": 2}, survive={"node": 1}, idempotent=True)
    world.until(lambda: world.ready("movies", 2), 10)
    world.call("movies", 3)
    spoil(world, what)
    world.run(5)
    world.person.deploy("other", replicas={"min": 2, "max": 2})
    world.person.run("count", "exit=0@1000")
    world.until(lambda: world.ready("other", 2) and world.job("count").get("state") == "succeeded", 15)
    world.machines["node-2"].kill()
    world.until(lambda: len(world.serving("other")) == 2, 15)
    if what != "status":
        world.until(lambda: world.ready("movies", 2), 30)
    assert world.gateway.failed == []


def test_tokens_that_do_not_open_leave_no_open_door(cell: Cell) -> None:
    world = cell()
    world.person.deploy("sealed", tokens=("broken",))
    world.person.deploy("locked", tokens=("key",))
    world.until(lambda: world.state("sealed") == world.state("locked") == "ready", 10)
    assert [(route.name, route.tokens) for route in world.gateway.live.routes] == [("locked", ("key",))]
    assert world.notes.of("deployment/sealed", "Broken") == [
        "no route: the sealed value for 'default/endpoint/sealed' does not open"
    ]


def test_unreadable_replicas_are_ended_where_they_run_and_go(cell: Cell) -> None:
    world = cell(4)
    world.person.deploy("movies", replicas={"min": 2, "max": 2}, idempotent=True)
    world.until(lambda: world.ready("movies", 2), 10)
    record = world.replicas("movies")[0]
    world.store.update(record, spec={**record.spec, "replica": {"uid": 7}})
    world.run(20)
    assert world.ready("movies", 2)
    assert record.uid not in {copy.spec.uid for _, copy in world.copies("movies")}
    assert world.at_rest() == []
