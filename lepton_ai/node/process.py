"""The runtime that runs a replica as plain processes of this machine: from a ReplicaSpec to what a shim runs.

Owns the environment, the working folder, the placing of blobs and the limits. Isolation is `none`: everything it
runs is in one trust domain.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from lepton_ai.errors import Conflict, Failed, Unsupported
from lepton_ai.node import cgroup
from lepton_ai.node.launch import ShimSpec
from lepton_ai.node.runtime import ImageUse, Isolation, RuntimeName
from lepton_ai.spec.container import PortMap
from lepton_ai.spec.replica import ReplicaSpec

NOFILE = 65_536


class ProcessRuntime:
    """Turns a replica into the command of a shim.

    Args:
        node: the node's name, told to replicas as LEPTON_AI_NODE.
        use_cgroup: False never makes control groups (limits are rlimits then).
    """

    name: RuntimeName = "process"
    isolation: Isolation = "none"
    forwards = False

    def __init__(self, node: str, *, use_cgroup: bool = True) -> None:
        self.node, self.use_cgroup = node, use_cgroup

    def check(self, spec: ReplicaSpec) -> None:
        """Raises Unsupported when this runtime cannot run `spec`."""
        if spec.mounts:
            raise Unsupported(
                f"node {self.node} cannot mount {spec.mounts[0].target} for a process of this user",
                hint="run the cell as root on Linux, or set runtime = docker://",
            )

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
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, source in blobs.items():
            _place(source, work, name)
        # Made here, not by the caller, as a group's name is the replica's and it is found again by the spec.
        groups = cgroup.make(spec.uid, spec.resources) if self.use_cgroup else ()
        names = {"{blobs}": str(work), "{port}": "" if port is None else str(port)}
        return ShimSpec(
            argv=tuple(_fill(part, names) for part in spec.command),
            env=self._env(spec, work, port),
            cwd=str(work),
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
        return None

    def release(self, spec: ReplicaSpec, groups: tuple[str, ...]) -> bool:
        return cgroup.remove(groups)

    def sweep(self, live: Collection[str]) -> None:
        """Nothing to do: an ended replica's groups are removed by `release`."""

    def close(self) -> None:
        pass

    def _env(self, spec: ReplicaSpec, work: Path, port: int | None) -> dict[str, str]:
        """Small and clean: nothing of the agent's own environment but where programs and modules are found."""
        own = os.path.dirname(sys.executable)
        path = [own, *(part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part != own)]
        env = {
            "PATH": os.pathsep.join(path),
            "HOME": str(work),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "LEPTON_AI_NODE": self.node,
            "LEPTON_AI_REPLICA_UID": spec.uid,
            "LEPTON_WORKSPACE_ID": spec.workspace,
            "LEPTON_REPLICA_NAME": spec.name,
            "LEPTON_DEPLOYMENT_NAME" if spec.owner_kind == "deployment" else "LEPTON_JOB_NAME": spec.owner,
            "LEPTON_WORKER_INDEX": str(spec.worker),
        }
        if temporary := tempfile.gettempdir():
            env["TMPDIR"] = temporary
        if modules := os.environ.get("PYTHONPATH"):
            # A relative entry would mean another folder in the replica's working folder.
            env["PYTHONPATH"] = os.pathsep.join(os.path.abspath(part) for part in modules.split(os.pathsep) if part)
        if port is not None:
            env["PORT"] = str(port)
        return {**env, **spec.env}


def _place(source: Path, work: Path, name: str) -> None:
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


def _fill(part: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        part = part.replace(name, value)
    return part
