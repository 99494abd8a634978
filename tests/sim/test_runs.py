"""What jobs do besides running once: meeting, running again, starting later, going away and what stays of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sim.machine import Copy
from sim.world import World

from lepton_ai.control.options import Options

Cell = Callable[..., World]
BIG = {"cpu_milli": 3000, "memory_mib": 100}


def ended(world: World, name: str, within_s: float = 60) -> dict[str, Any]:
    world.until(lambda: world.job(name).get("state") in ("succeeded", "failed", "stopped"), within_s)
    return world.job(name)


def gone(world: World, name: str, within_s: float = 20) -> None:
    world.until(lambda: world.store.find("default", "job", name) is None, within_s)


class TestRendezvous:
    def meet(self, world: World, workers: int = 3, *words: str, **fields: Any) -> dict[int, Copy]:
        world.person.run("gang", *words, workers=workers, rendezvous=True, **fields)
        world.until(lambda: len(world.copies("gang")) == workers, 15)
        return {copy.spec.worker: copy for _, copy in world.copies("gang")}

    def test_the_others_are_ordered_once_worker_0_has_its_port(self, cell: Cell) -> None:
        world = cell(3)
        world.network.late_ms = 1500
        found = self.meet(world)
        first = found.pop(0)
        assert first.port is not None
        assert first.spec.own == {"MASTER_ADDR": "address", "MASTER_PORT": "port"}
        assert first.spec.env["MASTER_ADDR"] == "127.0.0.1"
        for copy in found.values():
            assert copy.begun_ms > first.begun_ms
            assert copy.port is None
            assert (copy.spec.env["MASTER_ADDR"], copy.spec.env["MASTER_PORT"]) == ("127.0.0.1", str(first.port))

    def test_until_then_they_say_what_they_wait_for(self, cell: Cell) -> None:
        world = cell(2)
        world.network.loss = 1.0
        world.person.run("gang", workers=2, rendezvous=True)
        world.run(3)
        waiting = {item.spec["worker"]: item.status.get("reason", "") for item in world.replicas("gang")}
        assert waiting == {0: "", 1: "waits until worker 0 has its port"}
        assert "waits until worker 0 has its port" in world.job("gang")["reason"]

    def test_every_worker_knows_who_it_is(self, cell: Cell) -> None:
        world = cell(3)
        for index, copy in self.meet(world).items():
            env = copy.spec.env
            assert (env["WORLD_SIZE"], env["NODE_RANK"]) == ("3", str(index))
            assert (env["LEPTON_JOB_TOTAL_WORKERS"], env["LEPTON_JOB_WORKER_INDEX"]) == ("3", str(index))
            assert (env["LEPTON_JOB_SERVICE_PREFIX"], env["LEPTON_SUBDOMAIN"]) == ("gang", "gang-svc")
            assert copy.spec.name.startswith(f"gang-{index}-")

    def test_what_the_user_says_holds(self, cell: Cell) -> None:
        found = self.meet(cell(2), 2, env={"MASTER_PORT": "29500"})
        assert found[0].spec.own == {"MASTER_ADDR": "address"}
        assert {copy.spec.env["MASTER_PORT"] for copy in found.values()} == {"29500"}

    def test_on_one_machine_with_networks_of_their_own_they_meet_inside(self, cell: Cell) -> None:
        world = cell(3)
        for machine in world.machines.values():
            machine.forwards = True
        found = self.meet(world)
        first = found[0]
        assert found[1].spec.env["MASTER_ADDR"] == f"10.0.0.{first.pid}"
        assert found[1].spec.env["MASTER_PORT"] == str(first.port)

    def test_worker_0_keeps_its_place_when_it_is_tried_again_and_the_others_learn_where_it_is(self, cell: Cell) -> None:
        world = cell(3)
        found = self.meet(world, 3, retries=2, resources=BIG)
        before = {copy.spec.worker: node for node, copy in world.copies("gang")}
        world.machines[before[0]].crash(found[0].spec.uid)
        world.until(lambda: len(world.copies("gang")) == 3, 10)
        again = {copy.spec.worker: (node, copy) for node, copy in world.copies("gang")}
        assert (again[0][0], again[0][1].port) == (before[0], found[0].port)
        world.machines[before[2]].crash(found[2].spec.uid)
        world.until(lambda: len(world.copies("gang")) == 3, 10)
        third = next(copy for _, copy in world.copies("gang") if copy.spec.worker == 2)
        assert third.spec.env["MASTER_PORT"] == str(found[0].port)

    def test_a_port_that_is_taken_meanwhile_is_another_one_and_told(self, cell: Cell) -> None:
        world = cell(2)
        found = self.meet(world, 2, retries=5, resources=BIG)
        nodes = {copy.spec.worker: node for node, copy in world.copies("gang")}
        assert found[0].port is not None
        world.machines[nodes[0]].crash(found[0].spec.uid)
        world.machines[nodes[0]]._ports.taken.add(found[0].port)
        world.until(lambda: len(world.copies("gang")) == 2, 10)
        first = next(copy for _, copy in world.copies("gang") if copy.spec.worker == 0)
        assert first.port != found[0].port
        world.machines[nodes[1]].crash(found[1].spec.uid)
        world.until(lambda: len(world.copies("gang")) == 2, 10)
        second = next(copy for _, copy in world.copies("gang") if copy.spec.worker == 1)
        assert second.spec.env["MASTER_PORT"] == str(first.port)

    def test_on_hosts_of_their_own_they_stay_on_one_machine(self, cell: Cell) -> None:
        world = cell(4, hosts=True)
        for name in ("node-3", "node-4"):
            world.machines[name].identity = "the large one"
        # Room for two on a node: three of them find it on the machine with two nodes only.
        found = self.meet(world, 3, retries=3, resources={"cpu_milli": 2000, "memory_mib": 100})
        nodes = {copy.spec.worker: node for node, copy in world.copies("gang")}
        assert set(nodes.values()) == {"node-3", "node-4"}
        world.machines[nodes[1]].crash(found[1].spec.uid)
        world.until(lambda: len(world.copies("gang")) == 3, 10)
        assert {node for node, _ in world.copies("gang")} <= {"node-3", "node-4"}
        assert found[1].spec.env["MASTER_PORT"] == str(found[0].port)

    def test_what_no_one_machine_has_room_for_waits_and_says_so(self, cell: Cell) -> None:
        world = cell(3, hosts=True)
        world.person.run("gang", workers=3, rendezvous=True, resources=BIG)
        world.run(3)
        assert world.copies("gang") == []
        assert "its workers meet on one machine, and none has room for all" in world.job("gang")["reason"]
        # Who does not meet may be anywhere.
        world.person.run("apart", workers=3, resources=BIG)
        world.until(lambda: len(world.copies("apart")) == 3, 15)

    def test_a_first_worker_that_is_done_at_once_keeps_nobody_waiting(self, cell: Cell) -> None:
        world = cell(2)
        world.person.run("quick", "exit=0@100", workers=2, rendezvous=True)
        assert ended(world, "quick")["state"] == "succeeded"


class TestRuns:
    def test_a_job_whose_worker_fails_for_good_runs_again_whole(self, cell: Cell) -> None:
        world = cell(3)
        world.person.run("gang", "exit=0@60000", workers=3, retries=1, job_retries=2)
        for run in (1, 2, 3):
            for _ in range(2):  # the first try, and the one retry of the worker
                world.until(lambda run=run: world.job("gang").get("runs") == run and len(world.copies("gang")) == 3, 90)
                node, copy = next((n, c) for n, c in world.copies("gang") if c.spec.worker == 1)
                world.machines[node].crash(copy.spec.uid)
                world.step()
        status = ended(world, "gang")
        assert (status["state"], status["runs"], status["failed"]) == ("failed", 3, 2)
        assert [(item["run"], item["state"]) for item in status["history"]] == [(1, "failed"), (2, "failed")]
        assert all("worker 1 after 2 tries: killed by signal 9" in item["reason"] for item in status["history"])
        assert all(item["ended_ms"] > item["started_ms"] > 0 for item in status["history"])
        assert world.copies("gang") == []

    def test_no_worker_of_one_run_lives_beside_one_of_the_next(self, cell: Cell) -> None:
        world = cell(3)
        world.person.run("gang", "exit=0@9000", "term=4000", workers=2, job_retries=3)
        world.until(lambda: len(world.copies("gang")) == 2, 10)
        node, copy = world.copies("gang")[0]
        world.machines[node].crash(copy.spec.uid)
        runs = {item.uid: 1 for item in world.replicas("gang")}
        while world.job("gang")["state"] != "succeeded":
            world.step()
            runs |= {item.uid: item.spec["run"] for item in world.replicas("gang")}
            assert len({runs[copy.spec.uid] for _, copy in world.copies("gang")}) <= 1
        status = world.job("gang")
        assert (status["runs"], status["succeeded"], status["failed"]) == (2, 2, 0)
        assert "retrying -> " in " ".join(world.notes.of("job/gang", "State"))

    def test_every_run_begins_with_all_workers_at_once(self, cell: Cell) -> None:
        world = cell(3)
        world.person.run("gang", "exit=0@60000", workers=3, job_retries=5)
        begun: dict[int, set[int]] = {}
        for run in range(1, 6):
            world.until(lambda run=run: world.job("gang").get("runs") == run and len(world.copies("gang")) == 3, 90)
            begun[run] = {copy.begun_ms for _, copy in world.copies("gang")}
            world.run(1)
            node, copy = next((n, c) for n, c in world.copies("gang") if c.spec.worker == 1)
            world.machines[node].crash(copy.spec.uid)
            world.step()
        assert {run: len(moments) for run, moments in begun.items()} == dict.fromkeys(range(1, 6), 1)

    def test_what_comes_back_of_an_earlier_run_is_ended(self, cell: Cell) -> None:
        world = cell(4)
        world.person.run("gang", "exit=0@600000", workers=2, job_retries=1, resources=BIG)
        world.until(lambda: len(world.copies("gang")) == 2, 10)
        (lost, old), (_, other) = world.copies("gang")
        world.machines[lost].partition()
        world.until(lambda: len(world.copies("gang")) == 3, 40)  # another try of the one that is away
        node = next(node for node, copy in world.copies("gang") if copy is other)
        world.machines[node].crash(other.spec.uid)
        world.until(lambda: world.job("gang")["runs"] == 2 and len(world.copies("gang")) == 3, 20)
        world.machines[lost].heal()
        world.until(lambda: not old.lives, 10)
        world.run(3)
        assert len(world.copies("gang")) == 2
        assert world.job("gang")["state"] == "running"

    def test_a_stop_ends_the_tries_and_a_start_gives_all_of_them_again(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=3@1000", job_retries=1)
        world.until(lambda: world.job("count").get("runs") == 2 and world.copies("count"), 20)
        world.person.stop("count")
        assert ended(world, "count")["state"] == "stopped"
        world.person.stop("count", False)
        world.until(lambda: world.job("count")["state"] == "failed", 40)
        status = world.job("count")
        assert status["runs"] == 4  # two, and two more
        assert [item["state"] for item in status["history"]] == ["failed", "stopped", "failed"]

    def test_what_is_kept_of_many_runs_is_bounded(self, cell: Cell) -> None:
        world = cell(options=Options(kept_runs=3, kept_attempts=4))
        world.person.run("count", "exit=3@100", job_retries=12)
        status = ended(world, "count", 600)
        assert (status["state"], status["runs"], len(status["history"])) == ("failed", 13, 3)
        assert len(world.store.list("replica")) <= 4 + 1 + 1

    def test_a_lost_node_costs_no_run(self, cell: Cell) -> None:
        world = cell(3)
        world.person.run("gang", "exit=0@30000", workers=2, job_retries=1, resources=BIG)
        world.until(lambda: len(world.copies("gang")) == 2, 10)
        world.machines[world.copies("gang")[0][0]].kill()
        status = ended(world, "gang", 90)
        assert (status["state"], status["runs"]) == ("succeeded", 1)

    def test_a_leader_that_dies_between_runs_changes_nothing(self, cell: Cell) -> None:
        for instant in range(1, 9):
            world = cell(2, seed=instant)
            world.person.run("gang", "exit=1@700", workers=2, job_retries=1)
            world.until(lambda world=world: len(world.copies("gang")) == 2, 10)
            world.store.at = instant
            world.until(lambda world=world: not world.controls or world.job("gang").get("state") == "failed", 60)
            if not world.controls:
                world.start_control()
            status = ended(world, "gang", 90)
            assert (status["state"], status["runs"], len(status["history"])) == ("failed", 2, 1), instant


class TestSchedule:
    def test_it_starts_when_its_time_has_come_and_holds_up_nobody(self, cell: Cell) -> None:
        world = cell(1)
        world.person.run("later", "exit=0@1000", resources=BIG, start_at_ms=world.clock.now_ms() + 20_000)
        world.run(1)
        assert world.job("later")["state"] == "scheduled"
        assert world.job("later")["reason"].startswith("starts at 2023-11-14T22:")
        world.person.run("now", "exit=0@2000", resources=BIG)
        assert ended(world, "now", 10)["state"] == "succeeded"
        assert world.copies("later") == []
        world.until(lambda: world.job("later")["state"] == "running", 20)
        assert world.clock.now_ms() >= int(world.person.job("later").spec["start_at_ms"])
        assert ended(world, "later")["state"] == "succeeded"

    def test_a_clock_that_is_set_back_stops_nothing_and_starts_nothing_twice(self, cell: Cell) -> None:
        world = cell()
        world.person.run("later", "exit=0@10000", start_at_ms=world.clock.now_ms() + 5_000)
        world.run(1)
        world.clock.jump(3_600_000)
        world.until(lambda: world.job("later")["state"] == "running", 5)
        world.clock.jump(-7_200_000)
        world.run(5)
        assert world.job("later")["state"] == "running"
        assert ended(world, "later", 20)["runs"] == 1

    def test_stopped_before_it_began(self, cell: Cell) -> None:
        world = cell()
        world.person.run("later", start_at_ms=world.clock.now_ms() + 600_000)
        world.run(1)
        world.person.stop("later")
        assert ended(world, "later", 5)["state"] == "stopped"
        world.person.stop("later", False)
        world.until(lambda: world.job("later")["state"] == "scheduled", 5)
        world.run(3)
        assert world.store.list("replica") == []


class TestArchive:
    def test_what_stays_of_a_removed_job(self, cell: Cell) -> None:
        world = cell()
        made = world.person.run("count", "exit=7@500", "log=boom", retries=1)
        status = ended(world, "count")
        copies = {item.uid: item for item in world.store.list("replica")}
        world.person.remove("job", "count")
        gone(world, "count")
        kept = world.store.get("default", "archive", "count")
        assert (kept.spec["kind"], kept.spec["uid"], kept.spec["created_ms"]) == ("job", made.uid, made.created_ms)
        assert kept.spec["spec"] == made.spec
        assert kept.status == status
        assert [item["uid"] for item in kept.spec["replicas"]] == sorted(copies)
        first = kept.spec["replicas"][0]
        assert first["name"] == copies[first["uid"]].name
        assert (first["spec"]["node"], first["spec"]["worker"], first["spec"]["attempt"]) == (
            copies[first["uid"]].spec["node"], 0, 0,
        )  # fmt: skip
        assert first["status"]["exit"]["code"] == 7
        assert world.store.list("replica") == []
        assert len(world.controls[0].fleet.archived) == 2  # their logs were kept

    def test_one_that_is_removed_alive_ends_first_and_counts_as_stopped(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=0@600000", "term=3000", workers=2)
        world.until(lambda: world.job("count").get("state") == "running")
        world.person.remove("job", "count")
        world.run(1)
        assert world.job("count")["state"] == "deleting"
        assert "waits for its replicas on node-" in world.job("count")["reason"]
        gone(world, "count")
        assert world.copies("count") == []
        kept = world.store.get("default", "archive", "count")
        assert (kept.status["state"], kept.status["active"]) == ("stopped", 0)
        assert kept.status["ended_ms"] > kept.status["started_ms"]

    def test_never_between_the_two(self, cell: Cell) -> None:
        for instant in range(1, 7):
            world = cell(2, seed=instant)
            world.person.run("count", "exit=0@300")
            ended(world, "count")
            world.run(2)
            world.person.remove("job", "count")
            world.store.at = instant
            for _ in range(80):
                world.step()
                there = world.store.find("default", "job", "count"), world.store.find("default", "archive", "count")
                assert sum(item is not None for item in there) == 1
                if not world.controls:
                    world.start_control()
            assert there[0] is None

    def test_an_id_that_is_used_again_replaces_what_stayed_of_it(self, cell: Cell) -> None:
        world = cell()
        for code in (3, 4):
            world.person.run("count", f"exit={code}@300")
            ended(world, "count")
            world.person.remove("job", "count")
            gone(world, "count")
        (kept,) = world.store.list("archive")
        assert kept.status["reason"] == "worker 0: exit code 4"

    def test_old_ones_and_too_many_go(self, cell: Cell) -> None:
        world = cell(options=Options(archive_days=1 / 24, archive_count=12, archive_s=5, max_removed_per_pass=3))
        for number in range(30):
            world.store.create("default", "archive", f"a-{number:02}", {"kind": "job"})
        for number in range(5):
            world.store.create("other", "archive", f"b-{number}", {"kind": "job"})
        world.until(lambda: len(world.store.list("archive", workspace="default")) == 12, 20)
        names = [item.name for item in world.store.list("archive", workspace="default")]
        assert names == [f"a-{number}" for number in range(18, 30)]  # the newest
        assert len(world.store.list("archive", workspace="other")) == 5
        world.clock.jump(3_600_000 + 60_000)
        world.store.create("default", "archive", "young", {"kind": "job"})
        world.until(lambda: [item.name for item in world.store.list("archive")] == ["young"], 30)


class TestRest:
    def test_a_finished_job_is_not_kept_and_its_log_is(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=0@500", workers=2)
        ended(world, "count")
        world.run(3)
        control = world.controls[0]
        assert control.loop.services.mirror.list("job") == control.loop.services.mirror.list("replica") == []
        assert len(control.fleet.archived) == 2
        assert all(not machine.copies for machine in world.machines.values())

    @pytest.mark.parametrize("restart", [False, True])
    def test_it_goes_when_its_time_is_over_also_by_another_leader(self, cell: Cell, restart: bool) -> None:
        world = cell()
        for number in range(3):
            world.person.run(f"job-{number}", "exit=0@500", ttl_s=20 + 10 * number)
            ended(world, f"job-{number}")
        if restart:
            world.kill_control()
            world.start_control()
        world.run(12)
        assert len(world.store.list("job")) == 3
        gone(world, "job-0", 12)
        assert len(world.store.list("job")) == 2
        gone(world, "job-2", 40)
        assert {item.name for item in world.store.list("archive")} == {"job-0", "job-1", "job-2"}
        assert world.store.list("replica") == []

    def test_another_time_to_live_counts_from_then_on(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=0@500", ttl_s=5)
        ended(world, "count")
        record = world.person.job("count")
        world.store.update(record, spec={**record.spec, "ttl_s": 30})
        world.run(15)
        record = world.person.job("count")
        world.store.update(record, spec={**record.spec, "ttl_s": 1})
        gone(world, "count", 10)

    def test_a_worker_that_comes_back_after_its_job_was_ended_is_ended(self, cell: Cell) -> None:
        world = cell()
        world.person.run("count", "exit=0@600000")
        world.until(lambda: world.job("count").get("state") == "running")
        ((node, copy),) = world.copies("count")
        world.machines[node].partition()
        world.person.stop("count")
        assert ended(world, "count", world.options.job_grace_s + 10)["state"] == "stopped"
        world.run(5)
        world.kill_control()  # and nobody remembers
        world.start_control()
        world.run(5)
        assert copy.lives
        world.machines[node].heal()
        world.until(lambda: not copy.lives, 10)
        world.until(lambda: not world.machines[node].copies, 10)
        assert world.at_rest() == []
