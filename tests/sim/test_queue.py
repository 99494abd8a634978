"""Who waits, who goes next and who gives way: workspaces, priorities, gangs, claims that outlive a leader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sim.world import World

from lepton_ai.store import Record

Cell = Callable[..., World]
ONE, TWO, BIG, ALL = ({"cpu_milli": cores, "memory_mib": 100} for cores in (1000, 2000, 3000, 4000))
LOW: dict[str, Any] = {"priority": 1000, "preemptible": True}
HIGH: dict[str, Any] = {"priority": 9000, "can_preempt": True}


def job(world: World, name: str) -> Record:
    (found,) = [record for record in world.store.list("job") if record.name == name]
    return found


def state(world: World, name: str) -> str:
    return str(job(world, name).status.get("state"))


def reason(world: World, name: str) -> str:
    return str(job(world, name).status.get("reason"))


def reaches(world: World, name: str, wanted: str, within_s: float = 30) -> None:
    world.until(lambda: state(world, name) == wanted, within_s, lambda: (name, job(world, name).status))


class TestGangs:
    def test_two_that_each_need_most_of_the_cell_run_one_after_the_other(self, cell: Cell) -> None:
        world = cell(4)
        for name in ("left", "right"):
            world.person.run(name, "exit=0@5000", workers=3, resources=BIG, retries=3)
        seen: set[tuple[int, int]] = set()
        for _ in range(300):
            world.step()
            # What is placed, not what has started: half of a gang must never hold room.
            counts = Counter(copy.owner_uid for copy in world.store.list("replica", but="exited"))
            seen.add(tuple(counts[job(world, name).uid] for name in ("left", "right")))  # type: ignore[arg-type]
        assert (3, 0) in seen
        assert (0, 3) in seen
        assert not {pair for pair in seen if min(pair) > 0}
        assert {state(world, "left"), state(world, "right")} == {"succeeded"}

    def test_one_that_gives_way_gives_way_whole_and_runs_anew(self, cell: Cell) -> None:
        world = cell(2)
        world.person.run("gang", "exit=0@20000", workers=2, resources=BIG, **LOW)
        reaches(world, "gang", "running")
        world.person.run("urgent", "exit=0@4000", resources=BIG, **HIGH)
        reaches(world, "urgent", "running", 10)
        assert world.copies("gang") == []
        assert reason(world, "gang").startswith(
            "it gives way to job urgent (priority 9000); worker 2 of 2 finds no node"
        )
        reaches(world, "gang", "succeeded", 60)
        status = job(world, "gang").status
        assert (status["failed"], status["runs"], status["retried"]) == (0, 2, 0)
        assert [(run["state"], run["reason"]) for run in status["history"]] == [
            ("stopped", "it gives way to job urgent (priority 9000)")
        ]
        assert world.notes.of("job/gang", "Preempted") == ["2 replicas give way to job urgent (priority 9000)"]
        (said,) = world.notes.of("job/urgent", "Preempts")
        assert said.startswith("ends 2 replicas of priority 1000 or less for one of 9000")
        assert world.at_rest() == []

    def test_a_large_one_is_not_starved_and_small_ones_run_where_that_does_not_delay_it(self, cell: Cell) -> None:
        world = cell(3)
        for number, seconds in enumerate((12, 12, 30)):
            world.person.run(f"busy-{number}", f"exit=0@{seconds * 1000}", resources=BIG)
            world.run(1)
        world.person.run("large", "exit=0@2000", workers=2, resources=BIG)
        small = {"cpu_milli": 500, "memory_mib": 10}
        begun_ms = world.clock.elapsed_ms()
        number = 0
        while state(world, "large") != "running":
            world.person.run(f"small-{number}", "exit=0@8000", resources=small)
            number += 1
            world.run(1)
            assert world.clock.elapsed_ms() - begun_ms < 16_000, world.tell()
        beside = [f"small-{index}" for index in range(number) if state(world, f"small-{index}") != "queued"]
        assert len(beside) >= 3, "room that the large one cannot use is used"
        assert "waits behind job large" in reason(world, f"small-{number - 2}") or beside
        reaches(world, "large", "succeeded", 20)


class TestPorts:
    def test_the_port_that_was_made_free_is_claimed_too(self, cell: Cell) -> None:
        world = cell(1)
        small = {"cpu_milli": 100, "memory_mib": 10}
        world.person.run("holder", "term=3000", "exit=0@60000", resources=small, port=7001, **LOW)
        reaches(world, "holder", "running")
        world.person.run("urgent", "exit=0@5000", resources=small, port=7001, **HIGH)
        world.until(lambda: bool(job(world, "urgent").status.get("claim")), 5)
        # Its workspace has nothing, so it is its turn before the other's.
        world.person.run("stranger", "exit=0@1000", resources=small, port=7001, workspace="team-b")
        reaches(world, "urgent", "running", 10)
        assert state(world, "stranger") == "queued"
        assert "urgent" not in reason(world, "stranger"), "another workspace's names are not told"
        reaches(world, "stranger", "succeeded", 20)
        assert not job(world, "urgent").status.get("claim")


class TestOrder:
    def test_the_larger_priority_goes_first_then_who_came_first(self, cell: Cell) -> None:
        world = cell(1)
        world.person.run("first", "exit=0@3000", resources=ALL)
        reaches(world, "first", "running")
        for name, priority in (("low", 1000), ("usual", None), ("high", 9000), ("later", None)):
            world.person.run(name, "exit=0@1000", resources=ALL, priority=priority)
            world.step()
        names = ("high", "usual", "later", "low")
        world.until(lambda: all(state(world, name) == "succeeded" for name in names), 60)
        begun = [int(job(world, name).status["started_ms"]) for name in names]
        assert begun == sorted(begun)

    def test_workspaces_get_equal_parts_whoever_asked_first(self, cell: Cell) -> None:
        world = cell(2)
        for number in range(24):
            world.person.run(f"a-{number:02}", "exit=0@9000", resources=ONE, workspace="team-a")
        reaches(world, "a-00", "running")
        for number in range(12):
            world.person.run(f"b-{number:02}", "exit=0@9000", resources=ONE, workspace="team-b", priority=0)
        world.run(15)
        copies = [copy for machine in world.machines.values() for copy in machine.copies.values() if copy.lives]
        assert Counter(copy.spec.workspace for copy in copies) == {"team-a": 4, "team-b": 4}

    def test_what_serves_goes_before_jobs_of_its_priority_and_after_those_above_it(self, cell: Cell) -> None:
        world = cell(1)
        world.person.run("first", "exit=0@6000", resources=ALL)
        reaches(world, "first", "running")
        world.person.run("older", "exit=0@3000", resources=ALL)
        world.person.run("urgent", "exit=0@3000", resources=ALL, priority=8000)
        world.person.deploy("movies", resources=ALL)
        world.run(3)
        assert world.state("movies") == "waiting"
        reaches(world, "urgent", "succeeded", 30)
        world.until(lambda: world.ready("movies", 1), 20)
        assert state(world, "older") == "queued"


class TestGivingWay:
    def test_a_job_gives_way_and_runs_when_there_is_room_again(self, cell: Cell) -> None:
        world = cell(1)
        world.person.run("patient", "exit=0@10000", resources=BIG, **LOW)
        reaches(world, "patient", "running")
        world.person.run("urgent", "exit=0@3000", resources=BIG, **HIGH)
        world.until(lambda: "gives way on node-1 to end" in reason(world, "urgent"), 5)
        reaches(world, "urgent", "succeeded", 20)
        reaches(world, "patient", "succeeded", 30)
        assert job(world, "patient").status["failed"] == 0
        assert "claim" not in job(world, "urgent").status

    @pytest.mark.parametrize(
        ("low", "high"),
        [
            ({"priority": 1000}, HIGH),
            (LOW, {"priority": 9000}),
            ({**LOW, "priority": 9000}, HIGH),
            ({**LOW, "priority": None}, {**HIGH, "priority": None}),
        ],
    )
    def test_nobody_gives_way_who_did_not_agree_or_is_no_less(
        self, cell: Cell, low: dict[str, Any], high: dict[str, Any]
    ) -> None:
        world = cell(1)
        world.person.run("first", "exit=0@8000", resources=BIG, **low)
        reaches(world, "first", "running")
        world.person.run("second", "exit=0@1000", resources=BIG, **high)
        world.run(5)
        assert (state(world, "first"), state(world, "second")) == ("running", "queued")
        assert "full: cpu 3000 wanted" in reason(world, "second")
        reaches(world, "second", "succeeded", 20)

    def test_the_room_is_kept_for_whom_it_was_made(self, cell: Cell) -> None:
        """While the one that gives way takes its time to end, nobody else gets what it leaves."""
        world = cell(1)
        world.person.run("slow", "exit=0@90000", "term=6000", resources=BIG, grace_s=10, **LOW)
        reaches(world, "slow", "running")
        world.person.run("urgent", "exit=0@3000", resources=BIG, **HIGH)
        world.run(1)
        for number in range(5):
            world.person.run(f"other-{number}", "exit=0@60000", resources=ONE, priority=9999)
        world.person.deploy("movies", resources=ONE)
        reaches(world, "urgent", "running", 10)
        running = [name for name in ("movies", *(f"other-{n}" for n in range(5))) if world.copies(name)]
        assert len(running) == 1, "what was free beside it is taken, no more"

    @pytest.mark.parametrize("at", range(1, 11))
    def test_a_leader_that_dies_meanwhile_changes_nothing(self, cell: Cell, at: int) -> None:
        world = cell(2)
        world.person.run("gang", "exit=0@15000", "term=1500", workers=2, resources=BIG, **LOW)
        reaches(world, "gang", "running")
        for number in range(3):
            world.person.run(f"idle-{number}", "exit=0@500", resources=BIG, priority=500)
        world.run(1)
        world.person.run("urgent", "exit=0@2000", workers=2, resources=BIG, **HIGH)
        world.store.at = at
        world.run(1.5)
        world.store.at = -1
        world.kill_control()
        world.start_control()
        reaches(world, "urgent", "running", 15)
        assert world.copies("gang") == []
        assert not any(world.copies(f"idle-{number}") for number in range(3))
        reaches(world, "gang", "succeeded", 90)
        assert job(world, "gang").status["failed"] == 0
        world.until(lambda: world.at_rest() == [], 30, world.at_rest)

    def test_room_that_is_claimed_is_claimed_once(self, cell: Cell) -> None:
        world = cell(2)
        for name in ("left", "right"):
            world.person.run(name, "exit=0@600000", "term=6000", resources=BIG, grace_s=20.0, **LOW)
            reaches(world, name, "running")
        for name in ("first", "second"):
            world.person.deploy(name, resources=BIG, **HIGH)
        world.until(lambda: world.ready("first", 1) and world.ready("second", 1), 10)
        for name in ("first", "second"):
            assert len(world.notes.of(f"deployment/{name}", "Preempts")) == 1

    def test_a_node_that_dies_under_a_claim_ends_it(self, cell: Cell) -> None:
        world = cell(2)
        world.person.run("low", "exit=0@60000", "term=8000", resources=BIG, grace_s=10, **LOW)
        reaches(world, "low", "running")
        ((node, _),) = world.copies("low")
        other = "node-2" if node == "node-1" else "node-1"
        world.person.run("firm", "exit=0@60000", resources=BIG, nodes=(other,))
        reaches(world, "firm", "running")
        world.person.run("urgent", "exit=0@1000", resources=BIG, **HIGH)
        world.until(lambda: "gives way" in reason(world, "urgent"), 5)
        world.machines[node].kill()
        world.until(lambda: "gives way" not in reason(world, "urgent"), 10)
        world.machines[node].restore(empty=True)
        reaches(world, "urgent", "succeeded", 40)
        assert state(world, "firm") == "running"

    def test_replicas_give_way_but_for_what_must_remain(self, cell: Cell) -> None:
        world = cell(3)
        serving = {"replicas": {"min": 3, "max": 3}, "target_in_flight": 2, "resources": BIG, "idempotent": True, **LOW}
        world.person.deploy("movies", survive={"node": 1}, **serving)
        world.until(lambda: world.ready("movies", 3), 15)
        world.call("movies", 3)
        world.until(lambda: world.status("movies")["needed"] == 2, 10)
        world.person.run("urgent", "exit=0@8000", resources=BIG, **HIGH)
        reaches(world, "urgent", "running", 20)
        world.watch_lowest("movies")
        world.person.run("more", "exit=0@1000", resources=BIG, **HIGH)
        world.run(5)
        assert state(world, "more") == "queued"
        assert world.lowest["movies"] == 2
        assert (world.state("movies"), "gives way to job urgent" in world.status("movies")["reason"]) == (
            "degraded",
            True,
        )
        world.until(lambda: world.ready("movies", 3), 40)
        assert world.gateway.failed == []

    def test_what_serves_takes_the_room_of_jobs(self, cell: Cell) -> None:
        world = cell(2)
        for number in range(2):
            world.person.run(f"batch-{number}", "exit=0@30000", resources=BIG, **LOW)
        reaches(world, "batch-1", "running")
        world.person.deploy("movies", resources=BIG, priority=5000, can_preempt=True)
        world.until(lambda: world.ready("movies", 1), 15)
        assert sum(bool(world.copies(f"batch-{number}")) for number in range(2)) == 1
        assert "lacks" not in world.status("movies")


class TestWorkspaces:
    @pytest.mark.parametrize(("cores", "helped"), [(2000, True), (3000, False)])
    def test_only_who_has_less_than_its_share_takes_from_others(self, cell: Cell, cores: int, helped: bool) -> None:
        world = cell(1)
        for number in range(4):
            world.person.run(f"a-{number}", "exit=0@12000", resources=ONE, workspace="team-a", **LOW)
        reaches(world, "a-3", "running")
        size = {"cpu_milli": cores, "memory_mib": 100}
        world.person.run("b", "exit=0@3000", resources=size, workspace="team-b", **HIGH)
        world.run(5)
        assert (state(world, "b") != "queued") == helped
        reaches(world, "b", "succeeded", 30)

    def test_nothing_of_a_workspace_is_named_to_another(self, cell: Cell) -> None:
        world = cell(1)
        world.person.run("secret-plan", "exit=0@30000", resources=BIG, workspace="team-a", **LOW)
        reaches(world, "secret-plan", "running")
        world.person.run("other-plan", "exit=0@30000", resources=TWO, workspace="team-b", **HIGH)
        reaches(world, "other-plan", "running", 20)
        world.person.run("third", "exit=0@100", resources=ALL, workspace="team-c")
        world.run(3)
        told = [text for what, _, _, text in world.notes.all if what == "job/secret-plan"]
        told += [str(job(world, "secret-plan").status)]
        assert not [text for text in told if "other-plan" in text]
        assert any("gives way to work of another workspace" in text for text in told)
        theirs = [text for what, _, _, text in world.notes.all if what in ("job/other-plan", "job/third")]
        theirs += [str(job(world, name).status) for name in ("other-plan", "third")]
        assert not [text for text in theirs if "secret-plan" in text]


class TestNodes:
    def test_taints_keep_off_and_labels_draw(self, cell: Cell) -> None:
        world = cell(2)
        world.person.mark("node-1", taints=["gpu=yes"], labels={"zone": "a"})
        for number in range(3):
            world.person.run(f"plain-{number}", "exit=0@20000", resources=ONE)
        world.person.run("bears", "exit=0@20000", resources=ONE, tolerations=("gpu=yes",), node_labels={"zone": "a"})
        world.person.run("wants", "exit=0@20000", resources=ONE, node_labels={"zone": "a"})
        world.until(lambda: all(world.copies(f"plain-{n}") for n in range(3)) and world.copies("bears"), 10)
        assert world.nodes_of("bears") == {"node-1": 1}
        assert {node for n in range(3) for node in world.nodes_of(f"plain-{n}")} == {"node-2"}
        assert "gpu=yes is not tolerated" in reason(world, "wants")
        world.person.mark("node-1", taints=[])
        reaches(world, "wants", "running", 10)

    def test_a_reservation_keeps_nodes_for_those_that_name_it(self, cell: Cell) -> None:
        world = cell(2)
        world.person.reserve("weekly", 1)
        world.run(1)
        (record,) = world.store.list("reservation")
        assert record.status["nodes"] == ["node-1"]
        world.person.run("plain", "exit=0@60000", resources=BIG)
        world.person.run("waits", "exit=0@1000", resources=BIG)
        world.person.run("guest", "exit=0@60000", resources=BIG, burst=True)
        reaches(world, "guest", "running")
        assert (world.nodes_of("plain"), world.nodes_of("guest")) == ({"node-2": 1}, {"node-1": 1})
        assert state(world, "waits") == "queued"
        world.person.run("named", "exit=0@5000", resources=BIG, reservation="weekly", can_preempt=True, priority=0)
        reaches(world, "named", "running", 15)
        assert world.nodes_of("named") == {"node-1": 1}
        assert (world.copies("guest"), state(world, "guest")) == ([], "queued")
        world.store.delete(world.store.get("system", "reservation", "weekly"))
        reaches(world, "waits", "succeeded", 30)

    def test_a_reservation_of_another_workspace_helps_nobody_else(self, cell: Cell) -> None:
        world = cell(1)
        world.person.reserve("theirs", 1, workspace="team-b")
        world.person.run("mine", "exit=0@1000", resources=ONE, reservation="theirs")
        world.person.run("ours", "exit=0@1000", resources=ONE, reservation="theirs", workspace="team-b")
        reaches(world, "ours", "succeeded")
        assert state(world, "mine") == "queued"

    def test_work_is_kept_apart_in_both_directions_and_put_together(self, cell: Cell) -> None:
        world = cell(3)
        world.person.deploy("noisy", resources=ONE, avoid=("quiet",))
        world.until(lambda: world.ready("noisy", 1), 10)
        world.person.deploy("quiet", resources=ONE, replicas={"min": 3, "max": 3})
        world.run(8)
        assert not set(world.nodes_of("noisy")) & set(world.nodes_of("quiet"))
        world.person.deploy("friend", resources=ONE, near=("noisy",))
        world.until(lambda: world.ready("friend", 1), 10)
        assert set(world.nodes_of("friend")) == set(world.nodes_of("noisy"))

    def test_those_that_come_in_one_moment_are_kept_apart_too(self, cell: Cell) -> None:
        world = cell(3)
        world.person.deploy("noisy", resources=ONE, avoid=("quiet",))
        world.person.deploy("quiet", resources=ONE)
        world.person.deploy("friend", resources=ONE, near=("quiet",))
        world.until(lambda: all(world.ready(name, 1) for name in ("noisy", "quiet", "friend")), 10)
        assert set(world.nodes_of("noisy")).isdisjoint(world.nodes_of("quiet"))
        assert set(world.nodes_of("friend")) == set(world.nodes_of("quiet"))

    def test_what_avoids_jobs_of_a_title_is_kept_away_from_by_them(self, cell: Cell) -> None:
        world = cell(2)
        world.person.run("first", "exit=0@60000", resources=ONE, title="loud", avoid=("quiet",))
        reaches(world, "first", "running")
        world.person.deploy("quiet", resources=ONE)
        world.until(lambda: world.ready("quiet", 1), 10)
        assert not set(world.nodes_of("first")) & set(world.nodes_of("quiet"))
