"""The control plane with many records: 1,000 deployments and 10,000 finished jobs in the store of a real cell.

Measured from outside, by one client that asks as the public client does: lists (jobs by pages of 500 until one is
empty), filtered lists, single jobs, ours under x/; then the passes of the control loop as it measures them itself,
and the memory of the control plane's process. The records are what a cell keeps of such work (a release of each
stopped deployment, an exited replica of each job), written through the store in batches; nothing of it runs.

    python bench/api.py [--quick] --out DIR
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import report

from lepton_ai import cloud
from lepton_ai.control.folder import State
from lepton_ai.demo.load import quantile
from lepton_ai.node.identity import Identity
from lepton_ai.settings import Settings
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import ReplicaSpec
from lepton_ai.spec.workload import DeploymentSpec, JobSpec, ReleaseSpec, Resources, Template
from lepton_ai.store import Create, Store

CELL = "bench"
NODES = 3
DEPLOYMENTS, JOBS = 1_000, 10_000
QUICK_DEPLOYMENTS, QUICK_JOBS = 100, 1_000
ROUNDS, QUICK_ROUNDS = 30, 5
PAGE = 500
BATCH = 250
LIST_MS, PASS_MS, MEMORY_MB = 200.0, 1_000.0, 500.0
SETTLE_S = 120.0
PASSES = 30
USERS = ("alice", "bob", "carol", "dave")
ENDS = ("succeeded",) * 17 + ("failed",) * 2 + ("stopped",)


@dataclass
class Stand:
    """The cell, a client of its API, and what was measured: seconds by name of the call."""

    state: State
    http: httpx.Client
    times_s: dict[str, list[float]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    memory_mb: float = 0.0
    passes_ms: dict[int, float] = field(default_factory=dict)

    def get(self, what: str, path: str, **query: Any) -> Any:
        """One call; its time counts from the request to the last byte of the answer."""
        begun_s = time.perf_counter()
        answer = self.http.get(path, params=query)
        self.times_s.setdefault(what, []).append(time.perf_counter() - begun_s)
        self.sizes[what] = max(self.sizes.get(what, 0), len(answer.content))
        answer.raise_for_status()
        return answer.json()

    def weigh(self) -> None:
        """Note the largest resident memory of the control plane."""
        who = Identity.read(self.state.dir / "system" / "control" / "child.json")
        if who is not None:
            self.memory_mb = max(self.memory_mb, psutil.Process(who.pid).memory_info().rss / 1e6)

    def loop(self) -> dict[str, Any]:
        """The loop's figures of itself; each pass that is seen counts, once."""
        found: dict[str, Any] = self.http.get("/x/cell").raise_for_status().json()["loop"]
        if found["passes"]:
            self.passes_ms[found["passes"]] = found["pass_ms_last"]
        return found


def main(argv: list[str] | None = None) -> int:
    """Measure and write DIR/api.json; 0 when every must is met."""
    asked = report.arguments(__doc__ or "", argv)
    deployments, jobs = (QUICK_DEPLOYMENTS, QUICK_JOBS) if asked.quick else (DEPLOYMENTS, JOBS)
    rounds = QUICK_ROUNDS if asked.quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as home:
        settings = Settings(home=Path(home), cell=CELL)
        connection = cloud.up(CELL, settings=settings, nodes=NODES)
        try:
            state = cloud.state(CELL, settings=settings)
            assert state is not None
            token = state.token_path.read_text("utf-8").strip()
            base = f"{state.api_url}/api/v2/workspaces/{state.settings.workspace}"
            with httpx.Client(base_url=base, headers={"authorization": f"Bearer {token}"}, timeout=120) as http:
                goals, rows = _measure(Stand(state, http), deployments, jobs, rounds)
        finally:
            connection.close()
            cloud.down(CELL, settings=settings, purge=True)
    report.write(asked.out, "api", goals, rows)
    return 0 if all(line["met"] for line in goals.values()) else 1


def _measure(stand: Stand, deployments: int, jobs: int, rounds: int) -> tuple[dict[str, Any], list[dict[str, object]]]:
    empty = stand.loop()
    begun_s = time.perf_counter()
    with Store.open(stand.state.store_url) as store:
        ids = _fill(store, stand.state.settings.workspace, deployments, jobs)
    print(f"{deployments} deployments, {jobs} jobs written in {time.perf_counter() - begun_s:.1f} s", flush=True)
    _settle(stand)
    # The first round warms up what a control plane that has run for a while has warm.
    for number in range(rounds + 1):
        if number == 1:
            stand.times_s.clear()
            stand.passes_ms.clear()
        _calls(stand, ids, deployments, jobs)
        stand.weigh()
        stand.loop()
    _settle(stand, PASSES)
    stand.weigh()
    rows = [_row(stand, what, values) for what, values in stand.times_s.items()]
    passes = sorted(stand.passes_ms.values())
    at95 = quantile(passes, 0.95)
    figures = {"what": "passes", "passes": len(passes), "ms_p50": passes[len(passes) // 2], "ms_p95": at95}
    rows += [{**figures, "ms_max": passes[-1]}, {"what": "passes of the empty cell", **empty}]
    print(f"passes: {rows[-2]}, of the empty cell: {empty}; memory {stand.memory_mb:.0f} MB", flush=True)
    return _goals(stand, rows, at95, deployments, jobs), rows


def _goals(
    stand: Stand, rows: list[dict[str, object]], pass_ms: float, deployments: int, jobs: int
) -> dict[str, dict[str, object]]:
    lists = {str(row["what"]): float(str(row["ms_p95"])) for row in rows if row.get("list")}
    slowest = max(lists, key=lambda what: lists[what])
    held = f"with {deployments} deployments and {jobs} finished jobs"
    return {
        "api.lists": report.goal(
            lists[slowest], "ms", must=LIST_MS, met=lists[slowest] < LIST_MS,
            protocol=f"p95 of the slowest list call ({slowest}) {held}, one client, one call at a time",
        ),
        "api.pass": report.goal(
            pass_ms, "ms", must=PASS_MS, met=pass_ms < PASS_MS,
            protocol=f"p95 of passes of the control loop as it measures them, during the calls and after, {held}",
        ),
        "api.memory": report.goal(
            round(stand.memory_mb), "MB", must=MEMORY_MB, met=stand.memory_mb < MEMORY_MB,
            protocol=f"largest resident memory of the control plane's process seen after each round, {held}",
        ),
    }  # fmt: skip


def _row(stand: Stand, what: str, values: list[float]) -> dict[str, object]:
    ordered = sorted(value * 1000 for value in values)
    row = {
        "what": what,
        "list": not what.startswith("one"),
        "calls": len(ordered),
        "ms_p50": round(ordered[len(ordered) // 2], 1),
        "ms_p95": round(quantile(ordered, 0.95), 1),
        "ms_max": round(ordered[-1], 1),
        "bytes": stand.sizes[what],
    }
    print(f"{what:<42} p50 {row['ms_p50']:>7} ms  p95 {row['ms_p95']:>7} ms  {row['bytes']:>9} bytes", flush=True)
    return row


def _calls(stand: Stand, ids: list[str], deployments: int, jobs: int) -> None:
    """Each call once, with a look at whether the answer is right: a wrong one may be as fast as it likes."""
    assert len(stand.get("GET /deployments", "/deployments")) == deployments
    pages = [
        stand.get("GET /jobs, a page of 500", "/jobs", page=page, page_size=PAGE)["jobs"]
        for page in range(1, math.ceil(jobs / PAGE) + 1)
    ]
    seen = {job["metadata"]["id"] for page in pages for job in page}
    assert len(seen) == jobs, f"{len(seen)} jobs on {len(pages)} pages"
    assert not stand.get("GET /jobs, past the end", "/jobs", page=len(pages) + 1, page_size=PAGE)["jobs"]
    failed = stand.get("GET /jobs?status=fail", "/jobs", status="fail", page=1, page_size=PAGE)
    assert failed["jobs"]
    assert all(job["status"]["state"] == "Failed" for job in failed["jobs"])
    one = random.choice(ids)
    found = stand.get("GET /jobs?q=ID", "/jobs", q=one, page=1, page_size=PAGE)["jobs"]
    assert [job["metadata"]["id"] for job in found] == [one]
    found = stand.get("GET /jobs?created_by=ali", "/jobs", created_by="ali", page=1, page_size=PAGE)["jobs"]
    assert all(job["metadata"]["owner"] == "alice" for job in found)
    found = stand.get("GET /jobs?query=team=red", "/jobs", query="team=red", page=1, page_size=PAGE)["jobs"]
    assert all(job["metadata"]["labels"]["team"] == "red" for job in found)
    assert len(stand.get("GET x/deployments", "/x/deployments")) == deployments
    stand.get("GET x/jobs", "/x/jobs")
    stand.get("GET x/events", "/x/events")
    stand.get("GET /dedicated-node-groups", "/dedicated-node-groups")
    stand.get("GET /workspace", "/workspace")
    assert stand.get("one: GET /jobs/ID", f"/jobs/{one}")["metadata"]["id"] == one
    stand.get("one: GET /jobs/ID/replicas", f"/jobs/{one}/replicas")


def _settle(stand: Stand, passes: int = 3) -> None:
    """Waits until the loop has made so many passes over what was written."""
    before, deadline_s = stand.loop()["passes"], time.monotonic() + SETTLE_S
    while stand.loop()["passes"] < before + passes:
        assert time.monotonic() < deadline_s, "the control loop makes no passes"
        time.sleep(0.2)


# -- the records


def _fill(store: Store, workspace: str, deployments: int, jobs: int) -> list[str]:
    """Writes the records, as the API and the loop would have left them; the ids of the jobs."""
    rng = random.Random(1)
    ops: list[Create] = []
    ids: list[str] = []
    for number in range(deployments):
        ops += _deployment(workspace, number, rng)
    for number in range(jobs):
        ops += _job(workspace, number, rng)
        ids.append(ops[-2].name)
    for start in range(0, len(ops), BATCH):
        store.batch(ops[start : start + BATCH])
    return ids


def _deployment(workspace: str, number: int, rng: random.Random) -> Iterator[Create]:
    name, uid, owner = f"service-{number:04d}", uuid7(), rng.choice(USERS)
    template = _template("serve.py", number)
    spec = DeploymentSpec(template=template, replicas={"min": 0, "max": 2}, created_by=owner, labels=_labels(rng))  # type: ignore[arg-type]
    rollout = {"release": 1, "state": "done", "reason": "", "since_ms": _now_ms()}
    status = {
        "state": "stopped", "reason": "", "warning": "", "wanted": 0, "needed": 0, "ready": 0, "serving": 0,
        "observed": 1, "rollout": rollout, "changed_ms": _now_ms(),
        "scaled": {"ms": _now_ms(), "from": 0, "reason": "stopped by its owner"},
    }  # fmt: skip
    yield Create(workspace, "deployment", name, _json(spec), status, None, uid)
    yield Create(workspace, "release", f"{name}#1", _json(ReleaseSpec(number=1, template=template)), {}, uid)


def _job(workspace: str, number: int, rng: random.Random) -> Iterator[Create]:
    title = f"train-{number % 97}"
    name, uid, state = f"{title}-{number:06x}", uuid7(), rng.choice(ENDS)
    template = _template("train.py", number)
    spec = JobSpec(
        template=template, title=title, ttl_s=30 * 86_400, created_by=rng.choice(USERS), labels=_labels(rng),
        stopped=state == "stopped",
    )  # fmt: skip
    ended_ms = _now_ms() - rng.randrange(86_400_000)
    good = state == "succeeded"
    status = {
        "state": state, "reason": "" if good else "worker 0: exit code 1", "observed": 1, "active": 0, "ready": 0,
        "failed": int(state == "failed"), "succeeded": int(good), "started_ms": ended_ms - 60_000, "ended_ms": ended_ms,
    }  # fmt: skip
    yield Create(workspace, "job", name, _json(spec), status, None, uid)
    own = uuid7()
    replica = ReplicaSpec(
        uid=own, workspace=workspace, name=f"{name}-0-{own[-8:]}", owner_kind="job", owner=name,
        command=template.command, env={**template.env, "WORLD_SIZE": "1", "NODE_RANK": "0"},
        resources=template.resources, needs_port=False,
    )  # fmt: skip
    ended = {"code": 0 if good else 1, "signal": None, "out_of_memory": False, "reason": "", "lost": False}
    copy = {
        "phase": "exited", "reason": f"exit code {ended['code']}", "seen": True, "address": "127.0.0.1", "port": None,
        "pid": 4242, "started_ms": ended_ms - 60_000, "ready_ms": ended_ms - 60_000, "limits": "rlimit",
        "isolation": "none", "last_log": "epoch 10: loss 0.1234",
        "exit": {**ended, "started_ms": ended_ms - 60_000, "ended_ms": ended_ms},
    }  # fmt: skip
    stored = {"replica": _json(replica), "node": f"node-{number % 3 + 1}", "secrets": {}, "drain_s": 10.0}
    yield Create(workspace, "replica", replica.name, {**stored, "worker": 0, "attempt": 0}, copy, uid, own)


def _template(script: str, number: int) -> Template:
    return Template(
        command=("/bin/bash", "-c", f"python {script} --data /mnt/data/{number} --learning-rate 0.001"),
        image="registry.example/team/train:1.4",
        env={"DATA": f"/mnt/data/{number}", "OMP_NUM_THREADS": "4", "WANDB_MODE": "offline"},
        resources=Resources(cpu_milli=200, memory_mib=256),
        shape="cpu.small",
    )


def _labels(rng: random.Random) -> dict[str, str]:
    return {"team": rng.choice(("red", "green", "blue"))}


def _json(model: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = model.model_dump(mode="json")
    return dumped


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    sys.exit(main())
