"""Replicas as users of their own: what they see, share and may use up. Each defence is shown against its absence."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.errors import Failed, Unsupported
from lepton_ai.node import cgroup, launch
from lepton_ai.node.agent import Agent
from lepton_ai.node.enclose import Enclosure, able
from lepton_ai.node.log import ReplicaLog
from lepton_ai.node.network import Network
from lepton_ai.node.process import ProcessRuntime
from lepton_ai.node.users import Users
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.container import Port
from lepton_ai.spec.replica import Exit, MountOrder, ReplicaReport, ReplicaSpec
from lepton_ai.spec.workload import Resources

WAIT_S = 60.0


def until(check: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + WAIT_S
    while not (value := check()):
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.01)
    return value


def spec(*command: str, workspace: str = "acme", **fields: Any) -> ReplicaSpec:
    uid = uuid7()
    values = {"resources": Resources(memory_mib=64), "needs_port": False, **fields}
    return ReplicaSpec(
        uid=uid, workspace=workspace, name=f"r-{uid}", owner_kind="job", owner="x", command=command, **values
    )


class Stage:
    """A node's runtime at isolation none or uid."""

    def __init__(self, folder: Path, level: str, **options: Any) -> None:
        self.folder = folder / "node"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.users = Users(folder / "users.json")
        self.network = Network(self.folder, "127.0.0.1", self.users)
        self.runtime = self.make(level, **options)
        self._groups: list[tuple[ReplicaSpec, tuple[str, ...]]] = []

    def make(self, level: str, **options: Any) -> ProcessRuntime:
        enclosure = Enclosure(self.folder, (self.folder,))
        if level == "none":
            return ProcessRuntime("node-1", enclosure=enclosure, **options)
        return ProcessRuntime("node-1", enclosure=enclosure, users=self.users, network=self.network, **options)

    def start(self, order: ReplicaSpec, blobs: dict[str, Path] | None = None) -> Path:
        self.runtime.check(order)
        folder = self.folder / "replicas" / order.uid
        folder.mkdir(mode=0o700, parents=True)
        made = self.runtime.prepare(order, folder, None, blobs or {})
        self._groups.append((order, made.cgroup))
        launch.launch(folder, made)
        return folder

    def run(self, order: ReplicaSpec, blobs: dict[str, Path] | None = None) -> tuple[Exit, str]:
        """How it ended and what it said."""
        folder = self.start(order, blobs)
        until(lambda: launch.state(folder).phase != "running")
        end = launch.state(folder).exit
        assert end is not None
        return end, "\n".join(line.line for line in ReplicaLog(folder / "log").last())

    def close(self) -> None:
        for order, groups in self._groups:
            launch.stop(self.folder / "replicas" / order.uid, 0)
            until(functools.partial(self.runtime.release, order, groups))
        self.network.remove()


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    why = able() or Network(tmp_path, "127.0.0.1", Users(tmp_path / "users.json")).available()
    if why:
        pytest.skip(f"isolation uid is not possible here: {why}")
    made: list[Stage] = []

    def make(level: str, **options: Any) -> Stage:
        made.append(Stage(tmp_path, level, **options))
        return made[-1]

    try:
        yield make
    finally:
        for stage in made:
            stage.close()


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", code)


def test_it_is_its_workspaces_user_without_rights(stages: Callable[..., Stage]) -> None:
    stage = stages("uid")
    code = "import os; print(os.getuid(), os.getgid(), os.getgroups()); print(open('/proc/self/status').read())"
    seen = [stage.run(spec(*python(code), workspace=name))[1].splitlines() for name in ("acme", "acme", "evil")]
    assert seen[0][0] == seen[1][0] == f"{stage.users.uid('acme')} {stage.users.uid('acme')} []"
    assert seen[2][0] != seen[0][0]
    for line in seen[0][1:]:
        if line.startswith("Cap"):
            assert int(line.split()[1], 16) == 0, line
    assert "NoNewPrivs:\t1" in seen[0]


def test_signals_and_exit_codes_are_the_commands(stages: Callable[..., Stage]) -> None:
    stage = stages("uid")
    assert stage.run(spec(*python("raise SystemExit(7)")))[0].code == 7
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(9)); print('up', flush=True); signal.pause()"
    folder = stage.start(spec(*python(code)))
    until(lambda: ReplicaLog(folder / "log").last())
    end = launch.stop(folder, 20).exit
    assert end is not None
    assert end.code == 9
    end, said = stage.run(spec("no-such-program"))
    assert (end.code, said) == (126, "lepton: cannot run 'no-such-program': No such file or directory")


FORKS = """
import os, time
count = 0
try:
    while count < 120:
        if os.fork() == 0:
            time.sleep(600)
        count += 1
except OSError:
    pass
print(count, flush=True)
"""


@pytest.mark.parametrize("use_cgroup", [True, False])
def test_a_fork_bomb_ends_at_the_limit(
    stages: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, use_cgroup: bool
) -> None:
    monkeypatch.setattr(cgroup, "MAX_PROCESSES", 40)
    stage = stages("uid", use_cgroup=use_cgroup)
    if use_cgroup and not cgroup.make("probe", Resources()):
        pytest.skip("control groups cannot be made here")
    cgroup.remove(cgroup.make("probe", Resources()) if use_cgroup else ())
    assert int(stage.run(spec("sh", "-c", f"exec {sys.executable} -I -c '{FORKS}'"))[1]) < 40
    if not use_cgroup:  # without the defence
        free = stages("none", use_cgroup=False)
        assert int(free.run(spec(*python(FORKS)))[1]) == 120


FILL = """
import os, sys
size = 0
try:
    with open(sys.argv[1], 'wb', buffering=0) as file:
        while size < int(sys.argv[2]) << 20:
            size += file.write(bytes(1 << 20))
except OSError:
    pass
os.unlink(sys.argv[1])
print(size >> 20)
"""


@pytest.mark.parametrize(("path", "mib"), [("/tmp/fill", 64), ("/var/tmp/fill", 64), ("/dev/shm/fill", 8)])
def test_files_in_memory_are_bounded_and_its_own(stages: Callable[..., Stage], path: str, mib: int) -> None:
    name = f"{path}-{uuid7()}"
    # Without control groups, in which this memory counts as the replica's.
    order = spec(*python(FILL), name, str(mib + 4), shared_memory_mib=8)
    assert int(stages("uid", use_cgroup=False).run(order)[1]) == mib
    if not path.startswith("/dev/shm"):  # without the defence (shared memory has its size at every level)
        free = spec(*python(FILL), name, str(mib + 4))
        assert int(stages("none", use_cgroup=False).run(free)[1]) == mib + 4
    keep = spec("sh", "-c", f"echo x > {name} && echo up; sleep 600", shared_memory_mib=8)
    stage = stages("uid", use_cgroup=False)
    folder = stage.start(keep)
    until(lambda: ReplicaLog(folder / "log").last())
    assert stage.run(spec("ls", name))[0].code != 0
    assert not os.path.exists(name)


def mount(target: str = "/data", **fields: Any) -> tuple[MountOrder, ...]:
    return (MountOrder(target=target, **fields),)


@pytest.mark.parametrize("level", ["none", "uid"])
def test_mounts(stages: Callable[..., Stage], level: str, tmp_path: Path) -> None:
    stage = stages(level)
    assert stage.run(spec("sh", "-c", "echo one > /data/a/file", mounts=mount("/data/a", path="/sub/deep")))[0].ok
    end, said = stage.run(spec("cat", "/opt/some/where/deep/file", mounts=mount("/opt/some/where", path="/sub")))
    assert (end.code, said) == (0, "one")
    assert not os.path.exists("/opt/some")
    end, said = stage.run(spec("sh", "-c", "cat /data/sub/deep/file; echo x > /data/y", mounts=mount(read_only=True)))
    assert end.code != 0
    assert said.splitlines()[0] == "one"
    assert "Read-only file system" in said
    file = stage.folder / "volumes" / "acme" / "sub" / "deep" / "file"
    owner = stage.users.uid("acme") if level == "uid" else 0
    assert (file.stat().st_uid, file.read_text()) == (owner, "one\n")
    assert stage.run(spec("ls", "/data", mounts=mount(), workspace="evil"))[1] == ""
    root = tmp_path / "volume"
    root.mkdir(mode=0o755)
    (root / "given").write_text("by the operator")
    given = mount(volume="shared", root=str(root))
    assert stage.run(spec("cat", "/data/given", mounts=given))[1] == "by the operator"
    end, said = stage.run(spec("true", mounts=mount(volume="gone", root=str(tmp_path / "gone"))))
    assert (end.code, said.startswith("lepton: cannot mount volume gone")) == (126, True)
    with pytest.raises(Unsupported, match="would hide"):
        stage.runtime.check(spec("true", mounts=mount(str(stage.folder))))


def test_isolation_that_is_switched_on_takes_the_files_along(stages: Callable[..., Stage]) -> None:
    stages("none").run(
        spec("sh", "-c", "mkdir /data/a; echo one > /data/a/file; ln -s /etc/passwd /data/a/l", mounts=mount())
    )
    assert stages("uid").run(spec("sh", "-c", "echo two >> /data/a/file", mounts=mount()))[0].ok
    assert os.stat("/etc/passwd").st_uid == 0


def test_a_link_in_a_volume_leads_nowhere(stages: Callable[..., Stage], tmp_path: Path) -> None:
    stage = stages("uid")
    victim = tmp_path / "node" / "volumes" / "victim"
    victim.mkdir(parents=True)
    (victim / "loot").write_text("loot")
    plant = f"ln -s {victim} /data/link; ln -s / /data/top; mkdir /data/x; ln -s /etc /data/x/etc"
    assert stage.run(spec("sh", "-c", plant, mounts=mount()))[0].ok
    for path in ("/link", "/top/etc", "/x/etc", "/link/new"):
        end, said = stage.run(spec("ls", "/data", mounts=mount(path=path)))
        assert (end.code, "cannot mount" in said) == (126, True), said
    # The links are there, and whoever follows them as root arrives: the refusal is what stops it.
    assert (stage.folder / "volumes" / "acme" / "link" / "loot").read_text() == "loot"
    # Nor does a mount below another one follow them.
    both = (*mount(), *mount("/data/x/etc/new"))
    end, said = stage.run(spec("true", mounts=both))
    assert (end.code, "no folder" in said) == (126, True), said
    assert not os.path.exists("/etc/new")


@pytest.mark.parametrize("level", ["none", "uid"])
def test_a_blob_in_the_cache(stages: Callable[..., Stage], tmp_path: Path, level: str) -> None:
    blob = tmp_path / "blob"
    blob.write_text("weights")
    blob.chmod(0o400)
    code = (
        "cat sub/m.bin; (echo worse > sub/m.bin) 2>/dev/null; chmod 777 sub/m.bin 2>/dev/null;"
        "rm sub/m.bin && echo mine > sub/m.bin"
    )
    said = stages(level).run(spec("sh", "-c", code), {"sub/m.bin": blob})[1]
    assert said == "weights"
    assert (blob.read_text() == "weights") is (level == "uid")  # without the defence it is overwritten
    assert blob.stat().st_uid == 0


STRAY = "import os, time\nif os.fork() == 0:\n os.setsid()\n os.execve('/bin/sleep', ['sleep', '600'], {})\n"


def test_what_hides_from_its_shim_ends_with_its_network(stages: Callable[..., Stage]) -> None:
    stage = stages("uid", use_cgroup=False)
    order = spec(*python(STRAY))
    assert stage.run(order)[0].ok
    uid = stage.users.uid("acme")
    assert owned(uid)
    assert stage.runtime.release(order, ())
    until(lambda: not owned(uid))


def owned(uid: int) -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                found.append(name)
        except OSError:
            continue
    return found


def test_nothing_of_its_environment_reaches_a_program_of_root(stages: Callable[..., Stage], tmp_path: Path) -> None:
    stage = stages("uid")
    env = {"LD_PRELOAD": "/data/evil.so", "PYTHONPATH": "/data", "PYTHONSTARTUP": "/data/x", "PATH": "/data"}
    made = stage.runtime.prepare(spec("true", env=env), tmp_path / "node" / "replicas" / "x", None, {})
    assert made.env == {"PATH": os.defpath}
    order = tmp_path / "node" / "replicas" / "x" / "enter.json"
    assert json.loads(order.read_text())["env"]["LD_PRELOAD"] == "/data/evil.so"
    assert order.stat().st_mode & 0o077 == 0
    stage.network.close("x")


def test_an_agent_takes_isolated_replicas_up_again(stages: Callable[..., Stage]) -> None:
    stage = stages("uid")
    serve = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8080)"
    ports = (Port(number=8080, exposed=True, name="again"), Port(number=9000, protocol="UDP", exposed=True))
    orders = [spec(*python(serve), needs_port=True, port=8080, ports=ports) for _ in range(2)]

    async def life() -> None:
        agent = Agent(stage.folder, "node-1", Resources(), stage.runtime)
        await agent.start()
        for order in orders:
            await agent.apply(order, 1)
        first = await ready(agent)
        assert len({one.port for one in first} | {one.host_port for two in first for one in two.ports}) == 6
        assert {(one.number, one.protocol) for one in first[0].ports} == {(8080, "TCP"), (9000, "UDP")}
        await agent.close()
        again = Agent(stage.folder, "node-1", Resources(), stage.make("uid"))
        await again.start()
        second = await ready(again)
        assert [(one.port, one.ports, one.inner_address, one.pid) for one in second] == [
            (one.port, one.ports, one.inner_address, one.pid) for one in first
        ]
        for order in orders:
            await again.stop(order.uid, 0, 1)
        while not all(one.phase == "exited" for one in again.usage().replicas):
            await asyncio.sleep(0.02)
        for order in orders:
            await again.forget(order.uid, 1)
        assert not stage.network.records()
        await again.close()

    async def ready(agent: Agent) -> list[ReplicaReport]:
        while not all(one.phase == "ready" and one.inner_address for one in agent.usage().replicas):
            assert not any(one.exit for one in agent.usage().replicas), agent.usage().replicas
            await asyncio.sleep(0.02)
        return sorted(agent.usage().replicas, key=lambda one: one.uid)

    asyncio.run(asyncio.wait_for(life(), WAIT_S))


def test_a_replica_does_not_go_on_at_another_isolation(stages: Callable[..., Stage]) -> None:
    open_, closed = stages("none"), stages("uid")
    orders = [spec("sleep", "600") for _ in range(2)]

    async def life() -> None:
        for order, before, after in ((orders[0], open_, closed), (orders[1], closed, open_)):
            agent = Agent(before.folder, "node-1", Resources(), before.runtime)
            await agent.start()
            await agent.apply(order, 1)
            while report(agent, order).phase != "ready":
                await asyncio.sleep(0.02)
            assert report(agent, order).isolation == before.runtime.isolation
            await agent.close()
            again = Agent(after.folder, "node-1", Resources(), after.runtime)
            await again.start()
            while report(again, order).phase != "exited":
                assert report(again, order).isolation == before.runtime.isolation
                await asyncio.sleep(0.02)
            found = report(again, order).exit
            assert found is not None
            assert found.reason.startswith("lost: this node runs replicas as process/")
            await again.close()

    def report(agent: Agent, order: ReplicaSpec) -> ReplicaReport:
        return next(one for one in agent.usage().replicas if one.uid == order.uid)

    asyncio.run(asyncio.wait_for(life(), WAIT_S))


def test_user_ids_are_never_shared(tmp_path: Path) -> None:
    first, second = Users(tmp_path / "users.json"), Users(tmp_path / "users.json")
    given = [users.uid(f"w{number}") for number in range(20) for users in (first, second)]
    assert len(set(given)) == 20
    assert Users(tmp_path / "users.json").uid("w3") == first.uid("w3")
    (tmp_path / "users.json").write_text("{torn")
    from lepton_ai.errors import Unavailable

    with pytest.raises(Unavailable):
        Users(tmp_path / "users.json").uid("w3")


def test_a_volume_without_a_folder_is_refused(tmp_path: Path) -> None:
    order = spec("true", mounts=mount(volume="cloud"))
    (tmp_path / "r").mkdir()
    with pytest.raises(Failed, match="cloud has no folder"):
        Enclosure(tmp_path, ()).order(order, tmp_path / "r", ["true"], {})
