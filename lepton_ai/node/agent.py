"""The agent: runs the replicas that control orders on one machine, and says what is so.

Owns the node's folder (one agent at a time), the set of its replicas, the leader epoch it obeys and the cache of
blobs. A class without transport: `server` puts it on HTTP. Its end ends no replica; its start takes them up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from pydantic import ValidationError

from lepton_ai.blobs.fetch import fetch, trusting
from lepton_ai.blobs.local import LocalBlobs
from lepton_ai.errors import Busy, Conflict, DiskFull, Invalid, NotFound, StaleEpoch, Unavailable
from lepton_ai.node import launch, shim
from lepton_ai.node.gauges import Gauges
from lepton_ai.node.inlet import Inlet
from lepton_ai.node.log import LogLine
from lepton_ai.node.machine import machine
from lepton_ai.node.metrics import Metrics
from lepton_ai.node.ports import Ports
from lepton_ai.node.process import ProcessRuntime
from lepton_ai.node.replica import Replica
from lepton_ai.node.runtime import Runtime
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import FetchBlob, Machine, NodeGauges, NodeReport, ReplicaReport, ReplicaSpec
from lepton_ai.spec.workload import Resources

SAMPLE_S = 2.0
SWEEP_S = 60.0
MAX_REPLICAS = 4096
FETCH_TRIES = 3
_UID = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z-]{0,63}\Z")

_log = logging.getLogger(__name__)


class Agent:
    """Four verbs: `apply`, `stop`, `usage`, `logs`; and `forget`, `keepalive`. All on one event loop.

    Args:
        state_dir: the node's folder.
        capacity: what the node gives to replicas.
        runtime: turns a replica into a shim's command.
        address: where replicas listen.
        ports_dir: shared by all agents of a machine (default: in the temporary folder).
        inlet: where other hosts reach what is served, when `address` is one that they do not.
    """

    def __init__(
        self,
        state_dir: Path,
        node_name: str,
        capacity: Resources,
        runtime: Runtime | None = None,
        *,
        address: str = "127.0.0.1",
        ports_dir: Path | None = None,
        inlet: Inlet | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.dir, self.node, self.capacity, self.address = state_dir.absolute(), node_name, capacity, address
        self.uid = uuid7()
        self.epoch = 0
        self.version = 0
        self._runtime: Runtime = runtime or ProcessRuntime(node_name)
        self._ports = Ports(address, ports_dir)
        self._inlet, self._led = inlet, False
        # The cell's API may have a certificate by the cell's own authority.
        self._http = None if inlet is None else trusting(inlet.ca)
        self._now_ms = now_ms
        self._replicas: dict[str, Replica] = {}
        self._metrics, self._gauges = Metrics(), NodeGauges()
        self._boot_id = shim.boot_id()
        self._machine = Machine()
        self._contact_ns = 0
        self._renewed_ns: dict[str, int] = {}
        self._fetching: dict[str, asyncio.Lock] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._lock = -1

    @property
    def isolated(self) -> bool:
        """Whether its replicas have networks of their own."""
        return self._runtime.forwards

    async def start(self) -> None:
        """Take the folder and every replica in it. Raises Conflict when another agent has it."""
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.dir / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = -1
            raise Conflict(f"another agent runs on {self.dir}", hint="stop it, or choose another --dir") from error
        self._machine = machine(self.dir)
        self._cache = LocalBlobs(self.dir / "blobs")
        self.epoch = int((shim.read_record(str(self.dir / "epoch")) or {}).get("epoch", 0))
        (self.dir / "replicas").mkdir(mode=0o700, exist_ok=True)
        if self._inlet is not None:
            await asyncio.to_thread(self._inlet.start)
        for folder in sorted((self.dir / "replicas").iterdir()):
            self._adopt(folder)
        # Not before all are known: what is not would be closed.
        self._led = True
        self._changed()
        self._tasks = [asyncio.create_task(self._sample()), asyncio.create_task(self._sweep())]

    async def close(self) -> None:
        """Let go of everything; replicas run on."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for replica in self._replicas.values():
            await replica.close()
        self._runtime.close()
        self._ports.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def apply(self, spec: ReplicaSpec, epoch: int) -> ReplicaReport:
        """Run a replica. A known uid is left as it is, also when it has ended: a uid lives once.

        Raises:
            StaleEpoch: a newer leader has spoken. Invalid: the uid. Unsupported: the runtime cannot. Busy: too many.
            DiskFull: it cannot be recorded.
        """
        self._obey(epoch)
        known = self._replicas.get(spec.uid)
        if known is not None:
            return self._report(known)
        if not _UID.match(spec.uid):
            raise Invalid(f"{spec.uid!r} cannot be a replica's uid", hint="use a UUID")
        if not spec.command and spec.image is None:
            raise Invalid("the command is empty", hint="say what to run")
        self._runtime.check(spec)
        if len(self._replicas) >= MAX_REPLICAS:
            raise Busy(f"node {self.node} knows {MAX_REPLICAS} replicas", hint="forget those that have ended")
        replica = self._make(spec)
        try:
            replica.begin()
        except OSError as error:
            shutil.rmtree(replica.folder, ignore_errors=True)
            if error.errno in (28, 122):
                raise DiskFull(f"no room on node {self.node}", hint="free space on its device") from error
            raise Unavailable(f"node {self.node} cannot write {replica.folder}: {error.strerror}") from error
        self._replicas[spec.uid] = replica
        self._changed()
        return self._report(replica)

    async def stop(self, uid: str, grace_s: float | None, epoch: int, reason: str = "stopped") -> None:
        """End a replica: TERM, then KILL after `grace_s` (None: its own). Idempotent; an unknown uid is fine.

        Raises StaleEpoch.
        """
        self._obey(epoch)
        if grace_s is not None and not 0 <= grace_s <= 86_400:
            raise Invalid(f"grace_s is {grace_s}", hint="give seconds between 0 and 86400")
        replica = self._replicas.get(uid)
        if replica is not None:
            replica.stop(grace_s, reason)

    async def forget(self, uid: str, epoch: int) -> None:
        """Remove the folder and the log of a replica that has ended. Idempotent.

        Raises Conflict while it runs, StaleEpoch.
        """
        self._obey(epoch)
        replica = self._replicas.get(uid)
        if replica is None:
            return
        if not replica.ended:
            raise Conflict(f"replica {uid} is {replica.phase}", hint="stop it first")
        del self._replicas[uid]
        self._renewed_ns.pop(uid, None)
        await replica.close()
        await replica.release()
        await asyncio.to_thread(shutil.rmtree, replica.folder, ignore_errors=True)
        self._changed()

    async def keepalive(self, epoch: int) -> None:
        """The leader is there: exclusive replicas may live on. Raises StaleEpoch."""
        self._obey(epoch)

    def usage(self) -> NodeReport:
        """What is so now. Built from memory: no file is read but the disk's free space."""
        reports = tuple(self._report(replica) for replica in self._replicas.values())
        # Values of our own making: to check them again twice a second would be the agent's largest cost.
        return NodeReport.model_construct(
            node=self.node,
            boot_id=self._boot_id,
            agent_uid=self.uid,
            protocol=1,
            time_ms=self._now_ms(),
            address=self.address if self._inlet is None else self._inlet.address,
            capacity=self.capacity,
            cpu_used_milli=sum(report.cpu_milli for report in reports),
            memory_used_mib=sum(report.memory_mib for report in reports),
            disk_free_mib=shutil.disk_usage(self.dir).free >> 20,
            gauges=self._gauges,
            epoch=self.epoch,
            runtime=self._runtime.name,
            isolation=self._runtime.isolation,
            forwards=self._runtime.forwards,
            machine=self._machine,
            replicas=reports,
        )

    async def logs(
        self, uid: str, start_ns: int = 0, end_ns: int | None = None, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        """Lines of a replica with start_ns <= ns < end_ns; with `follow` until it has ended. Raises NotFound."""
        replica = self._find(uid)
        async for line in replica.log.read(start_ns, end_ns, ended=(lambda: replica.ended) if follow else None):
            yield line

    def check(self, uid: str) -> None:
        """Raises NotFound when no such replica is known."""
        self._find(uid)

    async def wait(self, version: int, timeout_s: float) -> int:
        """Until something differs from what was so at `version`, or the time has passed; returns the version now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.version == version:
                    await self._wake.wait()
        return self.version

    # --- within -------------------------------------------------------------------------------------------------

    def _find(self, uid: str) -> Replica:
        replica = self._replicas.get(uid)
        if replica is None:
            raise NotFound(f"node {self.node} knows no replica {uid}")
        return replica

    def _obey(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise StaleEpoch(
                f"epoch {epoch} has passed: node {self.node} obeys {self.epoch}", details={"epoch": self.epoch}
            )
        if epoch > self.epoch:
            try:
                # Before it is obeyed, so that no restart obeys an older leader again.
                shim.write_record(str(self.dir / "epoch"), {"epoch": epoch}, sync=True)
            except OSError as error:
                raise DiskFull(f"node {self.node} cannot record epoch {epoch}: {error.strerror}") from error
            self.epoch = epoch
        self._contact_ns = shim.clock_ns()
        for uid, replica in self._replicas.items():
            # A lease is a small file: written at a tenth of its length, not at every word from control.
            lease_ns = int(replica.spec.lease_s * 1e9)
            if replica.spec.exclusive and self._contact_ns - self._renewed_ns.get(uid, 0) > lease_ns // 10:
                self._renewed_ns[uid] = self._contact_ns
                replica.renew(self._contact_ns + lease_ns)

    def _make(self, spec: ReplicaSpec) -> Replica:
        return Replica(
            spec,
            self.dir / "replicas" / spec.uid,
            address=self.address,
            runtime=self._runtime,
            ports=self._ports,
            fetch=self._fetch,
            changed=self._changed,
            lease_ns=lambda lease_s: self._contact_ns + int(lease_s * 1e9),
        )

    def _adopt(self, folder: Path) -> None:
        try:
            spec = ReplicaSpec.model_validate_json((folder / "replica.json").read_bytes())
        except (OSError, ValidationError) as error:
            # An order that was never recorded whole was never answered either: control gives it again.
            _log.warning("%s holds no readable order: %s", folder.name, type(error).__name__)
            launch.stop(folder, 0)
            shutil.rmtree(folder, ignore_errors=True)
            return
        replica = self._replicas[spec.uid] = self._make(spec)
        replica.adopt()

    async def _fetch(self, blob: FetchBlob) -> Path:
        lock = self._fetching.setdefault(blob.ref.digest, asyncio.Lock())
        async with lock:  # many replicas of one release start together: one transfer serves them
            for last in (False,) * (FETCH_TRIES - 1) + (True,):
                try:
                    return await asyncio.to_thread(
                        fetch, blob.url, blob.headers, blob.ref.digest, blob.ref.size_bytes, self._cache, self._http
                    )
                except Unavailable:
                    if last:
                        raise
                    await asyncio.sleep(0.5)
        raise AssertionError("unreachable")

    async def _sample(self) -> None:
        # In a thread, as a driver of GPUs may take its time.
        gauges = await asyncio.to_thread(Gauges, self.dir)
        while True:
            await asyncio.sleep(SAMPLE_S)
            try:
                targets = {uid: target for uid, one in self._replicas.items() if (target := one.target()) is not None}
                for uid, use in self._metrics.sample(targets, time.monotonic_ns()).items():
                    self._replicas[uid].use = use
                self._gauges = await asyncio.to_thread(gauges.look, time.monotonic_ns())
                self._ports.wake()
                if self._inlet is not None and await self._inlet.look():
                    self._changed()
                for replica in self._replicas.values():
                    await replica.release()
                    if replica.phase in ("starting", "unready"):
                        replica.look_at_log()
            except Exception:  # noqa: BLE001 - measuring must go on after whatever one look met
                _log.exception("measuring")

    async def _sweep(self) -> None:
        while True:
            # A replica of which only the end is known has nothing left that is its own.
            live = {uid for uid, replica in self._replicas.items() if not replica.ended}
            try:
                await asyncio.to_thread(self._runtime.sweep, live)
            except Exception:  # noqa: BLE001 - to tidy up must not stop the agent
                _log.exception("sweeping")
            await asyncio.sleep(SWEEP_S)

    def _report(self, replica: Replica) -> ReplicaReport:
        report = replica.report()
        return report if self._inlet is None else self._inlet.shown(replica.spec, report)

    def _changed(self) -> None:
        if self._inlet is not None and self._led:
            self._inlet.follow((replica.spec, replica.report()) for replica in self._replicas.values())
        self.version += 1
        self._wake.set()
        self._wake = asyncio.Event()
