"""Placing end to end: deployments in the store, replicas placed and recorded by whole passes of the control loop.

Not a measurement itself: read by placement.py. Store, loop and scheduler are the real ones; only the agents and the
gateway are replaced, by ones that say what they are and take every order.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lepton_ai.control.clock import SystemClock
from lepton_ai.control.context import Services
from lepton_ai.control.folder import NODES
from lepton_ai.control.leader import Leader
from lepton_ai.control.loop import Loop
from lepton_ai.control.mirror import Mirror
from lepton_ai.control.options import Options
from lepton_ai.control.ports import NodeAddress, NodeView
from lepton_ai.control.publish import Publisher
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import NodeReport, ReplicaSpec
from lepton_ai.spec.route import Routes, RouteStats
from lepton_ai.spec.workload import DeploymentSpec, ReleaseSpec, Resources, Template
from lepton_ai.store import Create, Store

CAPACITY = Resources(cpu_milli=96_000, memory_mib=393_216, accelerator_milli=8000, accelerator_type="G2")
KINDS = (
    Resources(cpu_milli=2000, memory_mib=4096),
    Resources(cpu_milli=4000, memory_mib=16_384, accelerator_milli=470),
    Resources(cpu_milli=3000, memory_mib=12_288, accelerator_milli=810),
    Resources(cpu_milli=11_000, memory_mib=32_768, accelerator_milli=1000),
    Resources(cpu_milli=500, memory_mib=1024),
)
EACH = 10
PASSES_MOST = 200
BATCH = 500


class Agents:
    """Nodes that are there, have nothing to say, and do as they are told: see `control.ports.Fleet`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.orders = 0
        self._views = {
            name: NodeView(
                name, True,
                NodeReport(
                    node=name, boot_id="boot", agent_uid="agent", time_ms=0, address="127.0.0.1", capacity=CAPACITY,
                    forwards=True,
                ),
            )
            for name in names
        }  # fmt: skip

    def connect(self, nodes: Sequence[NodeAddress], epoch: int) -> None:
        """There are no connections."""

    def nodes(self) -> Mapping[str, NodeView]:
        return self._views

    def apply(self, node: str, spec: ReplicaSpec, epoch: int) -> None:
        self.orders += 1

    def stop(self, node: str, uid: str, grace_s: float | None, epoch: int) -> None:
        self.orders += 1

    def forget(self, node: str, uid: str, epoch: int, spec: ReplicaSpec | None) -> None:
        self.orders += 1

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Nothing changes by itself."""


class NoGateway:
    """Takes all routes and has no requests: see `control.ports.Gateway`."""

    def publish(self, routes: Routes) -> object:
        return None

    def stats(self) -> tuple[RouteStats, ...]:
        return ()

    def wait_held(self, wait_s: float) -> Mapping[str, int]:
        return {}


def durable(nodes: int, replicas: int) -> dict[str, object]:
    """How many replicas a second are decided on and recorded, from deployments that are in the store to the last."""
    with tempfile.TemporaryDirectory() as folder, Store.open(f"sqlite:///{Path(folder) / 'store.db'}") as store:
        names = [f"node-{number:05}" for number in range(nodes)]
        made = [Create(NODES, "node", name, {"address": "127.0.0.1", "port": 1, "token_file": ""}) for name in names]
        for start in range(0, nodes, BATCH):
            store.batch(made[start : start + BATCH])
        clock, agents = SystemClock(), Agents(names)
        services = Services(
            mirror=Mirror(store),
            fleet=agents,
            publisher=Publisher(NoGateway(), clock, threads=False),
            clock=clock,
            options=Options(resend_s=600.0),  # these agents never report, which is no reason to order all of it again
            rng=random.Random(1),
            new_uid=uuid7,
            secret=lambda workspace, name: "",
            blob_url=lambda digest: ("", {}),
            unseal=lambda sealed, context: sealed,
        )
        loop = Loop(services, Leader(store, clock, ttl_s=60.0, holder="bench"), store)
        loop.step()  # the nodes' own records
        _deploy(store, -(-replicas // EACH))
        begun_s, cpu_s, passes, placed = time.perf_counter(), time.process_time(), 0, 0
        while placed < replicas and passes < PASSES_MOST:
            loop.step()
            passes += 1
            placed = len(services.mirror.running())
        took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
        recorded = len(store.list("replica"))
        quiet_s = time.perf_counter()
        loop.step()
        quiet_s = time.perf_counter() - quiet_s
        if recorded < replicas:
            raise AssertionError(f"{recorded} of {replicas} replicas after {passes} passes")
    row = {
        "durable_nodes": nodes, "replicas": recorded, "passes": passes, "took_s": round(took_s, 3),
        "cpu_s": round(cpu_s, 3), "per_cpu_s": round(recorded / cpu_s, 1), "durable_per_s": round(recorded / took_s, 1),
        "ordered": agents.orders, "next_pass_s": round(quiet_s, 3),
    }  # fmt: skip
    print(row, flush=True)
    return row


def _deploy(store: Store, count: int) -> None:
    ops = []
    for number in range(count):
        template = Template(command=("serve", "--port", "{port}"), resources=KINDS[number % len(KINDS)])
        bounds = {"min": EACH, "max": EACH}
        spec = DeploymentSpec(template=template, replicas=bounds)  # type: ignore[arg-type]
        uid, name = uuid7(), f"app-{number:05}"
        ops.append(Create("default", "deployment", name, spec.model_dump(mode="json"), {}, None, uid))
        release = ReleaseSpec(number=1, template=template).model_dump(mode="json")
        ops.append(Create("default", "release", f"{name}#1", release, {}, uid))
    for start in range(0, len(ops), BATCH):
        store.batch(ops[start : start + BATCH])
