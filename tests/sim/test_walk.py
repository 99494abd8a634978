"""Random walks: whatever happens in whatever order, a cell that is then left alone ends as it is wanted.

Failures are chosen so that every deployment that survives the loss of a node keeps at least one copy that callers
reach; then no request of theirs may fail or even wait. The message of a failure begins with the seed and what was done.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from sim.world import World

from lepton_ai.spec.container import Port

Cell = Callable[..., World]
SOAK = os.environ.get("LEPTON_AI_SOAK") == "1"
SEEDS, STEPS = (range(1000, 1400), 80) if SOAK else (range(6), 40)
"""a sample in `make test`, the full count in `make soak`"""
SAFE = ("movies", "songs")
OTHERS = ("plain", "ledger", "sleepy", "box", "fixed")
ENDS = {"succeeded", "failed", "stopped"}


class Walk:
    """One walk over `world`. `log` tells what was done, for the message of a failure."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.rng = world, random.Random(seed)
        self.log: list[str] = []
        self.jobs: dict[str, str] = {}
        self.count = 0
        self.events: list[tuple[int, Callable[[], None]]] = [
            (6, self.crash), (4, self.kill_node), (6, self.return_node), (4, self.partition), (4, self.kill_agent),
            (3, self.bad_network), (6, self.kill_control), (3, self.second_control), (3, self.freeze),
            (4, self.gateway_mood), (6, self.change_spec), (6, self.release), (3, self.drain), (2, self.jump),
            (4, self.job), (2, self.remove_job), (2, self.sicken), (3, self.load),
        ]  # fmt: skip

    def begin(self) -> None:
        person, world = self.world.person, self.world
        person.deploy("movies", replicas={"min": 3, "max": 3}, survive={"node": 1}, idempotent=True)
        person.deploy(
            "songs", replicas={"min": 2, "max": 4}, survive={"node": 1}, idempotent=True, target_in_flight=4.0
        )
        person.deploy("plain", replicas={"min": 2, "max": 2})
        person.deploy("ledger", exclusive=True)
        person.deploy("sleepy", idle_timeout_s=20)
        person.deploy("box", pod=True, ports=(Port(number=2222, exposed=True),))
        person.deploy("fixed", port=8080, spread="required")
        world.until(lambda: all(world.state(n) == "ready" for n in (*SAFE, *OTHERS)), 20)
        for name, count in (("movies", 4), ("songs", 3), ("plain", 2), ("ledger", 1)):
            world.call(name, count)
        world.run(2)

    def go(self, steps: int) -> None:
        weights = [weight for weight, _ in self.events]
        for _ in range(steps):
            event = self.rng.choices(self.events, weights)[0][1]
            event()
            self.world.run(self.rng.choice((0.1, 0.3, 1.0, 2.0, 4.0)))
            if not self.world.controls and self.rng.random() < 0.5:
                self.note("control starts")
                self.world.start_control()

    def end(self) -> None:
        """All that was broken is whole again; then quiet."""
        world = self.world
        world.network.loss = world.network.double = 0.0
        world.network.late_ms = 0
        world.gateway.refuse = world.gateway.lose = world.gateway.mute = False
        world.gateway.slow_ms = 0
        world.store.at = -1
        for machine in world.machines.values():
            if not machine.powered:
                machine.restore(empty=self.rng.random() < 0.5)
            if not machine.agent:
                machine.start_agent()
            machine.heal()
            world.person.drain(machine.name, False)
            for uid, copy in machine.copies.items():
                if copy.sick and copy.lives:
                    machine.sicken(uid, False)
        for control in world.controls:
            control.frozen = False
        if not world.controls:
            world.start_control()
        world.gateway.callers.clear()
        world.until(lambda: not world.at_rest() and self._jobs_ended(), 400, world.at_rest)
        world.run(25)  # what may sleep falls asleep
        world.until(lambda: not world.at_rest(), 10)
        world.run(5)
        wrong = world.at_rest()
        assert not wrong, f"{wrong}\n{world.tell()}"

    def _jobs_ended(self) -> bool:
        return all(self.world.job(name).get("state") in ENDS for name in self.jobs)

    # -- what happens

    def note(self, text: str) -> None:
        self.log.append(f"{self.world.clock.elapsed_ms()}: {text}")

    def safe_without(self, *, node: str = "", uid: str = "") -> bool:
        """Whether callers still reach what must survive when this node, or copy, is gone."""
        for name in SAFE:
            routed = self.world.routed(name)
            left = [
                copy
                for where, copy in self.world.serving(name)
                if where != node and copy.spec.uid != uid and copy.spec.uid in routed
                and not self.world.machines[where].dark
            ]  # fmt: skip
            if not left:
                return False
        return True

    def crash(self) -> None:
        copies = [
            (machine, copy)
            for machine in self.world.machines.values()
            for copy in machine.copies.values()
            if copy.lives
        ]
        if copies:
            machine, copy = self.rng.choice(copies)
            if machine.powered and self.safe_without(uid=copy.spec.uid) and copy.spec.owner_kind != "job":
                self.note(f"crash {copy.spec.name}")
                machine.crash(copy.spec.uid)

    def sicken(self) -> None:
        name = self.rng.choice(("plain", "movies"))
        for node, copy in self.world.serving(name)[:1]:
            if self.safe_without(uid=copy.spec.uid):
                self.note(f"sick {copy.spec.name}")
                self.world.machines[node].sicken(copy.spec.uid)

    def kill_node(self) -> None:
        machine = self.rng.choice(list(self.world.machines.values()))
        if machine.powered and self.safe_without(node=machine.name):
            self.note(f"kill {machine.name}")
            machine.kill()

    def return_node(self) -> None:
        for machine in self.world.machines.values():
            if self.rng.random() < 0.5:
                continue
            if not machine.powered:
                self.note(f"restore {machine.name}")
                machine.restore(empty=self.rng.random() < 0.5)
            elif not machine.agent:
                self.note(f"start agent of {machine.name}")
                machine.start_agent()
            elif machine.cut:
                self.note(f"heal {machine.name}")
                machine.heal()

    def partition(self) -> None:
        machine = self.rng.choice(list(self.world.machines.values()))
        dark = self.rng.random() < 0.3
        if machine.powered and not machine.cut and (not dark or self.safe_without(node=machine.name)):
            self.note(f"cut {machine.name} {'dark' if dark else ''}")
            machine.partition(dark=dark)

    def kill_agent(self) -> None:
        machine = self.rng.choice(list(self.world.machines.values()))
        if machine.powered:
            self.note(f"kill agent of {machine.name}")
            machine.kill_agent()

    def bad_network(self) -> None:
        network = self.world.network
        network.loss, network.double = self.rng.choice((0.0, 0.3)), self.rng.choice((0.0, 0.3))
        network.late_ms = self.rng.choice((0, 300, 2000))
        self.note(f"network loses {network.loss}, doubles {network.double}, delays {network.late_ms}")

    def kill_control(self) -> None:
        if self.rng.random() < 0.7:
            self.world.store.at = self.rng.randrange(1, 12)
            self.note(f"control dies at instant {self.world.store.at}")
        else:
            self.note("control dies")
            self.world.kill_control()

    def second_control(self) -> None:
        if len(self.world.controls) < 3:
            self.note("another control starts")
            self.world.start_control()

    def freeze(self) -> None:
        for control in self.world.controls:
            control.frozen = self.rng.random() < 0.5
        self.note(f"frozen: {[control.name for control in self.world.controls if control.frozen]}")

    def gateway_mood(self) -> None:
        gateway = self.world.gateway
        gateway.refuse, gateway.lose = self.rng.random() < 0.25, self.rng.random() < 0.25
        gateway.mute, gateway.slow_ms = self.rng.random() < 0.25, self.rng.choice((0, 0, 600))
        self.note(f"gateway {gateway.refuse=} {gateway.lose=} {gateway.mute=} {gateway.slow_ms=}")

    def change_spec(self) -> None:
        name, low = self.rng.choice(("songs", "plain", "sleepy", "box", "fixed")), self.rng.choice((1, 2, 3))
        if name in ("box", "fixed"):  # one, or stopped
            self.note(f"{name} wants {low % 2}")
            self.world.person.change(name, replicas={"min": low % 2, "max": 1})
            return
        if name == "songs":
            low = max(2, low)
        elif self.rng.random() < 0.2:
            low = 0
        self.note(f"{name} wants {low}")
        self.world.person.change(name, replicas={"min": low, "max": max(low, 4)})

    def release(self) -> None:
        name = self.rng.choice((*SAFE, "plain", "ledger", "box", "fixed"))
        words = self.rng.choice((("start=300",), ("start=2000",), ("exit=1@200", "log=boom"), ("never",)))
        own: dict[str, Any] = {"exclusive": name == "ledger", "port": 8080 if name == "fixed" else None}
        if name == "box":  # it is ready when it runs, so that one that ends is no failed start: it is started again
            words = ("start=300",)
            own["ports"] = (Port(number=2222, exposed=True),)
        number = self.world.person.release(
            name, *words, idempotent=name in SAFE, health={"startup_deadline_s": 5}, **own
        )
        self.note(f"{name}#{number} {words}")

    def drain(self) -> None:
        name = self.rng.choice(list(self.world.machines))
        drained = self.rng.random() < 0.5
        self.note(f"drain {name} {drained}")
        self.world.person.drain(name, drained)

    def jump(self) -> None:
        self.note("the wall clock jumps")
        self.world.clock.jump(self.rng.choice((-1, 1)) * 3_600_000)

    def job(self) -> None:
        self.count += 1
        name = f"job-{self.count}"
        words, wanted = self.rng.choice(((("exit=0@3000",), "succeeded"), (("exit=2@500",), "failed")))
        workers = self.rng.choice((1, 1, 3))
        self.jobs[name] = wanted
        self.note(f"run {name} {words} x{workers}")
        tries = {"retries": self.rng.choice((0, 1)), "job_retries": self.rng.choice((0, 0, 2))}
        self.world.person.run(name, *words, workers=workers, rendezvous=self.rng.random() < 0.5, **tries)

    def remove_job(self) -> None:
        if self.jobs:
            name = self.rng.choice(list(self.jobs))
            self.note(f"remove {name}")
            del self.jobs[name]
            self.world.person.remove("job", name)

    def load(self) -> None:
        count = self.rng.choice((1, 6, 10))
        self.note(f"songs are called by {count}")
        self.world.call("songs", count)


def walk(cell: Cell, seed: int, steps: int) -> None:
    world = cell(6, seed=seed, reuse_ports=False)  # real ones are drawn from twelve thousand
    walk = Walk(world, seed)
    try:
        walk.begin()
        walk.go(steps)
        walk.end()
        assert [text for text in world.gateway.failed if any(f": {name}:" in text for name in SAFE)] == []
        assert [text for text in world.gateway.waited if any(f": {name}:" in text for name in SAFE)] == []
        assert {name: world.job(name)["state"] for name in walk.jobs} == walk.jobs
    except AssertionError as error:
        raise AssertionError(f"seed {seed}\n" + "\n".join(walk.log) + f"\n{error}") from error


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_walk(cell: Cell, seed: int) -> None:
    walk(cell, seed, STEPS)
