"""A whole cell on a fake clock: machines, network, gateway with callers, control processes, one store. One thread.

Owns the order of a step and what must hold after every one of them (`watched`), and in the end (`at_rest`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from sim.clock import FakeClock
from sim.control import Control, FaultyStore, Killed, Notes
from sim.fleet import Network
from sim.gateway import Callers, FakeGateway
from sim.machine import Copy, Machine, Ports
from sim.person import WORKSPACE, Person

from lepton_ai.control.options import Options
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Record

STEP_MS = 100
NODE = Resources(cpu_milli=4000, memory_mib=8192)


class World:
    """`World(folder)` has three nodes of 4 cores and one control process."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        *,
        seed: int = 0,
        options: Options | None = None,
        capacity: Resources = NODE,
        reuse_ports: bool = True,
        hosts: bool = False,
    ) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.clock = FakeClock()
        self.options = options or Options()
        self.store: FaultyStore = FaultyStore.open(  # type: ignore[assignment]
            f"sqlite:///{folder}/store.db", now_ms=self.clock.now_ms, monotonic_s=self.clock.elapsed_s
        )
        ports = Ports(reuse_ports)
        self.machines: dict[str, Machine] = {}
        for number in range(1, nodes + 1):
            name = f"node-{number}"
            if hosts:  # each with an address, and so with ports, of its own
                self.machines[name] = Machine(name, self.clock, Ports(reuse_ports), capacity, f"10.0.1.{number}")
            else:
                self.machines[name] = Machine(name, self.clock, ports, capacity)
            self.store.create("system", "node", name, {"address": "127.0.0.1", "port": number, "token_file": ""})
        self.network = Network(self.clock, self.machines, random.Random(seed + 1))
        self.gateway = FakeGateway(self.clock, self.machines, random.Random(seed + 2), passing=self._move)
        self.person = Person(self.store)
        self.notes = Notes()
        self.controls: list[Control] = []
        self.monitor_file = folder / "monitor"
        self.start_control()
        self.watched, self.expects_errors = True, False
        self.lowest: dict[str, int] = {}

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.store.close()

    # -- time

    def step(self) -> None:
        self._move(STEP_MS)
        for control in self.controls:
            try:
                control.step()
            except Killed:
                control.kill()
        self.controls = [control for control in self.controls if control.alive]
        if self.watched:
            self._watch()

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 1000 / STEP_MS)):
            self.step()

    def until(self, true: Callable[[], Any], within_s: float = 30.0, what: Callable[[], Any] = lambda: "it") -> float:
        """Steps until `true()`; returns how many seconds it took. Fails after `within_s`."""
        begun_ms = self.clock.elapsed_ms()
        while not true():
            took_s = (self.clock.elapsed_ms() - begun_ms) / 1000
            assert took_s < within_s, f"not within {within_s} s: {what()}\n{self.tell()}"
            self.step()
        return (self.clock.elapsed_ms() - begun_ms) / 1000

    def _move(self, ms: int) -> None:
        """Everything but control, for `ms`."""
        for part in range(0, ms, STEP_MS):
            self.clock.advance(min(STEP_MS, ms - part))
            for machine in self.machines.values():
                machine.step()
            self.network.deliver()
            for control in self.controls:
                control.fleet.step()
            self.gateway.step()

    # -- acting

    def start_control(self) -> Control:
        self.seed += 1
        control = Control(
            self.store, self.clock, self.network, self.gateway, self.notes, self.options, self.seed, self.monitor_file
        )
        self.controls.append(control)
        return control

    def kill_control(self) -> None:
        for control in self.controls:
            control.kill()
        self.controls = []

    def call(self, name: str, count: int, work_ms: int = 300) -> None:
        """From now on, `count` requests of `work_ms` are always under way."""
        self.gateway.callers[(WORKSPACE, name)] = Callers(count, work_ms)

    # -- looking

    def status(self, name: str) -> dict[str, Any]:
        return self.person.deployment(name).status

    def state(self, name: str) -> str:
        return str(self.status(name).get("state"))

    def job(self, name: str) -> dict[str, Any]:
        return self.person.job(name).status

    def replicas(self, name: str) -> list[Record]:
        """The records of what runs, or should, for a deployment or job."""
        found = self.store.find(WORKSPACE, "deployment", name) or self.store.get(WORKSPACE, "job", name)
        return [item for item in self.store.list("replica", owner_uid=found.uid) if item.status["phase"] != "exited"]

    def copies(self, name: str, *, all: bool = False) -> list[tuple[str, Copy]]:
        """(node, copy) of everything of `name` whose process lives."""
        return [
            (machine.name, copy)
            for machine in self.machines.values()
            if machine.powered
            for copy in machine.copies.values()
            if copy.spec.owner == name and copy.lives
        ]

    def serving(self, name: str) -> list[tuple[str, Copy]]:
        return [(node, copy) for node, copy in self.copies(name) if copy.serves]

    def nodes_of(self, name: str) -> Counter[str]:
        return Counter(node for node, _ in self.copies(name))

    def routed(self, name: str) -> set[str]:
        return {
            end.replica
            for route in self.gateway.live.routes
            if route.name == name
            for backend in route.backends
            for end in backend.endpoints
        }

    def ready(self, name: str, count: int, release: int | None = None) -> bool:
        """Exactly `count` copies live, all of them serve, are of `release` and stand in the routes."""
        copies = self.copies(name)
        return (
            len(copies) == count
            and all(copy.serves and (release is None or copy.spec.release == release) for _, copy in copies)
            and self.routed(name) == {copy.spec.uid for _, copy in copies}
        )

    def tell(self) -> str:
        """What is so, for the message of a test that failed."""
        lines = [f"at {self.clock.elapsed_ms()}"]
        for kind in ("node", "deployment", "job"):
            lines += [f"{kind} {item.name}: {item.status}" for item in self.store.list(kind)]
        for item in self.store.list("replica"):
            status = {key: item.status.get(key) for key in ("phase", "reason", "ending", "was")}
            lines.append(f"replica {item.name} on {item.spec['node']}: {status}")
        for machine in self.machines.values():
            copies = {copy.spec.name: copy.phase for copy in machine.copies.values()}
            lines.append(f"machine {machine.name}: {machine.powered=} {machine.cut=} epoch={machine.epoch} {copies}")
        lines += ["failed: " + text for text in self.gateway.failed[:5]]
        return "\n".join(lines)

    # -- what must hold

    def _watch(self) -> None:
        exclusive: Counter[str] = Counter()
        uids: Counter[str] = Counter()
        for machine in self.machines.values():
            if machine.powered:
                for copy in machine.copies.values():
                    uids[copy.spec.uid] += 1
                    if copy.spec.exclusive and copy.lives:
                        exclusive[copy.spec.owner] += 1
        twice = [owner for owner, count in exclusive.items() if count > 1]
        assert not twice, f"{twice} lives twice\n{self.tell()}"
        assert not [uid for uid, count in uids.items() if count > 1], "one replica on two nodes"
        assert not self.gateway.stray, f"{self.gateway.stray[0]}\n{self.tell()}"
        for name in self.lowest:
            self.lowest[name] = min(self.lowest[name], len(self.serving(name)))

    def watch_lowest(self, name: str) -> None:
        """From now on `lowest[name]` is the fewest copies that served at once."""
        self.lowest[name] = len(self.serving(name))

    def at_rest(self) -> list[str]:
        """What is not as it is wanted, in words; empty when all is well."""
        wrong = []
        known: set[str] = set()
        for record in self.store.list("deployment"):
            wrong += self._deployment_at_rest(record)
            known |= {item.uid for item in self.store.list("replica", owner_uid=record.uid)}
        for record in self.store.list("job"):
            if record.status.get("state") not in ("succeeded", "failed", "stopped", "running"):
                wrong.append(f"job {record.name} is {record.status}")
            known |= {item.uid for item in self.store.list("replica", owner_uid=record.uid)}
        for machine in self.machines.values():
            for copy in machine.copies.values() if machine.powered else ():
                if copy.spec.uid not in known:
                    wrong.append(f"nobody wants {copy.spec.name} on {machine.name}")
        wrong += [f"{item.name} has no owner" for item in self.store.list("replica") if item.uid not in known]
        return wrong

    def _deployment_at_rest(self, record: Record) -> list[str]:
        name, status = record.name, record.status
        if record.deleting:
            return [f"{name} is still being removed: {status.get('reason')}"]
        wrong = []
        failed = status["rollout"]["state"] == "failed"
        release = status["serving"] if failed else record.spec["release"]
        wanted = 0 if failed and not release else int(status["wanted"])
        if record.spec["pod"]:
            there = [copy for _, copy in self.copies(name)]
            if len(there) != wanted or any(copy.spec.release != release for copy in there):
                wrong.append(f"pod {name} runs {[copy.spec.name for copy in there]}")
        elif not self.ready(name, wanted, release):
            there = [(node, copy.spec.name, copy.phase) for node, copy in self.copies(name)]
            wrong.append(
                f"{name} wants {status['wanted']} of #{release}, there are {there}, routed {self.routed(name)}"
            )
        if status["ready"] != wanted or status["state"] not in ("ready", "idle", "stopped", "failed"):
            wrong.append(f"{name} says {status}")
        if record.spec.get("survive", {}).get("node") and len(self.machines) >= status["wanted"]:
            crowded = {node: count for node, count in self.nodes_of(name).items() if count > 1}
            if crowded and sum(machine.powered for machine in self.machines.values()) >= status["wanted"]:
                wrong.append(f"{name} is not spread: {crowded}")
        return wrong
