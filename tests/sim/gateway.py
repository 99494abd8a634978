"""The gateway and its callers: whatever set was published last is what requests follow.

A request goes to a random endpoint of the live set that takes connections; a gateway tries others when one does not
answer (that is safe for every request), and once more when a copy dies under a request that is idempotent. A request
that finds no endpoint is held when its route says so. As in the real gateway, what is in flight at an endpoint that
left the routes shows only in the deployment's total.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sim.clock import FakeClock
from sim.machine import Copy, Machine

from lepton_ai.errors import Invalid, Timeout
from lepton_ai.spec.route import Endpoint, Route, Routes, RouteStats

HOLD_MS = 120_000


@dataclass
class Callers:
    """A closed loop: `count` requests of one deployment are always under way, each `work_ms` long."""

    count: int
    work_ms: int = 300


@dataclass
class Request:
    """One request. `copy` is where it runs; None while it is held."""

    key: tuple[str, str]
    work_ms: int
    begun_ms: int
    copy: Copy | None = None
    done_ms: int = 0


@dataclass
class FakeGateway:
    """Satisfies `control.ports.Gateway`. `refuse`, `lose` (taken, but never confirmed) and `slow_ms` are its moods.

    `slowed`: how many times longer a request takes at a replica, by uid.
    """

    clock: FakeClock
    machines: Mapping[str, Machine]
    rng: random.Random
    live: Routes = field(default_factory=Routes)
    callers: dict[tuple[str, str], Callers] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    answered: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    waited: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    published: int = 0
    refuse: bool = False
    lose: bool = False
    mute: bool = False
    slow_ms: int = 0
    latency_ms: Callable[[int], float] | None = None
    slowed: dict[str, float] = field(default_factory=dict)
    passing: Callable[[int], None] = lambda ms: None
    _requests: list[Request] = field(default_factory=list)
    _answered: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _last_ms: dict[tuple[str, str], int] = field(default_factory=dict)

    # -- what control calls

    def publish(self, routes: Routes) -> object:
        if self.refuse:
            raise Invalid("the gateway refuses this set")
        self.published += 1
        if self.slow_ms:
            half, self.slow_ms = self.slow_ms // 2, 0
            self.passing(half)  # the world goes on while the gateway takes its time
            self.live = routes
            self.passing(half)
            self.slow_ms = half * 2
        self.live = routes
        if self.lose:
            raise Timeout("the gateway does not confirm")
        return None

    def stats(self) -> tuple[RouteStats, ...]:
        if self.mute:
            raise Timeout("the gateway does not answer")
        under: dict[tuple[str, str], list[Request]] = defaultdict(list)
        for request in self._requests:
            under[request.key].append(request)
        found = []
        for route in self.live.routes:
            key = (route.workspace, route.name)
            copies = [request.copy for request in under[key] if request.copy is not None]
            each = {
                end.replica: sum(copy.spec.uid == end.replica for copy in copies)
                for backend in route.backends
                for end in backend.endpoints
            }
            # A cluster that left the set takes its figures along: what is in flight there does not show.
            known = {backend.release for backend in route.backends}
            found.append(
                RouteStats(
                    workspace=route.workspace,
                    name=route.name,
                    requests=self.answered[key],
                    in_flight=sum(copy.spec.release in known for copy in copies),
                    held=len(under[key]) - len(copies),
                    last_request_ms=self._last_ms.get(key, 0),
                    latency_ms_p95=None if self.latency_ms is None else self.latency_ms(len(each)),
                    in_flight_by_replica=each,
                    answered_by_replica={uid: self._answered[uid] for uid in each},
                )
            )
        return tuple(found)

    def wait_held(self, wait_s: float) -> Mapping[str, int]:
        return {}

    # -- what callers do

    def step(self) -> None:
        """Finish, retry and begin requests, as of now."""
        now_ms = self.clock.elapsed_ms()
        ports = self._listening()
        routes = {(route.workspace, route.name): route for route in self.live.routes}
        going: list[Request] = []
        for request in self._requests:
            copy, route = request.copy, routes.get(request.key)
            if copy is not None and now_ms >= request.done_ms and not self._breaks(copy):
                self.answered[request.key] += 1
                self._answered[copy.spec.uid] += 1
            elif copy is not None and not self._breaks(copy):
                going.append(request)
            elif copy is not None and (route is None or not route.idempotent):
                self._fail(request, f"{copy.spec.name} ended under it")
            elif route is None:
                self._fail(request, "its route is gone")
            elif self._place(request, route, ports, again=copy):
                going.append(request)
        self._requests = going
        running: dict[tuple[str, str], int] = defaultdict(int)
        for request in going:
            running[request.key] += 1
        for key, callers in self.callers.items():
            for _ in range(callers.count - running[key]):
                self._begin(Request(key, callers.work_ms, now_ms), routes.get(key), ports)

    def held(self, workspace: str, name: str) -> int:
        return sum(request.copy is None and request.key == (workspace, name) for request in self._requests)

    # -- within

    def _begin(self, request: Request, route: Route | None, ports: Mapping[tuple[str, int], Copy]) -> None:
        self._last_ms[request.key] = self.clock.now_ms()
        if route is None:
            self._fail(request, "no route")
        elif self._place(request, route, ports):
            self._requests.append(request)

    def _place(
        self, request: Request, route: Route, ports: Mapping[tuple[str, int], Copy], again: Copy | None = None
    ) -> bool:
        """Find it an endpoint; whether it goes on (running or held)."""
        ends = self._choose(route)
        self.rng.shuffle(ends)
        for end in ends:
            copy = ports.get((end.address, end.port))
            if copy is None or copy is again:
                continue
            if copy.spec.owner != route.name or copy.spec.workspace != route.workspace:
                self.stray.append(f"{self.clock.elapsed_ms()}: {route.name} reached {copy.spec.name}")
            took_ms = round(request.work_ms * self.slowed.get(copy.spec.uid, 1.0))
            request.copy, request.done_ms = copy, self.clock.elapsed_ms() + took_ms
            return True
        first = request.copy is not None or request.begun_ms == self.clock.elapsed_ms()
        request.copy = None
        if not route.activate:
            self._fail(request, "no endpoint takes it")
            return False
        if first:
            self.waited.append(f"{self.clock.elapsed_ms()}: {route.name}: none of {[end.replica[-4:] for end in ends]}")
        if self.clock.elapsed_ms() - request.begun_ms > HOLD_MS:
            self._fail(request, "held for too long")
            return False
        return True

    def _choose(self, route: Route) -> list[Endpoint]:
        return [end for backend in route.backends for end in backend.endpoints]

    def _listening(self) -> dict[tuple[str, int], Copy]:
        return {
            (machine.address, copy.port): copy
            for machine in self.machines.values()
            if machine.powered and not machine.dark
            for copy in machine.copies.values()
            if copy.port is not None and copy.serves
        }

    def _breaks(self, copy: Copy) -> bool:
        return not copy.lives or copy.term_ms is not None

    def _fail(self, request: Request, why: str) -> None:
        self.failed.append(f"{self.clock.elapsed_ms()}: {request.key[1]}: {why}")
