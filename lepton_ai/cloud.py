"""A cell on this machine as a whole: `up`, `down`, `attach`, `cells`, `state`. The composition root of its processes.

Owns what runs under which shim (`node.launch` owns how), the first token and key, and the order of starting and
ending. Everything is idempotent: `up` starts what is missing and adopts what runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lepton_ai.client import Cloud
from lepton_ai.control import hosts
from lepton_ai.control.folder import NODES, State, read
from lepton_ai.errors import Conflict, Invalid, LeptonError, NotFound, Timeout, Unauthorized, Unavailable, Unsupported
from lepton_ai.gateway.envoy import EnvoyGateway
from lepton_ai.gateway.listener import Listen
from lepton_ai.gateway.sockets import sockets
from lepton_ai.node import docker, launch
from lepton_ai.node.enclose import able
from lepton_ai.node.identity import Identity
from lepton_ai.node.launch import ShimSpec
from lepton_ai.node.log import ReplicaLog
from lepton_ai.node.network import SHARED, Network
from lepton_ai.node.users import Users
from lepton_ai.settings import Settings, load
from lepton_ai.spec.base import NAME_PATTERN, is_name, uuid7
from lepton_ai.store import Store
from lepton_ai.tenancy import Access, load_key

READY_S = 60.0
ARRIVE_S = 5.0
"""so long `up` waits for agents of other hosts before it says how they are started"""
_KEPT_ENV = ("PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")

Say = Callable[[str], None]


def up(
    name: str = "local", *, settings: Settings | None = None, nodes: int | None = None, say: Say | None = None
) -> Cloud:
    """Start the cell `name`, or what is missing of it, and return a connection to it.

    Args:
        settings: default: what `lepton config` shows.
        nodes: agents, each with an equal share of this machine (default: the setting `cluster`). Of a cluster of
            other hosts it starts none, and says what is to be done there.
        say: is told what is waited for.

    Raises:
        Invalid: the name or a setting. Conflict: a port in use. Unsupported: a URL of another release.
        Timeout: it did not come up; the message holds the last words of what failed.
    """
    say = say or (lambda _: None)
    settings = settings or load({"cell": name})
    path = settings.home / "cells" / _named(name)
    remote = hosts.hosts(settings.cluster)
    if remote and nodes is not None:
        raise Invalid(f"cluster = {settings.cluster} names its nodes", hint="leave --nodes out")
    if not remote:
        _check_isolation(settings, path)
    with _locked(path):
        state = _state(path, name, settings, nodes if nodes is not None else hosts.local(settings.cluster))
        token = _prepare(state)
        _launch(state, say)
    cloud = Cloud(state.api_url, token, settings.workspace)
    try:
        _await(state, cloud, say)
        _await_hosts(state, cloud, say)
    except BaseException:
        cloud.close()
        raise
    return cloud


def down(name: str = "local", *, settings: Settings | None = None, purge: bool = False, say: Say | None = None) -> None:
    """End every process of the cell; with `purge` delete its data too. What ran comes back with the next `up`.

    Raises NotFound when there is no such cell, Timeout when a process does not end.
    """
    say = say or (lambda _: None)
    home = _home(settings)
    path = home / "cells" / _named(name)
    # Not any folder: with `purge` all that is in it goes.
    if not any((path / part).exists() for part in ("cell.json", "system")):
        raise NotFound(f"there is no cell {name!r} in {home}", hint=_cells_hint(home))
    with _locked(path):
        say(f"ending cell {name}")
        system = path / "system"
        _end([system / "control"])
        _end([*system.glob("node-*")])
        _end([*path.glob("nodes/*/replicas/*")], "lost: the cell was stopped")
        with contextlib.suppress(LeptonError):  # also what cannot be read can be ended
            for host in hosts.afar(read(path)):
                say(f"what runs on {host.address} runs on: end its agent there, then run: sh {host.name}/start --end")
        _end([*system.glob("*")])
        if sys.platform == "linux" and os.geteuid() == 0 and SHARED.exists():
            for folder in path.glob("nodes/*"):
                Network(folder, "127.0.0.1", Users(folder.parent / "users.json")).remove()
        _end_containers(path, purge, say)
        if purge:
            say(f"deleting {path}")
            with contextlib.suppress(LeptonError):  # outside the folder when its path is too long for a socket
                shutil.rmtree(sockets(path / "gateway"), ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                raise Unavailable(f"{path} could not be deleted", hint=f"check: ls -la {path}")


def attach(name: str = "local", *, settings: Settings | None = None) -> Cloud:
    """A connection to a cell on this machine. Raises NotFound when there is none of that name."""
    settings = settings or load({"cell": _named(name)})
    found = read(settings.home / "cells" / _named(name))
    if found is None:
        raise NotFound(f"there is no cell {name!r} on this machine", hint=_cells_hint(settings.home))
    try:
        token = found.token_path.read_text("ascii").strip()
    except OSError as error:
        raise Unavailable(
            f"cannot read {found.token_path}: {error.strerror}", hint=f"run: lepton up --cell {name}"
        ) from None
    return Cloud(found.api_url, settings.token or token, settings.workspace)


def cells(*, settings: Settings | None = None) -> list[str]:
    """The names of the cells of this user on this machine, running or not."""
    home = _home(settings)
    return sorted(path.parent.name for path in home.glob("cells/*/cell.json"))


def state(name: str = "local", *, settings: Settings | None = None) -> State | None:
    """Where the cell is and how it is reached; None when there is none of that name."""
    return read(_home(settings) / "cells" / _named(name))


def _named(name: str) -> str:
    """A cell's name, which is never a path. Raises Invalid."""
    if not is_name(name):
        raise Invalid(f"{name!r} cannot be a cell's name", hint=f"names match {NAME_PATTERN}, for example: local")
    return name


def _home(settings: Settings | None) -> Path:
    """Where cells lie: also what a lepton.toml says counts, as for `up`."""
    return (settings or load()).home


def _check_isolation(settings: Settings, path: Path) -> None:
    if settings.runtime.startswith("docker://"):  # then a container is the isolation
        if why := docker.answering(docker.socket_of(settings.runtime)):
            raise Unavailable(why, hint=docker.INSTALL)
    elif settings.isolation == "uid":
        why = able() or Network(path, "127.0.0.1", Users(path / "users.json")).available()
        if why:
            raise Unsupported(
                f"isolation = uid is not possible here: {why}",
                hint="run as root on Linux with iproute2 and nftables, or set isolation = none",
            )


# -- what the cell is


def _state(path: Path, name: str, settings: Settings, nodes: int) -> State:
    """The cell's state: what it was, with this call's settings; or a new one."""
    before = read(path)
    hosts.check(before, settings.cluster, nodes)
    running = before is not None and _running(before, "control")
    api_port = _port("api", settings.api_host, settings.api_port, before.api_port if before else 0, running)
    gateway = before is not None and any(_running(before, f"envoy-{n}") for n in range(1, settings.gateways + 1))
    port = before.gateway_port if before else 0
    gateway_port = _port("gateway", settings.gateway_host, settings.gateway_port, port, gateway, avoid=api_port)
    now = State(
        name=name,
        uid=before.uid if before else uuid7(),
        dir=path,
        nodes=tuple(f"node-{number}" for number in range(1, nodes + 1)),
        api_host=settings.api_host,
        api_port=api_port,
        gateway_host=settings.gateway_host,
        gateway_port=gateway_port,
        created_ms=before.created_ms if before else time.time_ns() // 1_000_000,
        settings=settings,
    )
    if now != before:
        now.write()
        if running:  # it read the old settings
            _end([now.system_dir("control")])
        if gateway and before is not None and (now.gateway_host, gateway_port) != (before.gateway_host, port):
            _end([now.system_dir(f"envoy-{number}") for number in range(1, 9)])
    return now


def _prepare(state: State) -> str:
    """Key, database, nodes and the first token. Returns the token's text."""
    load_key(state.key_path)
    state.lake_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # so that a client on this machine finds it at once
    with Store.open(state.store_url) as store:
        for name, spec in hosts.specs(state).items():
            record = store.find(NODES, "node", name)
            if record is None:
                store.create(NODES, "node", name, {**spec, "unschedulable": False})
            elif any(record.spec.get(key) != value for key, value in spec.items()):
                store.update(record, spec={**record.spec, **spec})
        return _token(state, Access(store))


def _token(state: State, access: Access) -> str:
    path, workspace = state.token_path, state.settings.workspace
    try:
        text = path.read_text("ascii").strip()
        access.authenticate(text)
        return text
    except (OSError, UnicodeDecodeError, Unauthorized):
        pass
    with contextlib.suppress(NotFound):
        access.revoke(workspace, "local", actor="up")
    text, _ = access.issue(workspace, "owner", "local", actor="up")
    part = path.with_name("token.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    part.replace(path)
    return text


# -- its processes


def _launch(state: State, say: Say) -> None:
    settings = state.settings
    listen = Listen.of(settings, state.gateway_host, state.gateway_port)
    gateway = EnvoyGateway(state.dir / "gateway", listen, settings.gateways, upstream=hosts.upstream(state))
    workloads: dict[str, ShimSpec] = {}
    for number in range(1, settings.gateways + 1):
        workloads[f"envoy-{number}"] = _system(state, gateway.argv(number), grace_s=5)
    workloads["activator"] = _system(state, gateway.activator_argv(), grace_s=2)
    share = hosts.share(len(state.nodes))
    for name in state.nodes:
        limits = [f"--cpu-milli={share['cpu_milli']}", f"--memory-mib={share['memory_mib']}"]
        if settings.runtime.startswith("docker://"):
            # Where it is now: an agent does not have the environment of who starts it.
            limits.append(f"--runtime=docker://{docker.socket_of(settings.runtime)}")
            limits += [f"--images-max-{unit}={getattr(settings, f'images_max_{unit}')}" for unit in ("gib", "days")]
        else:
            limits.append(f"--isolation={settings.isolation}")
        argv = [sys.executable, "-m", "lepton_ai.node", f"--dir={state.node_dir(name)}", f"--name={name}", *limits]
        workloads[name] = _system(state, argv, grace_s=5)
    workloads["control"] = _system(state, [sys.executable, "-m", "lepton_ai.api", f"--dir={state.dir}"], grace_s=8)
    for name, spec in workloads.items():
        folder = state.system_dir(name)
        if not _running(state, name):
            say(f"starting {name}")
        (folder / "hold").unlink(missing_ok=True)
        try:
            launch.launch(folder, spec)
        except Conflict:  # it runs, started with other settings or by another release
            launch.stop(folder)
            launch.launch(folder, spec)


def _system(state: State, argv: list[str], *, grace_s: float) -> ShimSpec:
    env = {name: os.environ[name] for name in _KEPT_ENV if name in os.environ}
    package = str(Path(__file__).resolve().parents[1])
    known = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    env["PYTHONPATH"] = os.pathsep.join([package, *(part for part in known if part != package)])
    env |= {"PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    cwd = str(state.dir)
    # Whatever ends them, a cell cannot be without them for long: never more than a moment's pause.
    return ShimSpec(tuple(argv), env, cwd, restart="always", grace_s=grace_s, log_max_bytes=16 << 20, backoff_max_s=0.5)


def _running(state: State, workload: str) -> bool:
    identity = Identity.read(state.system_dir(workload) / "shim.json")
    return identity is not None and identity.alive()


def _end(folders: list[Path], reason: str = "") -> None:
    """Stop the shims of these folders at once, each with its own grace."""
    if folders:
        with ThreadPoolExecutor(max_workers=min(32, len(folders))) as pool:
            list(pool.map(lambda folder: launch.stop(folder, reason=reason), folders))


def _end_containers(path: Path, purge: bool, say: Say) -> None:
    """What is left of the cell at its engine: containers whose watchers were killed, and with `purge` images."""
    found = None
    with contextlib.suppress(LeptonError):
        found = read(path)
    if found is None or not found.settings.runtime.startswith("docker://"):
        return
    try:
        docker.leave(found.settings.runtime, path / "nodes", purge=purge)
    except LeptonError as error:
        say(f"{error.message}: what is left there is removed when the cell is up again")


def _await(state: State, cloud: Cloud, say: Say) -> None:
    """Until the loops lead, every node is there and the gateway takes requests."""
    listen = Listen.of(state.settings, state.gateway_host, state.gateway_port)
    deadline_s = time.monotonic() + READY_S
    while True:
        waits = _waits_for(state, cloud, listen)
        if not waits:
            return
        if time.monotonic() > deadline_s:
            words = _last_words(state)
            raise Timeout(
                f"cell {state.name} did not come up within {READY_S:g} s: {waits}" + (f" ({words})" if words else ""),
                hint="run: lepton doctor",
            )
        say(f"waiting for {waits}")
        time.sleep(0.05)


def _waits_for(state: State, cloud: Cloud, listen: Listen) -> str:
    try:
        if not cloud.health().get("leading"):
            return "the control loops to lead"
        absent = [node.name for node in cloud.nodes() if node.name in state.nodes and node.state == "unreachable"]
        if absent:
            return ", ".join(absent)
    except Unavailable:
        return "the control plane"
    with contextlib.suppress(OSError), socket.create_connection((listen.address, listen.port), timeout=1.0):
        return ""
    return "the gateway"


def _await_hosts(state: State, cloud: Cloud, say: Say) -> None:
    """Give agents on other hosts a moment; say what is to be done for those that do not come. They may come later."""
    awaited = {host.name: host for host in hosts.afar(state)}
    deadline_s = time.monotonic() + ARRIVE_S
    while absent := [node for node in cloud.nodes() if node.name in awaited and node.state == "unreachable"]:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    for node in absent:
        say(f"{node.name} is not there ({node.reason}): {hosts.advice(state, awaited[node.name])}")
    if lack := hosts.lacks(state):
        say(lack)


def _last_words(state: State) -> str:
    """The last line of the control plane's log, when it does not stay up."""
    found = ReplicaLog(state.system_dir("control") / "log").last()
    return next((line.line for line in reversed(found) if "ERROR" in line.line or "error" in line.line), "")[:300]


# -- small things


def _port(what: str, host: str, wanted: int, before: int, running: bool, avoid: int = 0) -> int:
    """The port to use. Raises Conflict when a wanted one is another's."""
    port = wanted or before
    if running and port == before:
        return port
    if port and _free(host, port):
        return port
    if wanted:
        hint = f"see who has it: ss -ltnp 'sport = :{wanted}', or set {what}_port = 0"
        raise Conflict(f"{what}_port {wanted} is in use on {host}", hint=hint)
    while True:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
            found = int(sock.getsockname()[1])
        if found != avoid:
            return found


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1)
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One `up` or `down` of a cell at a time. Raises Unavailable when the folder cannot be made."""
    try:
        while True:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == (path / "lock").stat().st_ino:
                    break
            os.close(lock)  # deleted by a `down --purge` that we waited for
    except OSError as error:
        hint = "set LEPTON_AI_HOME to a folder of yours"
        raise Unavailable(f"cannot use {path}: {error.strerror}", hint=hint) from error
    try:
        yield
    finally:
        os.close(lock)


def _cells_hint(home: Path) -> str:
    names = sorted(path.parent.name for path in home.glob("cells/*/cell.json"))
    return f"there are: {', '.join(names)}" if names else "start one: lepton up"


__all__ = ["LeptonError", "State", "attach", "cells", "down", "state", "up"]
