"""Work that ends: queueing, gangs, exit codes, retries, lost nodes, stopping, removing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim.world import World

from lepton_ai.spec.replica import Exit

Cell = Callable[..., World]
BIG = {"cpu_milli": 3000, "memory_mib": 100}


def ended(world: World, name: str, within_s: float = 60) -> dict[str, object]:
    world.until(lambda: world.job(name).get("state") in ("succeeded", "failed", "stopped"), within_s)
    return world.job(name)


def test_a_job_runs_and_its_end_is_known(cell: Cell) -> None:
    world = cell()
    world.person.run("count", "exit=0@3000")
    world.until(lambda: world.job("count").get("state") == "running", 5)
    status = ended(world, "count")
    assert (status["state"], status["succeeded"], status["active"]) == ("succeeded", 1, 0)
    assert 3000 <= int(status["ended_ms"]) - int(status["started_ms"]) < 4500  # type: ignore[call-overload]
    world.run(5)
    assert world.notes.of("job/count", "State")[-2:] == ["starting -> running", "running -> succeeded"]
    assert all(not machine.copies for machine in world.machines.values())
    assert world.at_rest() == []


def test_an_exit_code_and_the_last_line_are_said(cell: Cell) -> None:
    world = cell()
    world.person.run("count", "exit=7@500", "log=division by zero")
    status = ended(world, "count")
    assert status["state"] == "failed"
    assert status["reason"] == "worker 0: exit code 7: division by zero"
    world.run(30)
    assert len(world.store.list("replica")) == 1


def test_a_failed_worker_is_tried_again_as_often_as_it_may_be_with_pauses(cell: Cell) -> None:
    world = cell()
    world.person.run("count", "exit=7@500", retries=3)
    begun_ms = world.clock.elapsed_ms()
    status = ended(world, "count", 120)
    assert (status["state"], status["failed"]) == ("failed", 4)
    assert "after 4 tries" in str(status["reason"])
    assert len(world.store.list("replica")) == 4
    assert world.clock.elapsed_ms() - begun_ms > 4 * 500 + 500 + 1000


def test_a_lost_node_is_no_failure_of_the_job(cell: Cell) -> None:
    world = cell()
    world.person.run("count", "exit=0@40000")
    for _ in range(3):
        world.until(lambda: world.job("count").get("state") == "running", 60)
        ((node, _),) = world.copies("count")
        world.run(5)
        world.machines[node].kill()
        world.until(lambda: world.copies("count"), world.options.job_grace_s + 10)
        world.machines[node].restore(empty=True)
    status = ended(world, "count", 90)
    assert (status["state"], status["failed"]) == ("succeeded", 0)
    world.run(5)
    assert world.at_rest() == []


@pytest.mark.parametrize("empty", [True, False])
def test_a_node_that_comes_back_soon_without_the_work_is_no_failure_either(cell: Cell, empty: bool) -> None:
    world = cell()
    world.person.run("count", "exit=0@20000")
    world.until(lambda: world.job("count").get("state") == "running")
    ((node, _),) = world.copies("count")
    world.machines[node].kill()
    world.run(1)
    world.machines[node].restore(empty=empty)
    status = ended(world, "count", 90)
    assert (status["state"], status["failed"]) == ("succeeded", 0)


def test_a_job_that_ended_while_its_node_was_away_keeps_its_exit_code(cell: Cell) -> None:
    world = cell()
    world.person.run("count", "exit=0@4000")
    world.until(lambda: world.job("count").get("state") == "running")
    ((node, _),) = world.copies("count")
    world.machines[node].partition()
    world.run(12)
    world.machines[node].heal()
    assert ended(world, "count", 5)["state"] == "succeeded"
    assert len(world.store.list("replica")) == 1


def test_a_worker_that_returns_after_it_was_replaced_is_ended(cell: Cell) -> None:
    world = cell()
    world.person.run("count", "exit=0@60000")
    world.until(lambda: world.job("count").get("state") == "running")
    ((node, old),) = world.copies("count")
    world.machines[node].partition()
    world.until(lambda: len(world.copies("count")) == 2, 40)
    world.machines[node].heal()
    world.until(lambda: len(world.copies("count")) == 1, 10)
    assert [copy for _, copy in world.copies("count")] != [old]
    status = ended(world, "count", 90)
    assert (status["state"], status["failed"]) == ("succeeded", 0)


def test_an_attempt_that_ends_well_because_it_was_told_to_is_no_success(cell: Cell) -> None:
    world = cell()
    world.person.run("count", "exit=0@30000", "term=40000")  # it goes on after TERM and ends with code 0
    world.until(lambda: world.job("count").get("state") == "running")
    ((node, _),) = world.copies("count")
    world.machines[node].partition()
    world.until(lambda: len(world.copies("count")) == 2, 40)
    for _, copy in world.copies("count"):
        copy.program = type(copy.program)(start_ms=0, code=None, term_ms=500)
    world.machines[node].heal()
    machine = world.machines[node]
    world.until(lambda: any(copy.term_ms for copy in machine.copies.values()), 10)
    (old,) = machine.copies.values()
    machine._end(old, Exit(code=0, reason="stopped", ended_ms=world.clock.now_ms()))
    world.run(5)
    assert world.job("count")["state"] == "running"


@pytest.mark.parametrize("code", [0, 143])
def test_work_that_ended_because_the_cell_was_stopped_is_done_again(cell: Cell, code: int) -> None:
    world = cell()
    world.person.run("count", "exit=0@10000")
    world.person.deploy("movies")
    world.until(lambda: world.job("count").get("state") == "running" and world.ready("movies", 1))
    world.kill_control()
    for machine in world.machines.values():
        for copy in machine.copies.values():
            machine._end(copy, Exit(code=code, reason="lost: the cell was stopped", ended_ms=world.clock.now_ms()))
    world.run(30)
    world.start_control()
    world.until(lambda: world.ready("movies", 1), 15)
    status = ended(world, "count", 30)
    assert (status["state"], status["failed"]) == ("succeeded", 0)
    assert len([item for item in world.store.list("replica") if item.name.startswith("count")]) == 2


class TestGangs:
    def test_all_workers_start_at_once_or_none_does(self, cell: Cell) -> None:
        world = cell(3)
        world.person.run("first", "exit=0@20000", resources=BIG)
        world.until(lambda: world.job("first").get("state") == "running")
        world.person.run("gang", "exit=0@3000", workers=3, resources=BIG)
        world.run(10)
        assert world.copies("gang") == []
        assert world.job("gang")["state"] == "queued"
        assert "worker 3 of 3 finds no node" in world.job("gang")["reason"]
        ended(world, "first")
        world.until(lambda: len(world.copies("gang")) == 3, 10)
        assert ended(world, "gang")["succeeded"] == 3

    def test_workers_know_who_they_are(self, cell: Cell) -> None:
        world = cell(3)
        world.person.run("gang", "exit=0@3000", workers=3, env={"A": "b"})
        world.until(lambda: len(world.copies("gang")) == 3, 10)
        env = [copy.spec.env for _, copy in world.copies("gang")]
        assert sorted(item["LEPTON_JOB_WORKER_INDEX"] for item in env) == ["0", "1", "2"]
        assert {item["LEPTON_JOB_TOTAL_WORKERS"] for item in env} == {"3"}
        assert {item["A"] for item in env} == {"b"}

    def test_one_failed_worker_fails_the_gang_and_ends_the_others(self, cell: Cell) -> None:
        world = cell(3)
        world.person.run("gang", "exit=0@60000", workers=3)
        world.until(lambda: world.job("gang").get("state") == "running")
        node, copy = world.copies("gang")[1]
        world.machines[node].crash(copy.spec.uid)
        status = ended(world, "gang", 10)
        assert status["state"] == "failed"
        assert "killed by signal 9" in str(status["reason"])
        assert world.copies("gang") == []

    def test_a_worker_of_a_running_gang_that_needs_a_node_is_not_overtaken(self, cell: Cell) -> None:
        world = cell(3)
        small = {"cpu_milli": 1500, "memory_mib": 10}
        for number in range(2):  # two on one node, which end at different times
            world.person.run(f"small-{number}", f"exit=0@{8000 + 6000 * number}", resources=small)
            world.run(1)
        world.person.run("gang", "exit=0@300000", workers=2, resources=BIG)
        world.until(lambda: world.job("gang").get("state") == "running")
        assert len({node for node, _ in world.copies("small-0") + world.copies("small-1")}) == 1
        for number in range(2, 20):
            world.person.run(f"small-{number}", "exit=0@12000", resources=small)
        node, _ = world.copies("gang")[0]
        world.machines[node].kill()
        world.until(lambda: len(world.copies("gang")) == 2, 45)


class TestQueue:
    def test_jobs_start_in_the_order_in_which_they_came(self, cell: Cell) -> None:
        world = cell(1)
        for number in range(5):
            world.person.run(f"job-{number}", "exit=0@2000", resources=BIG)
            world.step()
        world.until(lambda: all(world.job(f"job-{n}").get("state") == "succeeded" for n in range(5)), 60)
        begun = [int(world.job(f"job-{number}")["started_ms"]) for number in range(5)]
        assert begun == sorted(begun)
        assert len(set(begun)) == 5

    def test_a_large_job_is_not_starved_by_small_ones_behind_it(self, cell: Cell) -> None:
        world = cell(2)
        for number in range(2):
            world.person.run(f"busy-{number}", "exit=0@10000", resources=BIG)
        world.until(lambda: world.job("busy-1").get("state") == "running")
        world.person.run("large", "exit=0@2000", workers=2, resources=BIG)
        world.step()
        for number in range(8):
            world.person.run(f"small-{number}", "exit=0@9000", resources={"cpu_milli": 1500, "memory_mib": 10})
        world.run(3)
        assert "waits behind job large" in world.job("small-0")["reason"]
        world.until(lambda: world.job("large")["state"] == "succeeded", 25)
        world.until(lambda: all(world.job(f"small-{n}")["state"] == "succeeded" for n in range(8)), 90)

    def test_a_job_that_could_never_run_lets_others_pass_and_says_why(self, cell: Cell) -> None:
        world = cell(2)
        world.person.run("huge", resources={"cpu_milli": 64_000, "memory_mib": 100})
        world.run(1)
        world.person.run("small", "exit=0@500")
        assert ended(world, "small", 10)["state"] == "succeeded"
        assert world.job("huge")["state"] == "queued"
        assert "too small: cpu 64000 wanted, 4000 in all" in world.job("huge")["reason"]
        world.person.remove("job", "huge")
        world.until(lambda: world.store.find("default", "job", "huge") is None, 5)


class TestWishes:
    def test_stopped_and_started_again(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=0@10000", "term=1000")
        world.until(lambda: world.job("count").get("state") == "running")
        world.person.stop("count")
        world.until(lambda: world.job("count")["state"] == "stopping", 5)
        assert ended(world, "count")["state"] == "stopped"
        assert world.copies("count") == []
        world.person.stop("count", False)
        world.until(lambda: world.job("count")["state"] == "running", 10)
        assert ended(world, "count")["state"] == "succeeded"

    def test_a_failed_job_that_was_stopped_starts_with_all_its_tries(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=1@3000", retries=1)
        world.until(lambda: world.job("count").get("failed") == 1, 20)
        world.person.stop("count")
        ended(world, "count")
        world.person.stop("count", False)
        world.until(lambda: world.job("count")["state"] == "failed", 40)
        assert world.job("count")["failed"] == 2

    def test_stopped_while_queued(self, cell: Cell) -> None:
        world = cell(1)
        world.person.run("first", "exit=0@10000", resources=BIG)
        world.person.run("second", "exit=0@1000", resources=BIG)
        world.run(2)
        world.person.stop("second")
        assert ended(world, "second", 5)["state"] == "stopped"

    def test_stopping_does_not_wait_for_a_dead_node_for_ever(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=0@100000")
        world.until(lambda: world.job("count").get("state") == "running")
        ((node, _),) = world.copies("count")
        world.person.stop("count")
        world.machines[node].kill()
        assert ended(world, "count", world.options.job_grace_s + 10)["state"] == "stopped"

    def test_it_goes_when_its_time_is_over(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=0@500", ttl_s=20)
        ended(world, "count")
        world.run(15)
        assert world.job("count")["state"] == "succeeded"
        world.until(lambda: world.store.find("default", "job", "count") is None, 10)
        assert world.store.list("replica") == []

    def test_removed_while_it_runs(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=0@100000", workers=2)
        world.until(lambda: world.job("count").get("state") == "running")
        world.person.remove("job", "count")
        world.until(lambda: world.store.find("default", "job", "count") is None, 10)
        assert world.store.list("replica") == []
        assert all(not machine.copies for machine in world.machines.values())
