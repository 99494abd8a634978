"""Goal 6 between hosts: the kills of `failover.py` where every node is a network namespace of its own, over TLS.

Protocol: as in `failover.py`, but control, gateways and the load stand in one namespace and three agents in three more,
on one wire (Linux, root). Agents, their orders, models and requests cross it by TLS with the cell's certificates. A
node that is killed loses everything at once: agent, replicas, inlet, and the shims of all. A host that is cut off goes
on, but nothing reaches it and nothing comes from it (no goal is set for that; what was sent to it is sent elsewhere
after the seconds that the gateway waits for a silent host). Each trial begins when every replica has been ready for
11 s (not with --quick).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import report
from failover import AGE_S, killed, note
from stand import CELL, NAME, ROOT, Stand, trained

from lepton_ai import cloud
from lepton_ai.demo import shoot
from lepton_ai.demo.shoot import Shot
from lepton_ai.demo.trial import Offer, Trial, fields, trial
from lepton_ai.models import RecommenderModel
from lepton_ai.node.identity import Identity
from lepton_ai.node.launch import ShimSpec
from lepton_ai.settings import Settings

NODES, PORT = 3, 7070
WHERE = "LEPTON_BENCH_HOSTS"
PROTOCOL = "open loop at 70 % of capacity, 3 nodes in 3 network namespaces, survive = {node = 1}, TLS between them"
_LAUNCH = """
import json, sys
from pathlib import Path
from lepton_ai.node.launch import ShimSpec, launch
values = json.loads(sys.argv[2])
launch(Path(sys.argv[1]), ShimSpec(**{**values, "argv": tuple(values["argv"])}))
"""


def main() -> int:
    options = report.arguments(__doc__ or "")
    if WHERE in os.environ:
        return measure(options, json.loads(os.environ[WHERE]))
    tools = _tools()
    if why := tools.missing():
        print(f"not measured: {why}", file=sys.stderr)
        return 1
    trained(options.data[0] if options.data else None)  # what has to be fetched is fetched out here
    home = Path(tempfile.mkdtemp(prefix="lepton-bench-"))
    words = ["--out", str(options.out.absolute()), *(["--quick"] if options.quick else [])]
    words += ["--data", *(str(path.absolute()) for path in options.data)] if options.data else []
    try:
        with tools.wired(home / "wire", 1 + NODES) as wire:
            hosts = [{"address": host.address, "pid": host.pid, "wire": host.wire} for host in wire.hosts]
            env = {**os.environ, WHERE: json.dumps({"home": str(home), "hosts": hosts})}
            argv = wire.center.inside(sys.executable, str(Path(__file__).absolute()), *words)
            return subprocess.run(argv, env=env, check=False).returncode
    finally:
        shutil.rmtree(home, ignore_errors=True)


def measure(options: Any, place: dict[str, Any]) -> int:
    """What runs in the namespace of control and gateways."""
    name, model = trained(options.data[0] if options.data else None)
    quick = options.quick
    count, age_s = (1, 0.0) if quick else (20, AGE_S)
    goals: dict[str, dict[str, object]] = {}
    with far(model, Path(place["home"]), place["hosts"]) as cell:
        offer = cell.offer(cell.deploy(cell.form(low=2)))

        def kills(what: str, times: int, fire: Callable[[str, str], Shot], whole_node: bool) -> list[Trial]:
            return [one(cell, offer, what, age_s, fire, whole_node, number) for number in range(times)]

        trials = kills("replica killed", count, lambda uid, _: shoot.replica(cell.cell, uid), False)
        goals["6.hosts.replica"] = killed(trials, "SIGKILL of a replica", PROTOCOL)
        trials = kills("node killed", count, lambda _, node: cell.off(node), True)
        goals["6.hosts.node"] = killed(trials, "SIGKILL of all that a node runs", PROTOCOL)
        kills("host cut off", 1 if quick else 5, lambda _, node: cell.cut(node), True)
        rows = cell.rows
    for row in rows:
        row.setdefault("data", name)
    report.write(options.out, "hosts", goals, rows)
    return 0 if all(goal["met"] for goal in goals.values()) else 1


def one(
    cell: Far, offer: Offer, what: str, age_s: float, fire: Callable[[str, str], Shot], whole_node: bool, number: int
) -> Trial:
    """One trial, on the replicas (or their nodes) in turn."""
    on = cell.settle(NAME, 2, on=2, age_s=age_s)
    uid, node = sorted(on.items())[number % 2]

    def hit(before: Mapping[str, str]) -> set[str]:
        return {other for other, where in before.items() if where == node} if whole_node else {uid}

    done = note(cell, what, trial(cell.client, NAME, offer, lambda: fire(uid, node), hit))
    cell.start()
    return done


@dataclass
class Far(Stand):
    """A cell whose nodes are on other hosts. Their folders lie as in a cell's, so that `shoot` finds its targets."""

    hosts: list[dict[str, Any]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)

    @property
    def cell(self) -> Path:
        return self.settings.home / "there"

    def start(self) -> None:
        """Plug in what was cut off, and start the agents that do not run."""
        for number, host in enumerate(self.hosts, 1):
            name = f"node-{number}"
            if name in self.away:
                _run("ip", "link", "set", host["wire"], "up")
                self.away.discard(name)
            (self.cell / "system" / name / "hold").unlink(missing_ok=True)
            spec = json.dumps(asdict(self._agent(name, host)))
            argv = [sys.executable, "-c", _LAUNCH, str(self.cell / "system" / name), spec]
            _run("nsenter", "-t", str(host["pid"]), "-n", "-m", "--", *argv)

    def off(self, name: str) -> Shot:
        """The power of a node: all its processes at once."""
        shot = shoot.node(self.cell, name)
        folder = self.cell / "nodes" / name / "inlet"
        found = [who for part in ("shim", "child") if (who := Identity.read(folder / f"{part}.json")) is not None]
        return replace(shot, pids=(*shot.pids, *shoot.shoot("the inlet", found).pids))

    def cut(self, name: str) -> Shot:
        """The cable of a host."""
        shot = Shot(f"host of {name}", (), time.monotonic())
        _run("ip", "link", "set", self.hosts[int(name[-1]) - 1]["wire"], "down")
        self.away.add(name)
        return shot

    def _agent(self, name: str, host: dict[str, Any]) -> ShimSpec:
        folder = self.cell / "nodes" / name
        temporary = self.settings.home / f"tmp-{name}"
        temporary.mkdir(exist_ok=True)
        argv = [sys.executable, "-m", "lepton_ai.node", f"--dir={folder}", f"--name={name}", f"--port={PORT}"]
        argv += [f"--address={host['address']}", "--cpu-milli=1000", "--memory-mib=2048"]
        argv += [f"--tls-{what}={folder / file}" for what, file in _FILES.items()]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "LANG": "C.UTF-8"}
        env |= {"SSL_CERT_FILE": self.settings.tls_cert, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        return ShimSpec(tuple(argv), env, str(folder), restart="always", grace_s=5.0, backoff_max_s=0.5)


_FILES = {"cert": "node.pem", "key": "node.key", "ca": "ca.pem"}


@contextmanager
def far(model: RecommenderModel, home: Path, hosts: list[dict[str, Any]]) -> Iterator[Far]:
    """A cell in this namespace, with a node on each of the other hosts."""
    center, *others = hosts
    cert, key = _tools().certificate(home, [center["address"], "127.0.0.1"])
    os.environ["SSL_CERT_FILE"] = str(cert)
    settings = Settings(
        home=home,
        cell=CELL,
        cluster="static://" + ",".join(f"{host['address']}:{PORT}" for host in others),
        api_host=center["address"],
        tls_cert=str(cert),
        tls_key=str(key),
    )
    client = cloud.up(CELL, settings=settings)
    try:
        shutil.copytree(settings.cell_dir / "nodes", home / "there" / "nodes")
        made = Far(settings, home / "load", model, client, "", hosts=others)
        made.start()
        made.version = str(fields(client.register(NAME, model))["ref"])
        yield made
    finally:
        client.close()
        cloud.down(CELL, settings=settings, purge=True)


def _tools() -> Any:
    """The hosts that the tests use."""
    spec = importlib.util.spec_from_file_location("tests_hosts", ROOT / "tests" / "hosts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stderr)


if __name__ == "__main__":
    sys.exit(main())
