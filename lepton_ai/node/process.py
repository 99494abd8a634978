"""The runtime that runs a replica as plain processes of this machine: from a ReplicaSpec to what a shim runs.

Owns the environment, the working folder, the placing of blobs and the limits. With isolation `none` everything it
runs is in one trust domain; with `uid` a workspace has a user of its own, and a replica a network and a view of the
files (see `network` and `enclose`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from lepton_ai.errors import Conflict, Failed, Unsupported
from lepton_ai.node import cgroup, enter
from lepton_ai.node.enclose import Enclosure, able
from lepton_ai.node.launch import ShimSpec
from lepton_ai.node.network import Network, Space
from lepton_ai.node.runtime import ImageUse, Isolation, RuntimeName, told, wanted
from lepton_ai.node.users import Users
from lepton_ai.spec.container import PortMap
from lepton_ai.spec.replica import ReplicaSpec

NOFILE = 65_536


class ProcessRuntime:
    """Turns a replica into the command of a shim.

    Args:
        node: the node's name, told to replicas as LEPTON_AI_NODE.
        use_cgroup: False never makes control groups (limits are rlimits then).
        enclosure: what replicas see; without it no mounts are possible.
        users, network: given together, isolation is `uid`.
    """

    name: RuntimeName = "process"

    def __init__(
        self,
        node: str,
        *,
        use_cgroup: bool = True,
        enclosure: Enclosure | None = None,
        users: Users | None = None,
        network: Network | None = None,
    ) -> None:
        self.node, self.use_cgroup = node, use_cgroup
        self._enclosure, self._users, self._network = enclosure, users, network
        self.isolation: Isolation = "none" if network is None else "uid"
        self.forwards = self.holds = network is not None

    def check(self, spec: ReplicaSpec) -> None:
        """Raises Unsupported when this runtime cannot run `spec`."""
        if not spec.command:
            raise Unsupported(
                f"node {self.node} runs processes: it knows no command of image {spec.image}",
                hint="give a command, or set runtime = docker://",
            )
        if spec.mounts:
            why = "it makes none" if self._enclosure is None else able()
            if why:
                raise Unsupported(
                    f"node {self.node} cannot mount {spec.mounts[0].target} for a process: {why}",
                    hint="run the cell as root on Linux, or set runtime = docker://",
                )
        if self._enclosure is not None:
            self._enclosure.check(spec)

    def fetch(self, spec: ReplicaSpec, say: Callable[[str], None]) -> None:
        """Nothing to do: the programs are the machine's."""

    def prepare(
        self,
        spec: ReplicaSpec,
        folder: Path,
        port: int | None,
        blobs: Mapping[str, Path],
        maps: Sequence[PortMap] = (),
    ) -> ShimSpec:
        """Lay out the replica's working folder and say what its shim runs.

        `blobs` are files by the path at which the replica finds them. They are hard links where the disk allows: a
        replica that writes into one breaks its seal, and the cache reads its bytes again before the next use.
        """
        work = folder / "work"
        uid = None if self._users is None else self._users.uid(spec.workspace)
        if uid is not None:
            shutil.rmtree(work, ignore_errors=True)  # of an earlier start: its owner may have laid traps in it
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, source in blobs.items():
            place(source, work, name)
        if uid is not None:
            _give(work, uid)
        # Made here, not by the caller, as a group's name is the replica's and it is found again by the spec.
        groups = cgroup.make(spec.uid, spec.resources) if self.use_cgroup else ()
        names = {"{blobs}": str(work), "{port}": "" if port is None else str(port)}
        argv = tuple(fill(part, names) for part in spec.command)
        space = None if self._network is None else self._network.open(spec.uid, spec.workspace, maps)
        env = self._env(spec, work, port)
        cwd = str(work)
        if self._enclosure is not None and (uid is not None or (self._enclosure.needed(spec) and not able())):
            argv = self._enter(self._enclosure, spec, folder, argv, env, uid, space, groups)
            # The workload's own environment comes after its user: until then nothing of it may reach root's programs.
            env, cwd = {"PATH": os.defpath}, "/"
        return ShimSpec(
            argv=argv,
            env=env,
            cwd=cwd,
            restart="never",
            grace_s=spec.grace_s,
            limits={"memory_mib": spec.resources.memory_mib, "nofile": NOFILE},
            cgroup=groups,
            lease_s=spec.lease_s if spec.exclusive else None,
        )

    def limits(self, groups: tuple[str, ...]) -> Literal["cgroup", "rlimit", "none"]:
        """Which kind of limit holds for a replica with these groups."""
        if groups:
            return "cgroup"
        return "rlimit" if sys.platform == "linux" else "none"

    def started(self, spec: ReplicaSpec, folder: Path) -> None:
        """Nothing to do: the process is all there is."""

    def image(self, spec: ReplicaSpec) -> ImageUse:
        return "" if spec.image is None else "advisory"

    def reached(self, spec: ReplicaSpec) -> str | None:
        return None if self._network is None else self._network.address(spec.uid)

    def release(self, spec: ReplicaSpec, groups: tuple[str, ...]) -> bool:
        if self._network is not None:
            self._network.close(spec.uid)
        return cgroup.remove(groups)

    def sweep(self, live: Collection[str]) -> None:
        """An ended replica's groups are removed by `release`; its network too, but an agent may die before that."""
        if self._network is not None:
            self._network.sweep(live)

    def close(self) -> None:
        pass

    def _enter(
        self,
        enclosure: Enclosure,
        spec: ReplicaSpec,
        folder: Path,
        argv: Sequence[str],
        env: Mapping[str, str],
        uid: int | None,
        space: Space | None,
        groups: Sequence[str],
    ) -> tuple[str, ...]:
        """Write the order for `enter`; returns the command that carries it out."""
        namespace = None if space is None else space.path
        order = enclosure.order(spec, folder, argv, env, uid=uid, namespace=namespace, groups=groups)
        path = folder / "enter.json"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(order, file)
        return (sys.executable, "-I", "-S", "-E", enter.__file__, str(path))

    def _env(self, spec: ReplicaSpec, work: Path, port: int | None) -> dict[str, str]:
        """Small and clean: nothing of the agent's own environment but where programs and modules are found."""
        own = os.path.dirname(sys.executable)
        path = [own, *(part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part != own)]
        env = {
            "PATH": os.pathsep.join(path),
            "HOME": str(work),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            **told(spec, self.node, port),
        }
        if self._users is not None:
            env |= {"TMPDIR": "/tmp", "USER": spec.workspace, "LOGNAME": spec.workspace}
        elif temporary := tempfile.gettempdir():
            env["TMPDIR"] = temporary
        if modules := os.environ.get("PYTHONPATH"):
            # A relative entry would mean another folder in the replica's working folder.
            env["PYTHONPATH"] = os.pathsep.join(os.path.abspath(part) for part in modules.split(os.pathsep) if part)
        return wanted(spec, env, self.reached(spec), port)


def place(source: Path, work: Path, name: str) -> None:
    """Put a blob's file below a folder. Raises Conflict, Failed."""
    target = work / name
    if target.exists():
        return
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Conflict(f"blob path {name!r} goes through another blob's file", hint="choose other paths") from error
    try:
        os.link(source, target)
    except OSError:
        try:
            temporary = target.with_name(target.name + ".new")
            shutil.copyfile(source, temporary)
            temporary.rename(target)
        except OSError as error:
            raise Failed(f"cannot place blob {name!r}: {error.strerror}", hint="check the disk") from error


def _give(work: Path, uid: int) -> None:
    """The folders to their user; the blobs in them stay root's, as their files are the cache's too."""
    for folder, _, files, fd in os.fwalk(work):
        os.chown(folder, uid, uid)
        for name in files:
            os.chmod(name, 0o444, dir_fd=fd)


def fill(part: str, names: Mapping[str, str]) -> str:
    """A word of a command with what it leaves open."""
    for name, value in names.items():
        part = part.replace(name, value)
    return part
