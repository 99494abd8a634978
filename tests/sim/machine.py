"""A node as control sees it: an agent that obeys orders, and copies of programs that start, serve, fail and end.

What a program does stands in its command: ("run", "start=800", "exit=3@500", "never", "term=200", "log=boom"):
ready after `start` ms, ends with code 3 500 ms after its start, is never healthy, needs 200 ms to end after TERM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sim.clock import FakeClock

from lepton_ai.errors import Conflict, StaleEpoch, Unsupported
from lepton_ai.spec.container import PortMap
from lepton_ai.spec.replica import Exit, NodeReport, Phase, ReplicaReport, ReplicaSpec
from lepton_ai.spec.replica import Machine as Spec
from lepton_ai.spec.workload import Resources

FIRST_PORT = 20_000
ADDRESS = "127.0.0.1"
NETWORK_MS = 300
"""What a machine with networks for its replicas needs to make one: the ports are chosen before."""


@dataclass
class Ports:
    """The ports of one address, shared by all machines. With `reuse` the lowest free one is given: the worst case."""

    reuse: bool = True
    taken: set[int] = field(default_factory=set)
    last: int = FIRST_PORT

    def take(self, wanted: int | None = None) -> int:
        """A free one, or `wanted`: raises Conflict when that is taken."""
        if wanted is not None:
            if wanted in self.taken:
                raise Conflict(f"port {wanted} is given to another replica")
            self.taken.add(wanted)
            return wanted
        port = FIRST_PORT if self.reuse else self.last + 1
        self.last = port
        while port in self.taken:
            port += 1
        self.taken.add(port)
        return port


@dataclass(frozen=True)
class Program:
    """What a command does."""

    start_ms: int = 800
    never: bool = False
    code: int | None = None
    exit_ms: int = 0
    term_ms: int = 100
    log: str = ""

    @classmethod
    def of(cls, command: tuple[str, ...]) -> Program:
        values: dict[str, object] = {}
        for word in command[1:]:
            key, _, text = word.partition("=")
            if key == "exit":
                code, _, after = text.partition("@")
                values.update(code=int(code), exit_ms=int(after or 0))
            elif key == "never":
                values["never"] = True
            elif key in ("start", "term"):
                values[f"{key}_ms"] = int(text)
            elif key == "log":
                values["log"] = text
        return cls(**values)  # type: ignore[arg-type]


@dataclass
class Copy:
    """One running copy on a machine."""

    spec: ReplicaSpec
    program: Program
    begun_ms: int
    phase: Phase = "starting"
    reason: str = ""
    port: int | None = None
    ports: tuple[PortMap, ...] = ()
    pid: int | None = None
    started_ms: int = 0
    ready_ms: int = 0
    exit: Exit | None = None
    sick: bool = False
    term_ms: int | None = None
    why: str = ""
    lease_ms: int = 0

    @property
    def lives(self) -> bool:
        return self.exit is None

    @property
    def serves(self) -> bool:
        """Whether a request that comes now is answered: TERM ends that at once, as it does for a bare command."""
        return self.exit is None and self.ready_ms > 0 and not self.sick and self.term_ms is None


class Machine:
    """One node. `cut`: control does not reach it; `dark`: callers do not either."""

    def __init__(self, name: str, clock: FakeClock, ports: Ports, capacity: Resources, address: str = ADDRESS) -> None:
        self.name, self.capacity, self.address = name, capacity, address
        self.identity = "one-machine" if address == ADDRESS else f"machine of {name}"
        self._clock, self._ports = clock, ports
        self.copies: dict[str, Copy] = {}
        self.powered, self.agent, self.cut, self.dark = True, True, False, False
        self.cut_since_ms = 0
        self.epoch = 0
        self.version = 0
        self._starts = 1
        self._contact_ms = 0
        self._pids = 0
        self._report: tuple[int, NodeReport] | None = None
        self.refuses = ""
        self.forwards = False
        self.refused: dict[str, str] = {}
        self.said: dict[str, Any] = {}
        self.uses: dict[str, tuple[int, int]] = {}

    # -- what it measures

    def says(self, **fields: Any) -> None:
        """From now on its report has these fields, whatever is so: `cpu_used_milli=3500`, `gauges=…`."""
        self.said.update(fields)
        self.version += 1

    def works(self, uid: str, cpu_milli: int, memory_mib: int = 0) -> None:
        """From now on that copy uses so much; the node's own use is the sum of its copies'."""
        self.uses[uid] = cpu_milli, memory_mib
        self.version += 1

    # -- the agent's verbs

    def apply(self, spec: ReplicaSpec, epoch: int) -> None:
        self._obey(epoch)
        if spec.uid in self.copies:
            return
        if self.refuses:
            self.refused[spec.uid] = self.refuses
            raise Unsupported(self.refuses)
        copy = Copy(spec, Program.of(spec.command), self._clock.elapsed_ms())
        self.copies[spec.uid] = copy
        self.version += 1
        try:
            self._take_ports(copy)
        except Conflict as error:
            self._end(copy, Exit(reason=error.message, ended_ms=self._clock.now_ms()))
            return
        if not self.forwards:
            self._launch(copy)
        copy.lease_ms = self._contact_ms + round(spec.lease_s * 1000)

    def stop(self, uid: str, epoch: int) -> None:
        self._obey(epoch)
        copy = self.copies.get(uid)
        if copy is not None:
            self._term(copy, "stopped")

    def forget(self, uid: str, epoch: int) -> None:
        self._obey(epoch)
        copy = self.copies.get(uid)
        if copy is None:
            return
        if copy.lives:
            raise Conflict(f"replica {uid} is {copy.phase}")
        del self.copies[uid]
        self.version += 1

    def keepalive(self, epoch: int) -> None:
        self._obey(epoch)

    def report(self) -> NodeReport:
        if self._report is None or self._report[0] != self.version:
            copies = tuple(self._say(copy) for copy in self.copies.values())
            uses = [self.uses.get(copy.spec.uid, (0, 0)) for copy in self.copies.values() if copy.lives]
            values: dict[str, Any] = dict(
                node=self.name,
                boot_id=f"boot-{self.name}",
                agent_uid=f"agent-{self.name}-{self._starts}",
                protocol=1,
                time_ms=self._clock.now_ms(),
                address=self.address,
                capacity=self.capacity,
                cpu_used_milli=sum(cpu for cpu, _ in uses),
                memory_used_mib=sum(memory for _, memory in uses),
                disk_free_mib=1000,
                epoch=self.epoch,
                forwards=self.forwards,
                machine=Spec(id=self.identity),
                replicas=copies,
            )
            self._report = (self.version, NodeReport.model_construct(**{**values, **self.said}))
        return self._report[1]

    # -- what happens to it

    def kill(self) -> None:
        """Power off: nothing of what ran is left."""
        self.powered = False
        for copy in self.copies.values():
            self._free(copy)
            if copy.lives:
                copy.exit = Exit(reason="lost: its shim was killed", ended_ms=self._clock.now_ms())
                copy.phase, copy.reason = "exited", copy.exit.reason
        self.version += 1

    def restore(self, *, empty: bool) -> None:
        """Power on: with an empty disk, or with the records of what ran there."""
        if empty:
            self.copies.clear()
            self.epoch = 0
        self.powered, self.agent, self.cut, self.dark = True, True, False, False
        self._restarted()

    def kill_agent(self) -> None:
        """The agent dies; what it started runs on."""
        self.agent = False

    def start_agent(self) -> None:
        self.agent = True
        self._restarted()

    def partition(self, *, dark: bool = False) -> None:
        self.cut, self.dark, self.cut_since_ms = True, dark, self._clock.elapsed_ms()

    def heal(self) -> None:
        self.cut = self.dark = False

    def crash(self, uid: str, *, signal: int = 9, log: str = "") -> None:
        """A program ends by itself."""
        copy = self.copies[uid]
        self._end(copy, Exit(signal=signal, started_ms=copy.started_ms, ended_ms=self._clock.now_ms()))

    def sicken(self, uid: str, sick: bool = True) -> None:
        """A program that runs on but answers no health check any more."""
        copy = self.copies[uid]
        copy.sick = sick
        copy.phase, copy.reason = ("unready", "its health check fails") if sick else ("ready", "")
        self.version += 1

    def step(self) -> None:
        """What became of every copy by now."""
        if not self.powered:
            return
        now_ms = self._clock.elapsed_ms()
        for copy in self.copies.values():
            if copy.lives:
                self._live(copy, now_ms)

    # -- within

    def _launch(self, copy: Copy) -> None:
        self._pids += 1
        copy.pid, copy.started_ms = self._pids, self._clock.now_ms()
        self.version += 1

    def _live(self, copy: Copy, now_ms: int) -> None:
        program, age_ms = copy.program, now_ms - copy.begun_ms
        if copy.pid is None and age_ms >= NETWORK_MS:
            self._launch(copy)
        if copy.spec.exclusive and now_ms > copy.lease_ms:
            self._end(copy, Exit(signal=9, reason="lease lost", ended_ms=self._clock.now_ms()))
        elif copy.term_ms is not None:
            if now_ms - copy.term_ms >= program.term_ms:
                end = Exit(signal=15, reason=copy.why, started_ms=copy.started_ms, ended_ms=self._clock.now_ms())
                self._end(copy, end)
        elif program.code is not None and age_ms >= program.exit_ms:
            end = Exit(code=program.code, started_ms=copy.started_ms, ended_ms=self._clock.now_ms())
            self._end(copy, end)
        elif not copy.ready_ms:
            if not program.never and (age_ms >= program.start_ms or copy.port is None):
                copy.ready_ms, copy.phase, copy.reason = self._clock.now_ms(), "ready", ""
                self.version += 1
            elif age_ms >= copy.spec.health.startup_deadline_s * 1000:
                self._term(copy, f"not ready within {copy.spec.health.startup_deadline_s:g} s: connection refused")
            elif not copy.reason:
                copy.reason = "connection refused"
                self.version += 1

    def _term(self, copy: Copy, why: str) -> None:
        if copy.lives and copy.term_ms is None:
            copy.term_ms, copy.why = self._clock.elapsed_ms(), why
            copy.phase, copy.reason = "stopping", why
            self.version += 1

    def _end(self, copy: Copy, end: Exit) -> None:
        copy.exit, copy.phase, copy.reason = end, "exited", end.reason or end.describe()
        self._free(copy)
        self.version += 1

    def _take_ports(self, copy: Copy) -> None:
        spec = copy.spec
        if spec.needs_port or spec.port is not None:
            copy.port = self._take(spec.port, spec.prefer_port)
        for port in spec.ports:
            if port.exposed:
                given = PortMap(number=port.number, host_port=self._take(port.number, None), name=port.name)
                copy.ports = (*copy.ports, given)

    def _take(self, number: int | None, preferred: int | None) -> int:
        if preferred is not None and preferred not in self._ports.taken:
            return self._ports.take(preferred)
        return self._ports.take(None if self.forwards else number)

    def _free(self, copy: Copy) -> None:
        self._ports.taken -= {copy.port, *(port.host_port for port in copy.ports)}  # type: ignore[arg-type]

    def _obey(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise StaleEpoch(f"epoch {epoch} has passed: node {self.name} obeys {self.epoch}")
        if epoch > self.epoch:
            self.epoch = epoch
            self.version += 1
        self._contact_ms = self._clock.elapsed_ms()
        for copy in self.copies.values():
            if copy.spec.exclusive and copy.lives:
                copy.lease_ms = self._contact_ms + round(copy.spec.lease_s * 1000)

    def _restarted(self) -> None:
        self._starts += 1
        self._contact_ms = 0
        self.version += 1

    def _say(self, copy: Copy) -> ReplicaReport:
        ended = copy.exit is not None
        return ReplicaReport.model_construct(
            uid=copy.spec.uid,
            phase=copy.phase,
            reason=copy.reason,
            address=self.address if copy.port is not None else None,
            port=copy.port,
            pid=None if ended else copy.pid,
            started_ms=copy.started_ms,
            ready_ms=copy.ready_ms,
            exit=copy.exit,
            limits="none",
            isolation="none",
            inner_address=f"10.0.0.{copy.pid}" if self.forwards and copy.pid and not ended else None,
            ports=copy.ports,
            image="" if copy.spec.image is None else "advisory",
            cpu_milli=0 if ended else self.uses.get(copy.spec.uid, (0, 0))[0],
            memory_mib=0 if ended else self.uses.get(copy.spec.uid, (0, 0))[1],
            last_log=copy.program.log if ended or not copy.ready_ms else "",
        )
