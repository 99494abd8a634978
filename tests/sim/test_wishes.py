"""What a deployment may ask for besides replicas: nodes, spread, ports, rates, files, logins; and how it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.control import Control
from sim.world import World

from lepton_ai.control.options import Options
from lepton_ai.errors import Forbidden, NotFound
from lepton_ai.spec.container import Mount, Port
from lepton_ai.spec.replica import MountOrder, RegistryLogin
from lepton_ai.store import Update

Cell = Callable[..., World]
SMALL = {"cpu_milli": 100, "memory_mib": 100}


def up(world: World, name: str = "movies", count: int = 2, *words: str, **fields: Any) -> None:
    world.person.deploy(name, *words, replicas={"min": count, "max": count}, **fields)
    world.until(lambda: world.ready(name, count) and world.state(name) == "ready", 10)


class TestNodes:
    def test_only_the_nodes_it_allows(self, cell: Cell) -> None:
        world = cell(4)
        up(world, "movies", 4, nodes=("node-2", "node-3"), resources=SMALL)
        assert set(world.nodes_of("movies")) <= {"node-2", "node-3"}
        world.person.run("count", "exit=0@5000", workers=2, nodes=("node-4",), resources=SMALL)
        world.until(lambda: len(world.copies("count")) == 2, 5)
        assert world.nodes_of("count") == {"node-4": 2}

    def test_when_those_are_full_or_away_it_waits_and_says_so(self, cell: Cell) -> None:
        world = cell(3)
        up(world, "movies", 1, nodes=("node-2",))
        world.machines["node-2"].kill()
        world.run(10)
        assert world.state("movies") == "waiting"
        assert "2 not among the nodes it allows" in world.status("movies")["reason"]
        assert "node-2: unreachable" in world.status("movies")["reason"]
        world.machines["node-2"].restore(empty=True)
        world.until(lambda: world.ready("movies", 1), 10)

    def test_what_must_survive_is_spread_over_those_alone(self, cell: Cell) -> None:
        world = cell(4)
        up(world, "movies", 2, nodes=("node-2",), survive={"node": 1}, resources=SMALL)
        assert "needs at least 2 nodes that take work, there are 1" in world.status("movies")["warning"]

    def test_a_release_that_allows_others_moves_there(self, cell: Cell) -> None:
        world = cell(3)
        up(world, "movies", 2, nodes=("node-1",), resources=SMALL, idempotent=True)
        world.call("movies", 4)
        world.person.release("movies", nodes=("node-3",), resources=SMALL, idempotent=True)
        world.until(lambda: world.ready("movies", 2, 2), 30)
        assert world.nodes_of("movies") == {"node-3": 2}
        assert world.gateway.failed == []


class TestSpread:
    def test_required_is_one_a_node_and_the_rest_is_unplaceable(self, cell: Cell) -> None:
        world = cell(3)
        world.person.deploy("movies", replicas={"min": 4, "max": 4}, spread="required", resources=SMALL)
        world.until(lambda: len(world.serving("movies")) == 3, 10)
        world.run(5)
        assert world.nodes_of("movies") == {"node-1": 1, "node-2": 1, "node-3": 1}
        assert world.state("movies") == "degraded"
        assert "spread: holds 1 already, at most 1 a node" in world.status("movies")["reason"]

    def test_a_release_replaces_it_nevertheless(self, cell: Cell) -> None:
        world = cell(3)
        world.person.deploy(
            "movies", replicas={"min": 4, "max": 4}, spread="required", resources=SMALL, idempotent=True
        )
        world.until(lambda: len(world.serving("movies")) == 3, 10)
        world.call("movies", 4)
        world.watch_lowest("movies")
        world.person.release("movies", resources=SMALL, idempotent=True)
        world.until(lambda: world.status("movies").get("serving") == 2, 40)
        world.until(lambda: {copy.spec.release for _, copy in world.copies("movies")} == {2}, 10)
        assert len(world.copies("movies")) == 3
        assert world.lowest["movies"] >= 3
        assert world.gateway.failed == []

    def test_asked_for_later_it_moves_those_that_share_a_node(self, cell: Cell) -> None:
        world = cell(3)
        up(world, "movies", 3, resources=SMALL, idempotent=True)
        assert len(world.nodes_of("movies")) == 1
        world.person.change("movies", spread="required")
        world.until(lambda: len(world.nodes_of("movies")) == 3 and world.ready("movies", 3), 40)


class TestRate:
    def test_replicas_follow_the_requests_of_the_last_minute_up_and_down(self, cell: Cell) -> None:
        world = cell(3)
        spec = {"replicas": {"min": 1, "max": 6}, "target_requests_per_minute": 300.0, "resources": SMALL}
        world.person.deploy("movies", idempotent=True, target_in_flight=1000.0, **spec)
        world.until(lambda: world.ready("movies", 1), 10)
        world.call("movies", 4, 300)  # some 800 in a minute, few at once
        world.until(lambda: world.ready("movies", 3), 90)
        assert "requests per minute at most 300 each need 3" in world.status("movies")["scaled"]["reason"]
        world.run(60)
        assert world.status("movies")["wanted"] == 3
        world.call("movies", 0)
        world.run(30)
        assert world.status("movies")["wanted"] == 3  # the minute is not over
        world.until(lambda: world.ready("movies", 1), 150)
        assert "minimum of 1; " in world.status("movies")["scaled"]["reason"]
        assert world.gateway.failed == []

    def test_a_gateway_that_counts_anew_and_a_new_leader_take_nothing_away(self, cell: Cell) -> None:
        world = cell(3)
        spec = {"replicas": {"min": 1, "max": 6}, "target_requests_per_minute": 300.0, "resources": SMALL}
        world.person.deploy("movies", idempotent=True, **spec)
        world.until(lambda: world.ready("movies", 1), 10)
        world.call("movies", 4, 300)
        world.until(lambda: world.ready("movies", 3), 90)
        world.gateway.answered.clear()
        lowest = 9
        for moment in range(900):
            if moment == 300:
                world.kill_control()
                world.start_control()
            world.step()
            lowest = min(lowest, int(world.status("movies")["wanted"]))
        assert lowest == 3


class TestPorts:
    def test_a_second_replica_at_the_same_port_is_unplaceable_with_the_reason(self, cell: Cell) -> None:
        world = cell(3)
        world.person.deploy("movies", replicas={"min": 2, "max": 2}, port=8080, resources=SMALL)
        world.until(lambda: len(world.serving("movies")) == 1, 10)
        world.run(5)
        ((_, copy),) = world.copies("movies")
        assert world.state("movies") == "degraded"
        assert f"port 8080 of 127.0.0.1 is taken by {copy.spec.name}" in world.status("movies")["reason"]
        world.person.run("other", port=8080, resources=SMALL)
        world.run(2)
        assert world.job("other")["state"] == "queued"
        assert "port 8080 of 127.0.0.1 is taken" in world.job("other")["reason"]
        assert len(world.store.list("replica")) == 1

    def test_who_has_the_port_is_not_named_to_other_workspaces(self, cell: Cell) -> None:
        world = cell(2)
        world.person.run("holder", "exit=0@100000", port=8080, resources=SMALL)
        world.until(lambda: world.job("holder").get("state") == "running", 10)
        world.person.run("other", port=8080, resources=SMALL, workspace="team-b")
        world.run(2)
        (other,) = [record for record in world.store.list("job") if record.name == "other"]
        assert "port 8080 of 127.0.0.1 is taken by work of another workspace" in other.status["reason"]

    def test_who_has_the_port_gives_way(self, cell: Cell) -> None:
        world = cell(2)
        world.person.run("holder", "exit=0@100000", port=8080, resources=SMALL, priority=1000, preemptible=True)
        world.until(lambda: world.job("holder").get("state") == "running", 10)
        world.person.run("urgent", "exit=0@100000", port=8080, resources=SMALL, priority=9000, can_preempt=True)
        world.until(lambda: world.job("urgent").get("state") == "running", 30)

    def test_where_nodes_forward_many_fit(self, cell: Cell) -> None:
        world = cell(2)
        for machine in world.machines.values():
            machine.forwards = True
        up(world, "movies", 4, port=8080, resources=SMALL)
        assert {copy.spec.port for _, copy in world.copies("movies")} == {8080}
        assert len({copy.port for _, copy in world.copies("movies")}) == 4

    def test_a_release_at_the_same_port_replaces_the_old_one_there(self, cell: Cell) -> None:
        world = cell(2)
        up(world, "movies", 1, port=8080, resources=SMALL)
        world.person.release("movies", port=8080, resources=SMALL)
        world.until(lambda: world.ready("movies", 1, 2), 30)
        assert (
            "at the same port"
            in next(item for item in world.store.list("replica") if item.spec["release"] == 1).status["ending"]
        )
        world.run(3)
        assert world.at_rest() == []

    def test_on_hosts_of_their_own_one_after_the_other_is_replaced(self, cell: Cell) -> None:
        world = cell(3, hosts=True)
        up(world, "movies", 3, port=8080, resources=SMALL, idempotent=True)
        assert set(world.nodes_of("movies").values()) == {1}
        world.call("movies", 6)
        world.run(2)
        world.watch_lowest("movies")
        world.person.release("movies", "start=3000", port=8080, resources=SMALL, idempotent=True)
        world.until(lambda: world.ready("movies", 3, 2), 60)
        assert world.lowest["movies"] == 2  # there is no fourth host
        assert world.gateway.failed == []

    def test_one_that_cannot_start_is_taken_back(self, cell: Cell) -> None:
        world = cell(2)
        up(world, "movies", 1, port=8080, resources=SMALL)
        world.person.release("movies", "exit=1@100", port=8080, resources=SMALL)
        world.until(lambda: world.status("movies")["rollout"]["state"] == "failed", 60)
        world.until(lambda: world.ready("movies", 1, 1), 30)

    def test_the_port_of_a_lost_node_is_free(self, cell: Cell) -> None:
        world = cell(2)
        up(world, "movies", 1, port=8080, resources=SMALL)
        ((node, _),) = world.copies("movies")
        world.machines[node].kill()
        world.until(lambda: world.ready("movies", 1), 10)
        assert node not in world.nodes_of("movies")

    def test_a_drained_node_gives_its_replica_away_at_the_same_port(self, cell: Cell) -> None:
        world = cell(2)
        up(world, "movies", 1, port=8080, resources=SMALL)
        ((node, _),) = world.copies("movies")
        world.person.drain(node)
        world.until(lambda: node not in world.nodes_of("movies") and world.ready("movies", 1), 30)


class TestOrders:
    def mount(self, workspace: str, user: str, mount: Mount) -> MountOrder:
        if mount.volume == "gone":
            raise NotFound("there is no volume 'gone'")
        if user != "ann":
            raise Forbidden(f"{user or 'this user'} may not mount {mount.path}")
        return MountOrder(volume=mount.volume, root="/srv/data", path=mount.path, target=mount.target, read_only=True)

    def equip(self, control: Control) -> None:
        services = control.loop.services
        services.mount = self.mount
        services.login = lambda workspace, name: RegistryLogin(registry="r.io", username="u", password=f"pw of {name}")

    def test_files_logins_memory_and_ports_reach_the_node(self, cell: Cell) -> None:
        world = cell()
        self.equip(world.controls[0])
        asked = {
            "mounts": (Mount(volume="data", path="/sub", target="/mnt/x"),),
            "image_pull_secrets": ("hub",),
            "shared_memory_mib": 64,
            "ports": (Port(number=9000, exposed=True), Port(number=9001)),
        }
        up(world, "movies", 1, created_by="ann", **asked)
        ((_, copy),) = world.copies("movies")
        assert copy.spec.mounts == (
            MountOrder(volume="data", root="/srv/data", path="/sub", target="/mnt/x", read_only=True),
        )
        assert [login.password for login in copy.spec.logins] == ["pw of hub"]
        assert (copy.spec.shared_memory_mib, len(copy.spec.ports)) == (64, 2)
        (record,) = world.replicas("movies")
        assert [item["host_port"] for item in record.status["ports"]] == [9000]
        for kind in ("replica", "deployment", "release"):  # what was looked up is nowhere recorded
            for item in world.store.list(kind):
                assert "pw of hub" not in str(item.spec) + str(item.status)
                assert "/srv/data" not in str(item.spec) + str(item.status)

    def test_what_is_refused_ends_the_replica_with_the_reason(self, cell: Cell) -> None:
        world = cell()
        self.equip(world.controls[0])
        mounts = (Mount(volume="data", target="/mnt/x"),)
        world.person.deploy("movies", created_by="bob", mounts=mounts)
        world.until(lambda: world.state("movies") == "failed", 60)
        assert "bob may not mount /" in world.status("movies")["rollout"]["reason"]
        world.person.run("count", created_by="ann", mounts=(Mount(volume="gone", target="/mnt/x"),))
        world.until(lambda: world.job("count").get("state") == "failed", 10)
        assert "there is no volume 'gone'" in world.job("count")["reason"]

    def test_without_volumes_and_logins_only_the_nodes_own_folder_is_there(self, cell: Cell) -> None:
        world = cell()
        up(world, "movies", 1, mounts=(Mount(path="/a", target="/mnt/x", read_only=True),))
        ((_, copy),) = world.copies("movies")
        assert copy.spec.mounts == (MountOrder(path="/a", target="/mnt/x", read_only=True),)
        world.person.run("count", image_pull_secrets=("hub",))
        world.until(lambda: world.job("count").get("state") == "failed", 10)
        assert "no image-pull secret 'hub'" in world.job("count")["reason"]

    def test_an_image_that_is_not_used_is_said_once_for_a_release(self, cell: Cell) -> None:
        world = cell()
        up(world, "movies", 2, image="python:3.11", resources=SMALL)
        world.person.change("movies", replicas={"min": 3, "max": 3})
        world.until(lambda: world.ready("movies", 3), 10)
        world.kill_control()
        world.start_control()
        world.person.change("movies", replicas={"min": 4, "max": 4})
        world.until(lambda: world.ready("movies", 4), 15)
        text = "image python:3.11 is not used: nodes of this cell run processes (runtime=process://)"
        assert world.notes.of("deployment/movies", "ImageNotUsed") == [text]
        assert [item.status["image"] for item in world.replicas("movies")] == ["advisory"] * 4
        world.person.release("movies", image="python:3.12", resources=SMALL)
        world.until(lambda: world.ready("movies", 4, 2), 40)
        assert len(world.notes.of("deployment/movies", "ImageNotUsed")) == 2
        world.person.run("count", "exit=0@500", image="alpine", workers=2, retries=1)
        world.until(lambda: world.job("count").get("state") == "succeeded", 10)
        assert len(world.notes.of("job/count", "ImageNotUsed")) == 1


class TestLeaving:
    def test_what_is_in_flight_when_it_is_removed_is_answered(self, cell: Cell) -> None:
        world = cell()
        up(world, "movies", 2)
        world.call("movies", 6, 3000)
        world.run(2)
        world.call("movies", 0)
        under_way = len(world.gateway._requests)
        assert under_way
        world.person.remove("deployment", "movies")
        world.until(lambda: world.store.find("default", "deployment", "movies") is None, 20)
        assert world.gateway.failed == []
        assert [route.name for route in world.gateway.live.routes] == []
        assert world.copies("movies") == []

    def test_new_requests_meanwhile_are_refused_not_held(self, cell: Cell) -> None:
        world = cell()
        up(world, "movies", 1, drain_s=5)
        world.call("movies", 2, 4000)
        world.run(1)
        world.person.remove("deployment", "movies")
        world.run(1)
        (route,) = world.gateway.live.routes
        assert not route.activate
        assert not [end for backend in route.backends for end in backend.endpoints]
        world.until(lambda: not world.gateway.live.routes, 20)
        assert world.gateway.held("default", "movies") == 0


def test_releases_beyond_those_that_are_kept_go_and_a_rollback_finds_its_template(cell: Cell) -> None:
    world = cell()
    up(world, "movies", 1, "start=100", idempotent=True)
    record = world.person.deployment("movies")
    first = world.store.list("release", owner_uid=record.uid)[0]
    for number in range(2, 70):
        document = {**first.spec, "number": number}
        world.store.create("default", "release", f"movies#{number}", document, owner_uid=record.uid)
    world.store.batch([Update(record, spec={**record.spec, "release": 69})])
    world.until(lambda: world.ready("movies", 1, 69), 20)
    world.run(2)
    kept = {int(item.spec["number"]) for item in world.store.list("release", owner_uid=record.uid)}
    assert kept == {1, *range(20, 70)}  # an ended replica of the first is still to be looked at
    world.person.release("movies", "exit=1@100")
    world.until(lambda: world.status("movies")["rollout"]["state"] == "failed", 30)
    ((node, copy),) = world.copies("movies")
    world.kill_control()
    world.start_control()
    world.machines[node].crash(copy.spec.uid)
    world.until(lambda: world.ready("movies", 1, 69), 20)  # by its template, read from the store


def test_a_walk_of_options_ends_at_rest(cell: Cell) -> None:
    world = cell(4, options=Options())
    up(world, "movies", 3, spread="required", resources=SMALL, idempotent=True)
    up(world, "fixed", 1, port=7000, resources=SMALL)
    world.person.deploy("box", pod=True, ports=(Port(number=22, exposed=True),), resources=SMALL)
    world.until(lambda: world.state("box") == "ready", 10)
    for node in ("node-1", "node-2", "node-3", "node-4"):
        world.machines[node].kill()
        world.run(25)
        world.machines[node].restore(empty=node == "node-2")
        world.run(10)
    world.person.release("movies", resources=SMALL, idempotent=True)
    world.person.release("fixed", port=7000, resources=SMALL)
    world.run(40)
    assert world.at_rest() == []
