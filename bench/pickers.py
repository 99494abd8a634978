"""Every picker that `routing` compares, each as one gateway has it. Not a measurement itself.

Envoy's own are re-implemented from its source (source/extensions/load_balancing_policies/least_request, and the EDF
scheduler in common/edf_scheduler.h) and checked against the binary by `routing`. The one that ships is not: it is
`lepton_ai/gateway/picker.c`, compiled with a clock and a table of replicas of the simulation in place of Envoy.
"""

from __future__ import annotations

import ctypes
import heapq
import math
import random
import statistics
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from replicas import Gateway, Speeds

from lepton_ai.gateway.picker import SOURCE, compiler
from lepton_ai.scheduler.capacity import Capacity, Seen
from lepton_ai.scheduler.route import Share, route


@dataclass
class Setting:
    """What pickers of one deployment share: all gateways, the truth (for oracles and probes), and control's word."""

    gateways: Sequence[Gateway]
    speeds: Speeds
    work_s: float
    slots: int = 1
    shares: dict[int, Share] = field(default_factory=dict)
    capacity: list[float] = field(default_factory=list)
    version: int = 0

    @property
    def replicas(self) -> int:
        return len(self.gateways[0].active)

    def running(self, replica: int) -> int:
        return sum(gateway.active[replica] for gateway in self.gateways)


class Base:
    """A picker of one gateway."""

    def __init__(self, setting: Setting, gate: int, seed: int) -> None:
        self.setting, self.own = setting, setting.gateways[gate]
        self.count, self.rng = setting.replicas, random.Random(seed * 7919 + gate)
        self.begin()

    def begin(self) -> None:
        pass

    def pick(self, at_s: float) -> int:
        raise NotImplementedError

    def ended(self, replica: int, at_s: float, took_s: float, met: int) -> None:
        pass


class Random(Base):
    """Envoy's RANDOM."""

    def pick(self, at_s: float) -> int:
        return self.rng.randrange(self.count)


class RoundRobin(Base):
    """Envoy's ROUND_ROBIN with equal weights."""

    def begin(self) -> None:
        self.next = self.rng.randrange(self.count)

    def pick(self, at_s: float) -> int:
        self.next = (self.next + 1) % self.count
        return self.next


class LeastRequest(Base):
    """Envoy's LEAST_REQUEST, equal weights: the least busy of so many drawn with replacement; the first of equals."""

    choices = 2

    def pick(self, at_s: float) -> int:
        active, best = self.own.active, self.rng.randrange(self.count)
        for _ in range(self.choices - 1):
            other = self.rng.randrange(self.count)
            if active[other] < active[best]:
                best = other
        return best


class FullScan(Base):
    """Envoy's LEAST_REQUEST, FULL_SCAN: the least busy of all, any of equals. A spare one is `DEGRADED` to Envoy."""

    def pick(self, at_s: float) -> int:
        active, shares = self.own.active, self.setting.shares
        asked = [index for index in range(self.count) if index not in shares or not shares[index].spare]
        least = min(active[index] for index in asked)
        return self.rng.choice([index for index in asked if active[index] == least])


class Weighted(Base):
    """Envoy's LEAST_REQUEST with unequal weights: an EDF schedule.

    Whoever is picked comes back after 1 / (weight / (active + 1) ^ bias): its load counts as it was then, before the
    request that it was picked for. A new set of weights starts a new schedule, some way into it.
    """

    bias, power = 1.0, 1.0

    def begin(self) -> None:
        self.version, self.order = -1, 0
        self.weights: list[float] = []
        self.queue: list[tuple[float, int, int]] = []

    def pick(self, at_s: float) -> int:
        if self.version != self.setting.version:
            self.version = self.setting.version
            capacity = self.setting.capacity or [1.0] * self.count
            top = max(capacity)
            self.weights = [max(1, round(1000 * (value / top) ** self.power)) for value in capacity]
            self.queue = [(self.rng.random() * self.after(index), index, index) for index in range(self.count)]
            heapq.heapify(self.queue)
            self.order = self.count
        now, _, index = self.queue[0]
        heapq.heapreplace(self.queue, (now + self.after(index), self.order, index))
        self.order += 1
        return index

    def after(self, index: int) -> float:
        return (self.own.active[index] + 1) ** self.bias / self.weights[index]


class Candidates(Base):
    """Of eight drawn, the least in flight ÷ capacity as control knows it. Envoy has no such picker."""

    drawn = 8

    def pick(self, at_s: float) -> int:
        active, capacity = self.own.active, self.setting.capacity or [1.0] * self.count
        drawn = [self.rng.randrange(self.count) for _ in range(self.drawn)]
        return min(drawn, key=lambda index: (active[index] + 1) / capacity[index])


class Oracle(Base):
    """Knows every replica's speed at this moment and what all gateways have in flight there; not a request's work."""

    def pick(self, at_s: float) -> int:
        setting, slots = self.setting, self.setting.slots
        now = setting.speeds.now

        def wait(index: int) -> float:
            running = setting.running(index)
            return (1 + max(0, running + 1 - slots) / slots + 1e-3 * running / slots) / now(index, at_s)

        return min(range(self.count), key=wait)


class Prequal(Base):
    """Wydrowski et al., "Load is not what you should balance: Introducing Prequal" (NSDI 2024).

    Probes to random replicas answer with requests in flight there (RIF) and the median of the latencies lately met
    at about that RIF. Of the pool the coldest by latency is picked: those above the `hot` quantile of RIF are hot and
    taken only when all are, by RIF. The pool holds 16 probes; a probe is used `reuse` times and grows old; each query
    also drops one, in turn the oldest and the worst. Probes are free and instant here, which favours it.
    """

    probes, pool, hot, old_s, drop = 3, 16, 0.84, 1.0, 1

    def begin(self) -> None:
        self.known: list[list[float]] = []  # [when, replica, in flight, latency, uses left]
        self.met: list[deque[tuple[int, float]]] = [deque(maxlen=16) for _ in range(self.count)]
        self.turn = 0
        self.flights: deque[float] = deque(maxlen=128)
        # b = max(1, (1 + delta) / ((1 - m / n) probes - drop)), delta = 1, as in the paper.
        spare = (1 - self.pool / self.count) * self.probes - self.drop
        self.reuse = max(1, math.ceil(2 / spare)) if spare > 0 else 16

    def ended(self, replica: int, at_s: float, took_s: float, met: int) -> None:
        self.met[replica].append((met, took_s))

    def latency(self, replica: int, running: int) -> float:
        near = sorted(self.met[replica], key=lambda item: abs(item[0] - running))[:5]
        return statistics.median(took for _, took in near) if near else 0.0

    def pick(self, at_s: float) -> int:
        for _ in range(self.probes):
            replica = self.rng.randrange(self.count)
            running = self.setting.running(replica)
            self.flights.append(running)
            self.known.append([at_s, replica, running, self.latency(replica, running), self.reuse])
        self.known = [item for item in self.known if item[4] > 0 and at_s - item[0] < self.old_s][-self.pool :]
        limit = sorted(self.flights)[min(len(self.flights) - 1, int(self.hot * len(self.flights)))]
        cold = [item for item in self.known if item[2] < limit] if limit > 0 else []
        if cold:
            best = min(cold, key=lambda item: item[3])
        elif limit == 0:
            best = min(self.known, key=lambda item: (item[2], item[3]))
        else:
            best = min(self.known, key=lambda item: item[2])
        best[4] -= 1
        best[2] += 1  # what this gateway sends now is known to it
        self.forget(limit)
        return int(best[1])

    def forget(self, limit: float) -> None:
        self.turn += 1
        if len(self.known) <= 1:
            return
        if self.turn % 2:
            self.known.pop(0)
            return
        hot = [item for item in self.known if item[2] >= limit]
        worst = max(hot, key=lambda item: item[2]) if hot else max(self.known, key=lambda item: item[3])
        self.known.remove(worst)


# ---------------------------------------------------------------------------------------------- the one that ships

TABLE = r"""
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
typedef struct { const char *ptr; size_t length; } buffer;
typedef struct { uint64_t count; uint64_t *active, *answered; uint32_t *weight; } table;
double simulated_s;
int simulated_clock(clockid_t id, struct timespec *now) {
  (void)id;
  now->tv_sec = (time_t)simulated_s;
  now->tv_nsec = (long)((simulated_s - (double)now->tv_sec) * 1e9);
  return 0;
}
size_t envoy_dynamic_module_callback_lb_get_priority_set_size(void *lb) { (void)lb; return 1; }
size_t envoy_dynamic_module_callback_lb_get_hosts_count(void *lb, uint32_t p) { (void)p; return ((table *)lb)->count; }
size_t envoy_dynamic_module_callback_lb_get_healthy_hosts_count(void *lb, uint32_t p) {
  (void)p; return ((table *)lb)->count;
}
int envoy_dynamic_module_callback_lb_get_host_health(void *lb, uint32_t p, size_t i) {
  (void)lb, (void)p, (void)i; return 2;
}
bool envoy_dynamic_module_callback_lb_get_host_address(void *lb, uint32_t p, size_t i, buffer *to) {
  (void)p; to->ptr = (const char *)&((table *)lb)->active[i]; to->length = 0; return true;
}
uint32_t envoy_dynamic_module_callback_lb_get_host_weight(void *lb, uint32_t p, size_t i) {
  (void)p; return ((table *)lb)->weight[i];
}
uint64_t envoy_dynamic_module_callback_lb_get_host_stat(void *lb, uint32_t p, size_t i, int stat) {
  (void)p;
  return stat == 7 ? ((table *)lb)->active[i] : stat == 3 ? ((table *)lb)->answered[i] : 0;
}
bool envoy_dynamic_module_callback_lb_context_should_select_another_host(void *lb, void *c, uint32_t p, size_t i) {
  (void)lb, (void)c, (void)p, (void)i; return false;
}
"""


class Table(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_uint64),
        ("active", ctypes.POINTER(ctypes.c_uint64)),
        ("answered", ctypes.POINTER(ctypes.c_uint64)),
        ("weight", ctypes.POINTER(ctypes.c_uint32)),
    )


def module(folder: Path) -> ctypes.CDLL | None:
    """picker.c for the simulation; None where there is no compiler."""
    found = compiler()
    if found is None:
        return None
    stub, made = folder / "table.c", folder / "picker-simulated.so"
    stub.write_text(TABLE, "utf-8")
    command = [*found, "-O2", "-shared", "-fPIC", "-Dclock_gettime=simulated_clock"]
    subprocess.run([*command, "-o", str(made), str(SOURCE), str(stub), "-lm"], check=True, capture_output=True)
    library = ctypes.CDLL(str(made))
    library.envoy_dynamic_module_on_lb_new.restype = ctypes.c_void_p
    library.envoy_dynamic_module_on_lb_new.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.envoy_dynamic_module_on_lb_choose_host.restype = ctypes.c_bool
    library.envoy_dynamic_module_on_lb_choose_host.argtypes = [ctypes.c_void_p] * 3 + [
        ctypes.POINTER(ctypes.c_uint32)
    ] * 2
    return library


class Module(Base):
    """The gateway's own: picker.c itself. `heeds`: starts from control's weights."""

    library: ctypes.CDLL
    heeds = True

    def begin(self) -> None:
        count = self.count
        self.active, self.answered = (ctypes.c_uint64 * count)(), (ctypes.c_uint64 * count)()
        self.weight = (ctypes.c_uint32 * count)(*[100] * count)
        self.table = Table(count, self.active, self.answered, self.weight)
        self.clock = ctypes.c_double.in_dll(self.library, "simulated_s")
        self.clock.value = 1.0 + self.rng.random() * 1e-3
        self.instance = self.library.envoy_dynamic_module_on_lb_new(None, ctypes.byref(self.table))
        self.level, self.index = ctypes.c_uint32(), ctypes.c_uint32()
        self.version = 0

    def pick(self, at_s: float) -> int:
        if self.heeds and self.version != self.setting.version:
            self.version = self.setting.version
            for index, share in self.setting.shares.items():
                self.weight[index] = share.weight
        self.active[:] = self.own.active
        self.answered[:] = self.own.answered
        self.clock.value = 2.0 + at_s
        found = self.library.envoy_dynamic_module_on_lb_choose_host(
            ctypes.byref(self.table), self.instance, None, ctypes.byref(self.level), ctypes.byref(self.index)
        )
        assert found
        return self.index.value


# ---------------------------------------------------------------------------------------------- control


class Measured:
    """Control as it ships: `Capacity` learns from all gateways' counters, `route` decides. `foresee` may look ahead."""

    def __init__(self, setting: Setting, foresee: Callable[[list[float]], list[float]] | None = None) -> None:
        self.setting, self.known, self.foresee = setting, Capacity(), foresee
        self.names = [str(index) for index in range(setting.replicas)]
        self.shares: dict[str, Share] = {}
        self.writes = 0

    def tick(self, at_s: float) -> None:
        self.look(at_s)
        estimate = self.known.estimate()
        if not estimate:
            return
        capacity = [estimate[name] for name in self.names]
        if self.foresee is not None:
            capacity = self.foresee(capacity)
        shares = route(dict(zip(self.names, capacity, strict=True)), self.known.ahead(), self.shares)
        if shares != self.shares:
            self.writes += 1
            self.shares = shares
            self.setting.shares = {int(name): share for name, share in shares.items()}
            self.setting.version += 1

    def look(self, at_s: float) -> None:
        setting = self.setting
        answered = [sum(gateway.answered[index] for gateway in setting.gateways) for index in range(setting.replicas)]
        seen = {name: Seen(answered[index], 0, setting.running(index)) for index, name in enumerate(self.names)}
        self.known.observe(round(at_s * 1000), seen)


class Eager(Measured):
    """For pickers that need weights to the point: the likeliest capacity, told every second whatever has changed."""

    def tick(self, at_s: float) -> None:
        self.look(at_s)
        estimate = self.known.estimate(doubt=0.0)
        if estimate:
            self.writes += 1
            self.setting.capacity = [estimate[name] for name in self.names]
            self.setting.version += 1


class Informed:
    """Tells pickers each replica's true speed, once a second."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.shares, self.writes = setting, {}, 0

    def tick(self, at_s: float) -> None:
        setting = self.setting
        true = {str(index): setting.speeds.now(index, at_s) / setting.work_s for index in range(setting.replicas)}
        running = sum(map(setting.running, range(setting.replicas)))
        shares = route(true, running / setting.replicas, self.shares)
        self.writes += shares != self.shares
        self.shares = shares
        setting.capacity = list(true.values())
        setting.shares = {int(name): share for name, share in shares.items()}
        setting.version += 1
