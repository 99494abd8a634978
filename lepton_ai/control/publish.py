"""Tells the gateway what is wanted, off the loop's thread, and brings its figures back.

Owns one thread (two with the activator's wake-up): a slow or dead gateway never blocks a loop. With `threads` False
everything happens inside `offer`, for the simulation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from lepton_ai.control.clock import Clock
from lepton_ai.control.ports import Gateway
from lepton_ai.errors import LeptonError
from lepton_ai.spec.route import Routes, RouteStats

RETRY_S = 1.0
HELD_WAIT_S = 20.0
_log = logging.getLogger(__name__)


class Publisher:
    """The last wanted routes win; what is in between is skipped."""

    def __init__(self, gateway: Gateway, clock: Clock, *, stats_s: float = 1.0, threads: bool = True) -> None:
        self._gateway, self._clock, self._stats_s, self._threads = gateway, clock, stats_s, threads
        self._lock = threading.Condition()
        self._wanted: Routes | None = None
        self._confirmed: Routes | None = None
        self._since: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._perhaps: set[str] = set()
        self._stats: tuple[RouteStats, ...] = ()
        self._stats_ms = -1
        self._before: tuple[RouteStats, ...] = ()
        self._before_ms = -1
        self._held: dict[str, int] = {}
        self._hurry = False
        self._closed = False
        self._changed: Callable[[], None] = lambda: None
        self.error = self._last_error = self._no_figures = ""
        self._workers: list[threading.Thread] = []

    def subscribe(self, changed: Callable[[], None]) -> None:
        """`changed` is called from the thread when something was confirmed, refused, measured or held."""
        self._changed = changed

    def start(self) -> None:
        """Start the threads (nothing without `threads`)."""
        if self._threads and not self._workers:
            for name, target in (("publish", self._run), ("held", self._watch_held)):
                worker = threading.Thread(target=target, name=f"control-{name}", daemon=True)
                self._workers.append(worker)
                worker.start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._workers:
            self._workers[0].join(timeout=5)

    def offer(self, routes: Routes, *, hurry: bool = False) -> None:
        """These routes are wanted now; returns at once. `hurry`: figures are waited for (something drains)."""
        with self._lock:
            fresh = routes != self._wanted
            self._wanted = routes
            if fresh or (hurry and not self._hurry):
                self._lock.notify_all()
            self._hurry = hurry
        if not self._threads:
            self._publish()
            self._measure()

    def rest(self) -> None:
        """Another leads, or led meanwhile: nothing is wanted by us, and what is confirmed is not known."""
        with self._lock:
            self._wanted = self._confirmed = None
            self._since, self._left, self._hurry = {}, {}, False

    def routed_ms(self, uid: str) -> int | None:
        """For how long the gateway has confirmed to send requests to the replica; None: it does not."""
        with self._lock:
            since = self._since.get(uid)
            return None if since is None else self._clock.elapsed_ms() - since

    def is_out(self, uid: str) -> bool:
        """Whether the gateway certainly sends it nothing: some set is confirmed, and none that may be live has it."""
        with self._lock:
            return self._confirmed is not None and uid not in self._since and uid not in self._perhaps

    def in_flight(self, uid: str, workspace: str, name: str) -> int | None:
        """Requests in flight at a replica that left the routes of that deployment; None: not measured since.

        The gateway counts by endpoint only while one is routed: what remains of the deployment's total is in flight
        at those that left, and none of them is done before all are. The larger of two measurements, because a
        gateway's figures are not of one instant.
        """
        with self._lock:
            if self._before_ms < self._left.get(uid, 0):
                return None
            return max(_elsewhere(self._before, uid, workspace, name), _elsewhere(self._stats, uid, workspace, name))

    def stats(self) -> tuple[int, Mapping[tuple[str, str], RouteStats]]:
        """(when measured, elapsed ms; -1 never) and the figures by (workspace, name)."""
        with self._lock:
            return self._stats_ms, {(item.workspace, item.name): item for item in self._stats}

    def held(self, workspace: str, name: str) -> int:
        """Requests that the activator is known to hold."""
        with self._lock:
            return self._held.get(f"{workspace}/{name}", 0)

    # -- the threads

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                due = self._wanted is not None and self._wanted != self._confirmed and not self.error
                if not due:
                    pause_s = RETRY_S if self.error else (0.1 if self._hurry else self._stats_s)
                    self._lock.wait(pause_s)
                self.error = ""
            self._publish()
            self._measure()

    def _publish(self) -> None:
        with self._lock:
            routes = self._wanted
            if routes is None or routes == self._confirmed:
                return
            # Until a set is confirmed, every one that was begun may be what the gateway does.
            self._perhaps |= endpoints(routes)
        error = ""
        try:
            self._gateway.publish(routes)
        except LeptonError as problem:
            error = problem.message
        except Exception as problem:  # noqa: BLE001 - the gateway must never end this thread
            _log.exception("publishing routes")
            error = f"{type(problem).__name__}: {problem}"
        with self._lock:
            now_ms = self._clock.elapsed_ms()
            news, self._last_error = error != self._last_error, error
            self.error = error
            if not error:
                live = endpoints(routes)
                for uid in set(self._since) - live:
                    self._left[uid] = now_ms
                self._since = {uid: self._since.get(uid, now_ms) for uid in live}
                self._left = {uid: t for uid, t in self._left.items() if uid not in live and now_ms - t < 7_200_000}
                self._confirmed, self._perhaps = routes, set()
        if error and news:
            _log.warning("the gateway did not take the routes: %s", error)
        self._changed()

    def _measure(self) -> None:
        with self._lock:
            now_ms = self._clock.elapsed_ms()
            due = now_ms - self._stats_ms >= (100 if self._hurry else self._stats_s * 1000)
        if not due and self._stats_ms >= 0:
            return
        try:
            stats = self._gateway.stats()
        except Exception as problem:  # noqa: BLE001 - the gateway must never end this thread
            # What was measured last stays: nobody knows better, and nothing may scale down for not knowing.
            if str(problem) != self._no_figures:
                self._no_figures = str(problem)
                _log.warning("no figures from the gateway: %s", problem)
            return
        self._no_figures = ""
        held = {f"{item.workspace}/{item.name}": item.held for item in stats if item.held}
        with self._lock:
            # `now_ms` was read before the figures: they are at least as new as that.
            self._before, self._before_ms = self._stats, self._stats_ms
            self._stats, self._stats_ms, self._held = stats, now_ms, held
            notable = self._hurry or bool(held)
        if notable:
            self._changed()

    def _watch_held(self) -> None:
        pause = threading.Event()
        while not self._closed:
            try:
                held = dict(self._gateway.wait_held(HELD_WAIT_S))
            except Exception as problem:  # noqa: BLE001 - the gateway must never end this thread
                _log.debug("no word from the activator: %s", problem)
                held = {}
                pause.wait(0.5)
            with self._lock:
                news = {name for name, count in held.items() if count} - {n for n, c in self._held.items() if c}
                self._held = held
            if news:
                self._changed()
            # Answers at once while anything is held or the activator is away: look again soon, not in a spin.
            pause.wait(0.05 if news else 0.2)


def _elsewhere(stats: tuple[RouteStats, ...], uid: str, workspace: str, name: str) -> int:
    for item in stats:
        if (item.workspace, item.name) == (workspace, name):
            if uid in item.in_flight_by_replica:
                return item.in_flight_by_replica[uid]
            return max(0, item.in_flight - sum(item.in_flight_by_replica.values()))
    return 0


def endpoints(routes: Routes) -> set[str]:
    """Uids of the replicas that `routes` sends requests to."""
    return {end.replica for route in routes.routes for backend in route.backends for end in backend.endpoints}
