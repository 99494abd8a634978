"""The loop: while this process leads, load -> decide -> apply, at every change and at least every `tick_s`.

Owns the order of a pass and the thread. What each kind does is in its own file; all of it is idempotent, so a pass
that is cut off anywhere is made good by the next one, of this leader or another.
"""

from __future__ import annotations

import logging
import threading
import time

from lepton_ai.control import (
    archives,
    deployments,
    jobs,
    machines,
    orders,
    rebalance,
    replicas,
    reservations,
    routes,
    waiting,
)
from lepton_ai.control.backoff import Backoff
from lepton_ai.control.context import Context, Memory, Services
from lepton_ai.control.leader import Leader
from lepton_ai.control.monitor import Monitor
from lepton_ai.control.pace import Pace
from lepton_ai.errors import LeptonError, StaleEpoch
from lepton_ai.store import Store

CRASH_FIRST_MS, CRASH_MOST_MS, CRASH_CALM_MS = 500, 60_000, 60_000
TROUBLE_FIRST_MS, TROUBLE_MOST_MS = 1_000, 60_000
COALESCE_S = 0.01
SILENT_TICK_S = 0.1

_log = logging.getLogger(__name__)


class Loop:
    """Drives a cell. `step` is one pass; `run` is the thread's work until `close`."""

    def __init__(self, services: Services, leader: Leader, store: Store) -> None:
        self.services, self.leader, self._store = services, leader, store
        self._memory, self.monitor = self._blank(), self._monitor()
        self.pace = Pace()
        self._epoch = 0
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._watching = 0
        services.fleet.subscribe(self._wake.set)
        services.publisher.subscribe(self._wake.set)

    @property
    def leading(self) -> bool:
        return self.leader.lease is not None

    def step(self) -> bool:
        """One pass; False when another process leads. Raises what the store raises."""
        lease = self.leader.ensure()
        if lease is None:
            if self._epoch:
                self._epoch = 0
                self.services.fleet.connect((), 0)
                self.services.publisher.rest()
            return False
        if lease.epoch != self._epoch:
            self._epoch, self._memory, self.monitor = lease.epoch, self._blank(), self._monitor()
            self.services.publisher.rest()
        try:
            ctx = Context(self.services, self._memory, lease, self.leader.since_ms)
            ctx.loads = self.monitor.loads
            machines.connect(ctx)
            ctx.load()
            machines.reconcile(ctx)
            reservations.reconcile(ctx)
            replicas.reconcile(ctx)
            self.monitor.look(ctx)
            rebalance.reserve(ctx)
            line = waiting.Line.of(ctx)
            deployments.reconcile(ctx, line)
            jobs.reconcile(ctx, line)
            line.serve({"deployment": deployments.take, "job": jobs.take})
            ctx.flush()
            rebalance.reconcile(ctx, self.monitor.work)
            routes.offer(ctx)
            orders.order(ctx)
            archives.sweep(ctx)
        except StaleEpoch:
            self.leader.lose()
            return False
        return True

    def run(self) -> None:
        """Passes until `close`; an error of one pass is logged, and the next one tries again."""
        watcher = threading.Thread(target=self._watch, name="control-watch", daemon=True)
        watcher.start()
        tick_s = self.services.options.tick_s
        while not self._closed.is_set():
            self._wake.wait(min(tick_s, SILENT_TICK_S) if self._just_silent() else tick_s)
            if self._closed.wait(COALESCE_S):  # changes come in bursts
                break
            self._wake.clear()
            begun_s = time.perf_counter()
            try:
                if self.step():
                    self.pace.note(time.perf_counter() - begun_s)
            except LeptonError as error:
                _log.warning("a pass failed: %s", error.message)
                self._closed.wait(tick_s)
            except Exception:  # noqa: BLE001 - whatever one pass met, the next one tries again
                _log.exception("a pass failed")
                self._closed.wait(tick_s)
        if self.leading:
            self.monitor.save()
        try:
            self.leader.release()
        except LeptonError as error:
            _log.info("the lease was not given back: %s", error.message)

    def close(self) -> None:
        """End `run` after the pass that is under way."""
        self._closed.set()
        self._wake.set()

    def _just_silent(self) -> bool:
        """Whether a node fell silent a moment ago: it is counted out on time, not at the next tick."""
        options, now_ms = self.services.options, self.services.clock.elapsed_ms()
        soon_ms = (max(options.node_grace_s, options.job_grace_s) + 1) * 1000
        return any(now_ms - since_ms < soon_ms for since_ms in list(self._memory.lost_since.values()))

    def _watch(self) -> None:
        """Wakes the loop when anybody has written something."""
        since = -1
        while not self._closed.is_set():
            try:
                revision = self._store.wait(since, 5.0)
            except LeptonError:
                self._closed.wait(1.0)
                continue
            if revision > since:
                since = revision
                self._wake.set()

    def _monitor(self) -> Monitor:
        """Of a new leader: it takes up what the last one wrote down."""
        return Monitor(self.services.clock, self.services.options, self.services.monitor_file)

    def _blank(self) -> Memory:
        rng = self.services.rng
        return Memory(
            crash=Backoff(CRASH_FIRST_MS, CRASH_MOST_MS, CRASH_CALM_MS, rng),
            trouble=Backoff(TROUBLE_FIRST_MS, TROUBLE_MOST_MS, TROUBLE_MOST_MS, rng),
        )
