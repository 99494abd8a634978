"""The monitor over a whole cell: marks with hysteresis, nodes that lie or fall silent, clocks, restarts."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from sim.world import World

from lepton_ai.control.options import Options
from lepton_ai.scheduler.load import Load
from lepton_ai.spec.replica import NodeGauges

Cell = Callable[..., World]
FAST = Options(monitor_s=1.0, monitor_save_s=10.0, monitor_network=False)
LEARNING = dataclasses.replace(FAST, monitor_network=True)


def load(world: World, name: str = "node-1") -> Load:
    found: Load = world.controls[0].loop.monitor.loads[name]
    return found


def uses(world: World, share: float, name: str = "node-1") -> None:
    """The node's replicas use this share of its processors."""
    world.machines[name].says(cpu_used_milli=round(share * world.machines[name].capacity.cpu_milli))


def noise(world: World, seconds: int, seed: int = 1, name: str = "node-1", mean: float = 0.5) -> None:
    """Another figure every second."""
    rng = random.Random(seed)
    for _ in range(seconds):
        uses(world, mean + rng.uniform(-0.1, 0.1), name)
        world.run(1)


def marks(world: World, name: str = "node-1") -> list[str]:
    return [message.split(":")[0] for message in world.notes.of(f"node/{name}", "Load")]


def test_a_busy_node_is_overloaded_and_stays_so_until_it_is_well_below(cell: Cell) -> None:
    world = cell(options=FAST)
    world.run(3)
    assert (load(world).mark, load(world).u) == ("idle", 0.01)
    uses(world, 0.9)
    world.run(1)
    assert load(world).mark == "idle"  # one sample decides nothing
    world.until(lambda: load(world).mark == "overloaded", 5)
    found = load(world)
    assert (found.u, found.resource, found.stale) == (pytest.approx(0.9), "cpu", False)
    uses(world, 0.83)  # below the limit, not below it by the band; and it was higher lately
    world.run(90)
    assert load(world).s == pytest.approx(0.83, abs=0.001)
    assert load(world).mark == "overloaded"
    uses(world, 0.78)
    world.run(90)
    assert load(world).mark == "normal"
    uses(world, 0.83)
    world.run(90)
    assert load(world).mark == "normal"
    assert marks(world) == ["overloaded", "normal"]
    assert {load(world, name).mark for name in ("node-2", "node-3")} == {"idle"}


def test_the_load_to_plan_for_is_that_of_busy_moments_not_of_a_quiet_one(cell: Cell) -> None:
    """Half of the time busy: the upper quantile remembers what is measured as quiet just now."""
    world = cell(options=FAST)
    for _ in range(8):
        uses(world, 0.8)
        world.run(4)
        uses(world, 0.2)
        world.run(4)
    found = load(world)
    assert found.u == pytest.approx(0.2)
    assert found.s > 0.6
    assert found.w == pytest.approx(found.s / found.u)


def test_what_nodes_say_is_recorded_and_a_pass_plans_with_it(cell: Cell) -> None:
    world = cell(options=FAST)
    uses(world, 0.9)
    measured(world)
    world.until(lambda: load(world).mark == "overloaded", 10)
    world.run(1)
    recorded = world.store.get("system", "node", "node-1").status["load"]
    assert (recorded["mark"], recorded["resource"]) == ("overloaded", "cpu")
    assert recorded["parts"]["cpu"]["u"] == pytest.approx(0.9)
    snapshot = planned(world)
    assert dict(zip(snapshot.names, snapshot.planned.tolist(), strict=True))["node-1"] == pytest.approx(0.9, abs=0.01)
    assert snapshot.limits.tolist() == [FAST.load_limit] * 3


def test_with_the_network_a_load_is_finite_and_grows_with_what_grows(cell: Cell) -> None:
    world = cell(options=LEARNING)
    world.run(2)
    for share in (*[0.2] * 20, *(0.2 + step / 100 for step in range(50))):
        uses(world, share)
        world.run(1)
        assert 0.01 <= load(world).s <= 4.0
    assert load(world).s >= 0.6
    assert load(world).mark in ("normal", "overloaded")


def planned(world: World) -> Any:
    """The snapshot that the next pass would place by."""
    from lepton_ai.control.context import Context

    loop = world.controls[0].loop
    assert loop.leader.lease is not None
    ctx = Context(loop.services, loop._memory, loop.leader.lease, 0)
    ctx.loads = loop.monitor.loads
    ctx.load()
    return ctx.snapshot()


LIES: dict[str, dict[str, Any]] = {
    "no number": {"cpu_used_milli": math.nan},
    "a text": {"memory_used_mib": "much"},
    "negative": {"cpu_used_milli": -1},
    "absurd": {"cpu_used_milli": 10**12},
    "more than it has": {"gauges": NodeGauges(samples=9, cores_milli=4000, cpu_milli=9000)},
    "a share above one": {"gauges": NodeGauges(samples=9, io_stall=7.0)},
    "infinite": {"gauges": NodeGauges(samples=9, memory_mib=math.inf)},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_node_that_lies_poisons_nothing_and_is_said_to_once(cell: Cell, lie: dict[str, Any]) -> None:
    world = cell(options=FAST)
    world.person.deploy("movies", replicas={"min": 3, "max": 3})
    uses(world, 0.5)
    uses(world, 0.5, "node-2")
    world.until(lambda: world.ready("movies", 3), 10)
    world.run(5)
    before = load(world)
    world.machines["node-1"].says(**lie)
    world.run(1)
    assert (load(world).u, load(world).stale) == (before.u, False)
    world.until(lambda: load(world).stale, 6)
    world.run(20)
    found = load(world)
    assert (found.u, found.w, found.mark) == (pytest.approx(0.5), 1.0, "normal")
    assert not load(world, "node-2").stale
    assert load(world, "node-2").u == pytest.approx(0.5)
    (told,) = world.notes.of("node/node-1", "Lies")
    assert "cannot be" in told
    assert world.ready("movies", 3)
    world.machines["node-1"].says(cpu_used_milli=2000, memory_used_mib=10, gauges=None)
    world.run(4)
    assert (load(world).u, load(world).stale) == (pytest.approx(0.5), False)
    assert all(math.isfinite(value) for value in planned(world).planned.tolist())


def test_a_figure_that_stands_still_where_it_always_moved_is_not_relied_on(cell: Cell) -> None:
    world = cell(options=FAST)
    noise(world, 40)
    assert not load(world).stale
    world.run(35)  # the same, bit for bit, for 35 samples; node-2 never moved and nobody expects it to
    assert load(world).stale
    assert load(world).mark == "normal"
    assert not load(world, "node-2").stale
    noise(world, 3)
    assert not load(world).stale


def test_an_agent_that_no_longer_measures_is_noticed_soon(cell: Cell) -> None:
    world = cell(options=FAST)
    for samples in range(5, 20):
        gauges = NodeGauges(samples=samples, cores_milli=4000, cpu_milli=2000, memory_mib=16384, memory_used_mib=1)
        world.machines["node-1"].says(gauges=gauges)
        world.run(1)
    assert (load(world).stale, load(world).u) == (False, pytest.approx(2000 / 12000))  # one machine, three nodes
    world.run(5)
    assert load(world).stale


def test_a_silent_node_is_stale_and_known_again_when_it_is_back(cell: Cell) -> None:
    world = cell(options=FAST)
    uses(world, 0.6)
    world.run(10)
    world.machines["node-1"].partition()
    world.run(8)
    assert (load(world).stale, load(world).u, load(world).w) == (True, pytest.approx(0.6), 1.0)
    world.machines["node-1"].heal()
    world.run(5)
    assert not load(world).stale


def test_a_node_of_which_nothing_is_known_is_planned_as_what_it_has_promised(cell: Cell) -> None:
    world = cell(1, options=FAST)
    world.machines["node-1"].says(cpu_used_milli=math.nan)
    world.person.deploy("movies", replicas={"min": 2, "max": 2}, resources={"cpu_milli": 1500, "memory_mib": 64})
    world.until(lambda: world.ready("movies", 2), 10)
    world.run(3)
    assert (load(world).stale, load(world).u) == (True, pytest.approx(0.75))


def test_a_wall_clock_that_jumps_changes_nothing(cell: Cell) -> None:
    world = cell(options=FAST)
    uses(world, 0.6)
    world.run(30)
    before = load(world)
    for hours in (1, -2, 100):
        world.clock.jump(hours * 3_600_000)
        world.run(2)
        assert load(world) == before
    history = world.controls[0].loop.monitor.nodes.history(["node-1"], 30)[0, 0]
    assert not [value for value in history if not math.isfinite(value)]


def measured(world: World) -> Any:
    """The monitor of the process that leads, once it has measured."""
    loop = world.controls[0].loop
    world.until(lambda: loop.leading and loop.monitor.loads and not any(x.stale for x in loop.monitor.loads.values()))
    return loop.monitor


def restarted(world: World, away_s: float = 2.0) -> Any:
    """Another control process, a moment after the last one died."""
    world.kill_control()
    world.run(away_s)
    world.start_control()
    return measured(world)


@pytest.mark.parametrize("options", [FAST, LEARNING], ids=["naive", "network"])
def test_a_restart_does_not_forget(cell: Cell, options: Options) -> None:
    world = cell(options=options)
    noise(world, 50, mean=0.4)
    world.person.deploy("movies", "start=4000", replicas={"min": 6, "max": 6})
    noise(world, 15, mean=0.4)
    before, startup_s = load(world), world.controls[0].loop.monitor.startup_s
    assert startup_s == pytest.approx(4.0, abs=0.2)
    monitor = restarted(world)
    after = monitor.loads["node-1"]
    assert after.w == pytest.approx(before.w, rel=0.25)
    assert after.w > 1.0
    assert monitor.startup_s == pytest.approx(startup_s, abs=0.01)
    known = monitor.nodes.history(["node-1"], 48)[0, 0]
    assert sum(math.isfinite(value) for value in known) > 30
    world.monitor_file.unlink()
    world.kill_control()
    world.run(2)
    world.start_control()
    assert measured(world).loads["node-1"].w == 1.0  # without it, it would have


def test_the_gap_of_a_long_absence_is_a_gap_and_old_samples_are_gone(cell: Cell) -> None:
    world = cell(options=FAST)
    noise(world, 60)
    monitor = restarted(world, away_s=30)
    known = monitor.nodes.history(["node-1"], 60)[0, 0]
    assert 20 <= sum(not math.isfinite(value) for value in known) <= 45
    monitor = restarted(world, away_s=120)
    assert monitor.loads["node-1"].w == 1.0


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "other settings", "a folder"])
def test_a_file_that_cannot_be_used_is_left_with_one_warning(
    cell: Cell, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = cell(options=FAST)
    noise(world, 30)
    world.kill_control()
    data = world.monitor_file.read_bytes()
    if damage == "cut":
        world.monitor_file.write_bytes(data[: len(data) // 2])
    elif damage == "noise":
        world.monitor_file.write_bytes(random.Random(3).randbytes(500))
    elif damage == "empty":
        world.monitor_file.write_bytes(b"")
    elif damage == "other settings":
        world.options = Options(monitor_s=2.0)
    else:
        world.monitor_file.unlink()
        world.monitor_file.mkdir()
    with caplog.at_level(logging.INFO, "lepton_ai.control.monitor"):
        world.start_control()
        world.run(12)
    told = [record for record in caplog.records if "is not used" in record.getMessage()]
    assert len(told) == 1
    assert load(world).w == 1.0
    assert not load(world).stale


def test_replicas_are_sampled_too_and_forgotten_when_they_are_gone(cell: Cell) -> None:
    world = cell(options=FAST)
    world.person.deploy("movies", replicas={"min": 2, "max": 2})
    world.until(lambda: world.ready("movies", 2), 10)
    (node, one), (_, two) = world.copies("movies")
    world.machines[node].works(one.spec.uid, 1500, 512)
    world.run(4)
    monitor = world.controls[0].loop.monitor
    assert monitor.work.last([one.spec.uid], 1)[0].tolist() == [1.5, 0.5]
    assert monitor.loads[node].u == pytest.approx(1500 / 4000)
    assert monitor.shown.replicas()[one.spec.uid][0] == node
    world.person.remove("deployment", "movies")
    world.run(30)
    assert one.spec.uid not in monitor.work
    assert two.spec.uid not in monitor.work
