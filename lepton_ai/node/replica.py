"""One replica on its node, from the order to run it to the record of its end.

Owns its folder (see `shim` for what lies there, plus replica.json, the order, and life.json, what the agent knows)
and its phase. Does not know the node's other replicas, nor who may give orders: that is the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, cast

from lepton_ai.errors import Busy, Conflict, LeptonError
from lepton_ai.node import enter, launch, shim
from lepton_ai.node.background import background
from lepton_ai.node.identity import Identity
from lepton_ai.node.log import ReplicaLog
from lepton_ai.node.maps import Maps
from lepton_ai.node.metrics import Target, Use
from lepton_ai.node.ports import Ports
from lepton_ai.node.probe import probe
from lepton_ai.node.runtime import Isolation, Runtime
from lepton_ai.spec.container import PortMap
from lepton_ai.spec.replica import Exit, FetchBlob, Phase, ReplicaReport, ReplicaSpec

STARTING_S = 0.1
PORT_TRIES = 4
IN_USE = ("address already in use", "eaddrinuse", "errno 98]", "errno 48]", "port is already", "address in use")

_log = logging.getLogger(__name__)


class Replica:
    """Runs one replica; `changed` is called at every change of what `report` says.

    Args:
        fetch: brings a blob into the node's cache and returns its file.
        lease_ns: until when (on `shim.clock_ns`) an exclusive replica may live.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        folder: Path,
        *,
        address: str,
        runtime: Runtime,
        ports: Ports,
        fetch: Callable[[FetchBlob], Awaitable[Path]],
        changed: Callable[[], None],
        lease_ns: Callable[[float], int],
    ) -> None:
        self.spec, self.folder, self.address = spec, folder, address
        self._runtime, self._fetch = runtime, fetch
        self._maps = Maps(ports, forwards=runtime.forwards, hold=runtime.holds)
        self._changed, self._lease_ns = changed, lease_ns
        self.log = ReplicaLog(folder / "log")
        self.phase: Phase = "fetching" if spec.blobs or runtime.image(spec) == "used" else "starting"
        self.reason = ""
        self.use = Use()
        self._exit: Exit | None = None
        self._tries = 0
        self._ready_ms = 0
        self._why = ""
        self._stopping = False
        self._begun = False
        self._how = _how(runtime)
        self._released = False
        self._releasing = asyncio.Lock()
        self._grace_s = spec.grace_s
        self._limits: Literal["cgroup", "rlimit", "none"] = "none"
        self._child: Identity | None = None
        self._started_ms = 0
        self._groups: tuple[str, ...] = ()
        self._last_log = ""
        self._task: asyncio.Task[None] | None = None
        self._health: asyncio.Task[None] | None = None

    # --- orders -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Record the order and run it. Raises OSError when it cannot be recorded."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.folder / "replica.json.tmp"
        temporary.touch(mode=0o600)
        temporary.write_text(self.spec.model_dump_json())
        temporary.rename(self.folder / "replica.json")
        self._task = asyncio.create_task(self._run(adopt=False))

    def adopt(self) -> None:
        """Take up what an earlier agent began: what runs goes on, what ended is known."""
        life = shim.read_record(str(self.folder / "life.json")) or {}
        self._tries, self._begun = int(life.get("tries", 0)), bool(life.get("begun", False))
        self._ready_ms, self._why = int(life.get("ready_ms", 0)), str(life.get("why", ""))
        self._how = str(life.get("how", "process/none"))
        self._stopping = bool(life.get("stopping", False))
        port = life.get("port")
        # An agent of an earlier release recorded the port only.
        maps = life.get("maps") or ([] if port is None else [{"number": port, "host_port": port}])
        found = [PortMap.model_validate(one) for one in maps]
        self._maps.adopt(found, served=port is not None, running=False)
        if life.get("exit"):
            self._finish(Exit.model_validate(life["exit"]))
            return
        state = launch.state(self.folder)
        if state.phase == "exited" and state.exit is not None:
            self._look()
            self._finish(state.exit)
            return
        self._maps.adopt(found, served=port is not None, running=state.phase == "running")
        self._look()
        if state.phase == "running":
            # Said at once, so that a restart of the agent takes no replica out of the gateway.
            self.phase = "stopping" if self._stopping else "ready" if self._ready_ms else "starting"
            if self._how != (now := _how(self._runtime)):
                # It must not go on with less, or with other, than what is said of it from now on.
                self.stop(None, f"lost: this node runs replicas as {now} now, not {self._how}")
        self._task = asyncio.create_task(self._run(adopt=True))

    def stop(self, grace_s: float | None, reason: str) -> None:
        """Ask for its end; idempotent (a later, shorter grace holds). Returns at once."""
        if self._exit is not None:
            return
        first, self._stopping = not self._stopping, True
        self._why = self._why or reason
        self._grace_s = self.spec.grace_s if grace_s is None else grace_s
        if not self._shim_alive() and self._child is None:
            if self.phase == "fetching" and self._task is not None:
                self._task.cancel()
                self._finish(Exit(reason="stopped before it had started", ended_ms=_now_ms()))
            return  # a shim that is being started now is stopped by that very step
        self._set("stopping", self._why)
        if first:
            self._save()
        launch.stop(self.folder, self._grace_s, reason=self._why, wait=False)

    def renew(self, deadline_ns: int) -> None:
        """Let an exclusive replica live until then."""
        if self.spec.exclusive and self._exit is None and not self._stopping and self._child is not None:
            with contextlib.suppress(OSError):  # not written: it ends at its earlier deadline, which is safe
                launch.renew(self.folder, deadline_ns)

    async def close(self) -> None:
        """Stop looking after it; the replica itself goes on."""
        for task in (self._task, self._health):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self._exit is not None

    def target(self) -> Target | None:
        """What to measure, while it runs."""
        return None if self._child is None or self.ended else Target(self._child.pid, self._groups)

    def report(self) -> ReplicaReport:
        return ReplicaReport.model_construct(
            uid=self.spec.uid,
            phase=self.phase,
            reason=self.reason,
            address=self.address if self._maps.maps else None,
            port=self._maps.host_port,
            inner_address=None if self.ended else self._runtime.reached(self.spec),
            pid=None if self._child is None or self.ended else self._child.pid,
            started_ms=self._started_ms,
            ready_ms=self._ready_ms,
            exit=self._exit,
            limits=self._limits,
            isolation=cast(Isolation, self._how.partition("/")[2]),
            ports=self._maps.others,
            image=self._runtime.image(self.spec),
            cpu_milli=0 if self.ended else self.use.cpu_milli,
            memory_mib=0 if self.ended else self.use.memory_mib,
            gauges=None if self.ended else self.use.gauges,
            last_log=self._last_log,
        )

    def look_at_log(self) -> None:
        """Refresh the last line of the log, which a report carries while something is wrong."""
        lines = [line.line for line in self.log.last() if line.line.strip()]
        self._last_log = lines[-1][:1000] if lines else ""

    async def release(self) -> None:
        """Give back what it had around its process once it has ended; called again until nothing in it is dying."""
        if self.ended and not self._released:
            async with self._releasing:
                self._released = self._released or await asyncio.to_thread(
                    self._runtime.release, self.spec, self._groups
                )

    # --- its life -----------------------------------------------------------------------------------------------

    async def _run(self, *, adopt: bool) -> None:
        try:
            if adopt:
                await asyncio.to_thread(launch.settle, self.folder)
            if not adopt or launch.state(self.folder).phase == "absent":
                if adopt and self.spec.exclusive:
                    self._finish(Exit(reason="lost: the agent restarted before it had started", ended_ms=_now_ms()))
                    return
                await self._start()
            while True:
                ended = await self._watch()
                if not self._port_was_taken(ended):
                    self._finish(ended)
                    await self.release()
                    return
                _log.warning("replica %s found port %s in use; trying another", self.spec.uid, self._maps.port)
                self._maps.free()
                self._set("starting", f"port {self._maps.port} was in use")
                await self._start()
        except LeptonError as error:
            self._finish(Exit(reason=error.message, ended_ms=_now_ms()))
        except Exception as error:  # noqa: BLE001 - one broken replica must not stop the agent, nor be silent
            _log.exception("replica %s", self.spec.uid)
            self._finish(Exit(reason=f"the node cannot run it: {error}", ended_ms=_now_ms()))

    async def _start(self) -> None:
        """Blobs, a port, a shim. Raises LeptonError."""
        blobs: dict[str, Path] = {}
        if self.spec.blobs:
            self._set("fetching", f"fetching {len(self.spec.blobs)} blobs")
        for blob in self.spec.blobs:
            blobs[blob.ref.path] = await self._fetch(blob)
        if self._runtime.image(self.spec) == "used":
            await self._bring()
        self._set("starting", "starting")
        self._maps.take(self.spec)
        self._tries, self._begun, self._how = self._tries + 1, False, _how(self._runtime)
        self._save()
        if self._stopping:
            raise Conflict("stopped before it had started")
        if self.spec.exclusive:
            deadline_ns = self._lease_ns(self.spec.lease_s)
            if deadline_ns <= shim.clock_ns():
                raise Busy("its lease ended before it could start")
            launch.renew(self.folder, deadline_ns)
        # Shielded: a shim once begun must be known, also when this task is cancelled meanwhile.
        await asyncio.shield(asyncio.to_thread(self._launch, blobs))
        self._look()
        self._stop_late()

    async def _bring(self) -> None:
        """What the runtime itself has to fetch, which may take minutes."""
        loop = asyncio.get_running_loop()

        def work(unwanted: Callable[[], bool]) -> None:
            def say(text: str) -> None:
                if unwanted():
                    raise Conflict("stopped before it had started")
                loop.call_soon_threadsafe(self._set, "fetching", text)

            self._runtime.fetch(self.spec, say)

        self._set("fetching", f"fetching image {self.spec.image}")
        await background(work)

    def _stop_late(self) -> None:
        """Carry out an order to stop that came while the shim was being started."""
        if self._stopping:
            self.stop(self._grace_s, self._why)

    def _launch(self, blobs: dict[str, Path]) -> None:
        maps = self._maps
        launch.launch(self.folder, self._runtime.prepare(self.spec, self.folder, maps.port, blobs, maps.maps))

    async def _begin(self) -> None:
        """Once a start: the runtime's part that needs the running child."""
        try:
            await asyncio.to_thread(self._runtime.started, self.spec, self.folder)
        except LeptonError as error:
            _log.warning("replica %s: %s", self.spec.uid, error)
            self.stop(None, error.message)
            return
        self._read_groups()
        self._begun = True
        self._save()

    async def _watch(self) -> Exit:
        """Until the shim has ended; health is looked after meanwhile."""
        running = Identity.read(self.folder / "shim.json")
        if running is not None and running.alive():
            self._look()
            if not self._begun:
                await self._begin()
            self._health = asyncio.create_task(self._look_after_health())
            try:
                await running.wait(STARTING_S)
            finally:
                self._health.cancel()
        state = launch.state(self.folder)
        if state.phase == "exited" and state.exit is not None:
            return state.exit
        await asyncio.to_thread(launch.clear, self.folder)
        return Exit(reason="lost: its shim was killed", started_ms=self._started_ms, ended_ms=_now_ms())

    async def _look_after_health(self) -> None:
        health, began_s, failures = self.spec.health, time.monotonic(), 0
        # A job's port is for its own workers: the work is to run it, whether and when it listens is its own affair.
        if (port := self._maps.host_port) is None or self.spec.owner_kind == "job":
            if not self._stopping:
                self._become_ready()
            return
        while True:
            why = await probe(self.address, port, health)
            if self._stopping:
                return
            if why is None:
                failures = 0
                self._become_ready()
            elif not self._ready_ms:
                self._set("starting", why)
                if time.monotonic() - began_s >= health.startup_deadline_s:
                    self.stop(None, f"not ready within {health.startup_deadline_s:g} s: {why}")
                    return
            else:
                failures += 1
                if failures >= health.failures:
                    self.look_at_log()
                    self._set("unready", why)
            await asyncio.sleep(health.interval_s if self._ready_ms else STARTING_S)

    def _become_ready(self) -> None:
        if not self._ready_ms:
            self._ready_ms = _now_ms()
            self._save()
        self._set("ready", "")

    def _finish(self, end: Exit) -> None:
        """Record the end, once and for good."""
        if self._exit is not None:
            return
        if self._why and end.reason != self._why:
            end = end.model_copy(update={"reason": f"{self._why}; {end.reason}" if end.reason else self._why})
        # Noted before it is said, so that an agent that starts next says the same.
        self._exit = end
        self._save()
        self._started_ms = end.started_ms or self._started_ms
        self._maps.free()
        self._read_groups()
        self.look_at_log()
        if end.code == enter.FAILED and self._last_log.startswith(enter.SIGN):
            end = self._exit = end.model_copy(update={"reason": self._last_log.removeprefix("lepton: ")})
            self._save()
        self._set("exited", end.reason or end.describe())

    def _port_was_taken(self, end: Exit) -> bool:
        """Whether another process took the port between our look and the replica's own bind."""
        if self._ready_ms or self._stopping or self._tries >= PORT_TRIES:
            return False
        if self.spec.port is not None or self._maps.port is None or end.code in (0, None):
            return False
        if self._runtime.forwards:  # its ports are its own
            return False
        text = "\n".join(line.line for line in self.log.last()[-20:]).lower()
        return any(sign in text for sign in IN_USE)

    def _look(self) -> None:
        """Read who the child is."""
        record = shim.read_record(str(self.folder / "child.json"))
        child = Identity.read(self.folder / "child.json")
        if record is not None and child is not None:
            self._child, self._started_ms = child, int(record.get("started_ms", 0))
            self._read_groups()

    def _read_groups(self) -> None:
        spec = shim.read_record(str(self.folder / "spec.json")) or {}
        self._groups = tuple(shim.all_groups(str(self.folder), spec.get("cgroup") or []))
        if spec:
            self._limits = self._runtime.limits(self._groups)

    def _shim_alive(self) -> bool:
        running = Identity.read(self.folder / "shim.json")
        return running is not None and running.alive()

    def _set(self, phase: Phase, reason: str) -> None:
        if (phase, reason) != (self.phase, self.reason):
            self.phase, self.reason = phase, reason
            self._changed()

    def _save(self) -> None:
        life: dict[str, object] = {"port": self._maps.host_port, "tries": self._tries, "ready_ms": self._ready_ms}
        life |= {"why": self._why[:300], "stopping": self._stopping, "begun": self._begun, "how": self._how}
        life["maps"] = [one.model_dump() for one in self._maps.maps]
        life["exit"] = None if self._exit is None else self._exit.model_dump()
        try:
            shim.write_record(str(self.folder / "life.json"), life)
        except OSError as error:
            # The replica goes on; only a restart of the agent would know less.
            _log.warning("replica %s: cannot write life.json: %s", self.spec.uid, error)


def _how(runtime: Runtime) -> str:
    return f"{runtime.name}/{runtime.isolation}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
