"""One control process of a simulated cell: the real loop over the real store, with everything else fake.

`Killed` is its SIGKILL: raised at a chosen write to the store (before or after it is committed) or at a chosen order
to a node, and caught only by the world.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sim.clock import FakeClock
from sim.fleet import FakeFleet, Network
from sim.gateway import FakeGateway

from lepton_ai.control.context import Services
from lepton_ai.control.leader import Leader
from lepton_ai.control.loop import Loop
from lepton_ai.control.mirror import Mirror
from lepton_ai.control.options import Options
from lepton_ai.control.publish import Publisher
from lepton_ai.errors import Corrupt, NotFound
from lepton_ai.store import Lease, Op, Record, Store


class Killed(BaseException):
    """The process is gone from one instruction to the next."""


class FaultyStore(Store):
    """A store whose user is killed at the write (or order) number `at`, counted from when it was set."""

    at: int = -1
    writes: int = 0

    def batch(self, ops: Sequence[Op], *, lease: Lease | None = None) -> list[Record | None]:
        if lease is None:  # the API's writes are not the loop's
            return super().batch(ops)
        self.writes += 1
        self.instant()
        result = super().batch(ops, lease=lease)
        self.instant()
        return result

    def instant(self) -> None:
        """One instant at which the process may die."""
        if self.at > 0:
            self.at -= 1
            if self.at == 0:
                self.at = -1
                raise Killed


class Notes:
    """The events of a cell, as (kind/name, type, reason, message)."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, str, str]] = []

    def add(
        self,
        workspace: str,
        kind: str,
        name: str,
        type: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        uid: str | None = None,
    ) -> None:
        self.all.append((f"{kind}/{name}", type, reason, message))

    def of(self, what: str, reason: str) -> list[str]:
        return [message for name, _, why, message in self.all if (name, why) == (what, reason)]


class Control:
    """A process with a loop. After `kill` nothing of it acts; what it sent is still under way."""

    count = 0

    def __init__(
        self,
        store: FaultyStore,
        clock: FakeClock,
        network: Network,
        gateway: FakeGateway,
        notes: Notes,
        options: Options,
        seed: int,
        monitor_file: Path | None = None,
    ) -> None:
        Control.count += 1
        self.name = f"control-{Control.count}"
        self.fleet = FakeFleet(network, store.instant)
        self.publisher = Publisher(gateway, clock, threads=False)
        self.leader = Leader(store, clock, ttl_s=options.lease_s, holder=self.name)
        self.passes = 0
        self.alive = True
        self.frozen = False
        self._clock, self._due_ms = clock, 0
        self._tick_ms = round(options.tick_s * 1000)
        services = Services(
            mirror=Mirror(store),
            fleet=self.fleet,
            publisher=self.publisher,
            clock=clock,
            options=options,
            rng=random.Random(seed),
            new_uid=uids,
            secret=secret,
            blob_url=lambda digest: (f"http://cell/{digest}", {}),
            unseal=unseal,
            events=notes,
            monitor_file=monitor_file,
        )
        self.loop = Loop(services, self.leader, store)
        self._woken = True
        self.fleet.subscribe(self._wake)
        self.publisher.subscribe(self._wake)

    def step(self, *, always: bool = False) -> None:
        """A pass when something changed or a tick has passed. Raises Killed."""
        now_ms = self._clock.elapsed_ms()
        if not self.alive or self.frozen or not (always or self._woken or now_ms >= self._due_ms):
            return
        self._woken, self._due_ms = False, now_ms + self._tick_ms
        self.passes += 1
        self.loop.step()

    def kill(self) -> None:
        self.alive = False
        self.fleet.dead = True
        self.fleet.connect((), 0)

    def _wake(self) -> None:
        self._woken = True


_uids = iter(range(1, 1 << 40))


def uids() -> str:
    """Growing, as UUIDv7 are, and the same in every run of one test."""
    return f"00000000-0000-7000-8000-{next(_uids):012x}"


def secret(workspace: str, name: str) -> str:
    if name == "absent":
        raise NotFound(f"no secret {name!r} in workspace {workspace!r}")
    return f"value of {name}"


def unseal(sealed: str, context: str) -> str:
    if sealed == "broken":
        raise Corrupt(f"the sealed value for {context!r} does not open")
    return sealed
