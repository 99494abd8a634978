"""The runtime that runs a replica as a container of a Docker engine.

Owns its folder, network and volumes, and finding again what belongs to this node (by labels). What a container may do
is in `container`; who runs one is `contain`, under the replica's shim. As root it gives every replica a network as
`network` does; else the engine's own networks are used, one a workspace, and the engine leads host ports to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lepton_ai.errors import Failed, LeptonError, Unsupported
from lepton_ai.node import contain
from lepton_ai.node.container import bind, container, visible
from lepton_ai.node.engine import CREATE_S, Away, Engine, Refused
from lepton_ai.node.hold import HOLD, hold
from lepton_ai.node.images import Image, Images, away
from lepton_ai.node.launch import ShimSpec
from lepton_ai.node.network import Network
from lepton_ai.node.process import fill, place
from lepton_ai.node.runtime import ImageUse, Isolation, RuntimeName, told, wanted
from lepton_ai.spec.container import LOCAL, PortMap
from lepton_ai.spec.replica import MountOrder, ReplicaSpec

SOCKET = "/var/run/docker.sock"
INSTALL = "install and start one (Debian: sudo apt-get install docker.io), or set runtime = process://"
BLOBS = "/opt/lepton_ai/blobs"
STAGE = Path("/run/lepton_ai/binds")
CLEAN_S = 600.0
LABEL = "lepton_ai."

_log = logging.getLogger(__name__)


class DockerRuntime:
    """Runs replicas in containers.

    Args:
        node: the node's name.
        folder: the node's; its path tells this node's containers from those of others.
        network: gives every replica a network of its own; None: the engine does.
        address: where host ports are reached.
    """

    name: RuntimeName = "docker"
    isolation: Isolation = "container"
    forwards = True

    def __init__(
        self,
        node: str,
        folder: Path,
        engine: Engine,
        images: Images,
        network: Network | None = None,
        *,
        address: str = "127.0.0.1",
    ) -> None:
        self.node, self._folder, self._address = node, folder.absolute(), address
        self._engine, self._images, self._network = engine, images, network
        self.holds = network is not None
        self._scope = scope(self._folder)
        self._bridging = threading.Lock()
        self._begun: set[str] = set()
        self._fetched: dict[str, Image] = {}
        self._cleaned_s = 0.0

    def check(self, spec: ReplicaSpec) -> None:
        """Raises Unsupported when this runtime cannot run `spec`."""
        if spec.image is None:
            raise Unsupported(
                f"node {self.node} runs containers, and no image is given", hint="set an image, for example python:3.12"
            )
        for mount in spec.mounts:
            if os.geteuid() != 0 and mount.path != "/":
                raise Unsupported(
                    f"{mount.path} of volume {mount.volume} cannot be mounted: without root, whole volumes only",
                    hint='mount path "/", or run the node as root',
                )

    def fetch(self, spec: ReplicaSpec, say: Callable[[str], None]) -> None:
        """Bring the image here."""
        assert spec.image is not None
        self._fetched[spec.uid] = self._images.fetch(spec.image, spec.logins, say)

    def prepare(
        self,
        spec: ReplicaSpec,
        folder: Path,
        port: int | None,
        blobs: Mapping[str, Path],
        maps: Sequence[PortMap] = (),
    ) -> ShimSpec:
        """Lay out the order for `contain`, with a network to join."""
        self._begun.add(spec.uid)
        image = self._fetched[spec.uid]
        for name, source in blobs.items():
            place(source, folder / "blobs", name)
        if blobs:
            _readable(folder / "blobs")
        for left in self._containers(spec.uid):
            self._remove(left)
        held, address = "", None
        if self._network is not None:
            self._network.close(spec.uid)
            held, pid = self._hold(spec)
            address = self._network.open(spec.uid, spec.workspace, maps, pid=pid).address
        names = {"{blobs}": BLOBS, "{port}": "" if port is None else str(port)}
        env = {**wanted(spec, told(spec, self.node, port), address, port), **visible(spec)}
        argv = [fill(part, names) for part in spec.command]
        create = container(spec, image, argv, env, self._labels(spec))
        create["HostConfig"] |= self._networking(spec, maps, held)
        if not held:
            create |= {"Hostname": _hostname(spec), "ExposedPorts": {_key(one): {} for one in maps}}
        else:
            self._hosts(spec, folder, create, address)
        if blobs:
            bind(create, folder / "blobs", BLOBS, read_only=True)
        order = {
            "folder": str(folder), "engine": self._engine.path, "name": _name(spec.uid), "hold": held,
            "create": create, "mounts": [self._volume(mount, spec.workspace) for mount in spec.mounts],
            "stage": str(STAGE / f"{contain.STAGED}{spec.uid}"), "grace_s": spec.grace_s, "note": image.note,
            "stop_signal": image.config.get("StopSignal") or "SIGTERM",
        }  # fmt: skip
        path = folder / "contain.json"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(order, file)
        return ShimSpec(
            argv=(sys.executable, "-I", "-S", "-E", contain.__file__, str(path)),
            env={"PATH": os.defpath},
            cwd=str(folder),
            restart="never",
            grace_s=spec.grace_s,
            lease_s=spec.lease_s if spec.exclusive else None,
        )

    def started(self, spec: ReplicaSpec, folder: Path) -> None:
        """Wait until the container is known, so that what it uses can be measured."""
        until_s = time.monotonic() + CREATE_S
        while not (folder / "container.json").exists() and not (folder / "exit.json").exists():
            if time.monotonic() > until_s:
                return
            time.sleep(0.02)

    def limits(self, groups: tuple[str, ...]) -> Literal["cgroup", "rlimit", "none"]:
        """The engine's own."""
        return "cgroup"

    def image(self, spec: ReplicaSpec) -> ImageUse:
        return "used"

    def reached(self, spec: ReplicaSpec) -> str | None:
        return None if self._network is None else self._network.address(spec.uid)

    def release(self, spec: ReplicaSpec, groups: tuple[str, ...]) -> bool:
        """Remove what is left of a container, also one that nobody watches any more."""
        self._fetched.pop(spec.uid, None)
        self._begun.discard(spec.uid)  # it has ended: what cannot be removed here, a sweep may
        contain.unstage([str(path) for path in STAGE.glob(f"{contain.STAGED}{spec.uid}-*")])
        try:
            if self._network is not None:
                self._network.close(spec.uid)
            for left in self._containers(spec.uid):
                self._remove(left)
            return not self._containers(spec.uid)
        except LeptonError as error:
            _log.warning("replica %s: %s", spec.uid, error)
            return False

    def sweep(self, live: Collection[str]) -> None:
        """Containers and networks that no replica has, and images that are too old or too many."""
        if self._network is not None:
            self._network.sweep(live)
        found = self._listed()
        keep = self._begun | set(live)  # looked at afterwards: what is being started is in it before it is there
        for left in found:
            if left["Labels"].get(f"{LABEL}uid") not in keep:
                _log.warning("removing container %s: no replica has it", left["Names"])
                self._remove(left["Id"])
        if time.monotonic() - self._cleaned_s > CLEAN_S or not self._cleaned_s:
            self._cleaned_s = time.monotonic()
            self._images.clean()

    def close(self) -> None:
        pass

    # --- what a container is --------------------------------------------------------------------------------------

    def _labels(self, spec: ReplicaSpec) -> dict[str, str]:
        parents = self._folder.parents
        cell = parents[1].name if parents[0].name == "nodes" else ""
        values = {"cell": cell, "node": self.node, "workspace": spec.workspace, "uid": spec.uid, "scope": self._scope}
        return {f"{LABEL}{key}": value for key, value in values.items()}

    def _volume(self, mount: MountOrder, workspace: str) -> dict[str, Any]:
        """An order for `enter.walk`. Whoever an image runs as may write to what is made here; who gets here may not
        leave: the folders above are root's only."""
        root = mount.root
        if mount.volume == LOCAL and root is None:
            path = self._folder / "volumes" / workspace
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.chmod(0o777)
            except OSError as error:
                raise Failed(f"cannot make {path}: {error.strerror}", hint="check the disk") from error
            root = str(path)
        if root is None:
            raise Failed(f"volume {mount.volume} has no folder on this node", hint="give the volume a path")
        values = {"volume": mount.volume, "root": root, "path": mount.path, "target": mount.target}
        return {**values, "read_only": mount.read_only, "owner": None, "mode": 0o777}

    # --- its network ----------------------------------------------------------------------------------------------

    def _hold(self, spec: ReplicaSpec) -> tuple[str, int]:
        """A container that does nothing, whose network is made ready before the replica's own starts in it."""
        body = {
            "Image": hold(self._engine),
            "Entrypoint": [HOLD],
            "Hostname": _hostname(spec),
            "Labels": self._labels(spec),
            "HostConfig": {
                "NetworkMode": "none",
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "ReadonlyRootfs": True,
                "Memory": 64 << 20,  # the engine's own start in it, which has a dozen threads
                "PidsLimit": 64,
                "LogConfig": {"Type": "none"},
            },
        }
        try:
            query = {"name": f"{_name(spec.uid)}-hold"}
            made = self._engine.ask("POST", "/containers/create", body, query=query, timeout_s=CREATE_S)["Id"]
            self._engine.ask("POST", f"/containers/{made}/start", timeout_s=CREATE_S)
            return made, int(self._engine.ask("GET", f"/containers/{made}/json")["State"]["Pid"])
        except Refused as error:
            message = f"the container engine cannot make a network: {error.message}"
            raise Failed(message, hint="run: lepton doctor") from error
        except Away as error:
            raise away(self._engine, error) from error

    def _networking(self, spec: ReplicaSpec, maps: Sequence[PortMap], held: str) -> dict[str, Any]:
        if held:
            return {"NetworkMode": f"container:{held}"}
        name = f"lepton_ai-{self._scope}-{spec.workspace}"
        labels = {f"{LABEL}scope": self._scope}
        wanted = {"filters": json.dumps({"name": [f"^{name}$"]})}
        try:
            # One replica at a time: the engine makes two of one name when it is asked twice at once, and then
            # starts nothing in either.
            with self._bridging:
                if not self._engine.ask("GET", "/networks", query=wanted):
                    self._engine.ask("POST", "/networks/create", {"Name": name, "Labels": labels})
        except Refused as error:
            raise Failed(f"the container engine cannot make a network: {error.message}") from error
        except Away as error:
            raise away(self._engine, error) from error
        bindings = {_key(one): [{"HostIp": self._address, "HostPort": str(one.host_port)}] for one in maps}
        return {"NetworkMode": name, "PortBindings": bindings}

    def _hosts(self, spec: ReplicaSpec, folder: Path, create: dict[str, Any], address: str | None) -> None:
        """Its own name leads to the address at which others reach it: programs look that up."""
        path = folder / "hosts"
        path.write_text(f"127.0.0.1 localhost\n{address} {_hostname(spec)}\n", "ascii")
        path.chmod(0o644)
        bind(create, path, "/etc/hosts", read_only=False)

    # --- what is there --------------------------------------------------------------------------------------------

    def _containers(self, uid: str) -> list[str]:
        return [str(one["Id"]) for one in self._listed(f"{LABEL}uid={uid}")]

    def _listed(self, *labels: str) -> list[dict[str, Any]]:
        return listed(self._engine, f"{LABEL}scope={self._scope}", *labels)

    def _remove(self, container: str) -> None:
        remove(self._engine, container)


def listed(engine: Engine, *labels: str) -> list[dict[str, Any]]:
    """Containers with all these labels, running or not. Raises Unavailable."""
    query = {"all": 1, "filters": json.dumps({"label": list(labels)})}
    try:
        return list(engine.ask("GET", "/containers/json", query=query))
    except (Away, Refused) as error:
        raise away(engine, error) from error


def remove(engine: Engine, container: str) -> None:
    """End and remove it. Raises Unavailable."""
    try:
        engine.ask("DELETE", f"/containers/{container}", query={"force": 1, "v": 1})
    except Refused as error:
        if error.status not in (404, 409):  # 409: it is being removed
            raise away(engine, error) from error
    except Away as error:
        raise away(engine, error) from error


def scope(folder: Path) -> str:
    """Tells what belongs to the node of that folder from what belongs to others."""
    return hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]


def clear(engine: Engine, folder: Path) -> None:
    """Remove every container and network of the node in `folder`, as when its cell ends. Raises Unavailable."""
    label = f"{LABEL}scope={scope(folder)}"
    for one in listed(engine, label):
        remove(engine, str(one["Id"]))
    query = {"filters": json.dumps({"label": [label]})}
    with contextlib.suppress(Away, Refused):
        for one in engine.ask("GET", "/networks", query=query):
            engine.ask("DELETE", f"/networks/{one['Id']}")


def leave(url: str, nodes: Path, *, purge: bool) -> None:
    """When a cell ends: remove what it has left at its engine, and with `purge` the images that it fetched.

    Raises Unavailable.
    """
    engine = Engine(socket_of(url))
    for folder in nodes.glob("node-*"):
        clear(engine, folder)
    if purge:
        Images(engine, nodes / "images.json", max_mib=-1).clean()


def socket_of(url: str) -> str:
    """The socket that docker://[PATH] names."""
    path = url.removeprefix("docker://")
    host = os.environ.get("DOCKER_HOST", "")
    return path or (host.removeprefix("unix://") if host.startswith("unix://") else SOCKET)


def answering(path: str) -> str:
    """Why no engine answers at a socket, in a few words; empty when one does."""
    try:
        version = Engine(path).ask("GET", "/version", timeout_s=10.0)
    except (Away, Refused) as error:
        return f"no container engine answers at {path}: {error}"
    return "" if version.get("Os") == "linux" else f"the container engine at {path} does not run Linux containers"


def _readable(top: Path) -> None:
    """Whoever an image runs as reads its blobs."""
    for folder, _, files in os.walk(top):
        os.chmod(folder, 0o755)
        for name in files:
            os.chmod(Path(folder) / name, 0o444)


def _key(one: PortMap) -> str:
    return f"{one.number}/{one.protocol.lower()}"


def _name(uid: str) -> str:
    return f"lepton-{uid}"


def _hostname(spec: ReplicaSpec) -> str:
    kept = "".join(char if char.isalnum() or char == "-" else "-" for char in spec.name.lower())
    return kept[-63:].strip("-") or "replica"
