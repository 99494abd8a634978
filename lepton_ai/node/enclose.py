"""What a replica of this machine sees and may do, as an order to `enter`: files, mounts, memory for files, user.

Owns which of the host's folders are shown. The doing is `enter`'s, in the replica's own process; what must be there
before (volumes, owners) is made here, by the agent.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lepton_ai
from lepton_ai.errors import Failed, Unsupported
from lepton_ai.node import cgroup, enter
from lepton_ai.spec.container import LOCAL
from lepton_ai.spec.replica import MountOrder, ReplicaSpec

SYSTEM = ("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "nix", "opt", "sbin", "snap", "usr")
"""Folders of the host's root that every replica sees, as the system's programs lie there."""
EMPTY = ("home", "media", "mnt", "root", "run", "srv", "var")
MIN_FILES_MIB = 16
_SEEN = "mode=0755,size=1m"


@dataclass(frozen=True)
class Enclosure:
    """What a node shows to its replicas.

    Args:
        folder: the node's; volumes lie in it.
        hide: folders that nobody but the cell sees, also where a folder that is shown holds them.
    """

    folder: Path
    hide: tuple[Path, ...]

    def check(self, spec: ReplicaSpec) -> None:
        """Raises Unsupported when a mount would hide what the command needs."""
        work = self.folder / "replicas" / spec.uid / "work"
        for mount in spec.mounts:
            hidden = next((one for one in (work, *_programs()) if one.is_relative_to(mount.target)), None)
            if hidden is not None:
                raise Unsupported(
                    f"a mount at {mount.target} would hide {hidden} on this node", hint="choose another mount path"
                )

    def needed(self, spec: ReplicaSpec) -> bool:
        """Whether a replica without isolation has anything of its own to see."""
        return bool(spec.mounts) or spec.shared_memory_mib is not None

    def order(
        self,
        spec: ReplicaSpec,
        folder: Path,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        uid: int | None = None,
        namespace: Path | None = None,
        groups: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The order for `enter`. With `uid` the replica is isolated, else it only gets its mounts.

        Raises Failed when a volume's folder cannot be made.
        """
        work, root = folder / "work", folder / "root"
        root.mkdir(mode=0o700, exist_ok=True)
        isolate = uid is not None
        shared_mib = spec.shared_memory_mib or max(MIN_FILES_MIB, spec.resources.memory_mib // 2)
        empty = [["/dev/shm", f"mode=1777,size={shared_mib}m"]]
        binds: list[list[object]] = []
        links: list[list[str]] = []
        if isolate:
            files_mib = max(MIN_FILES_MIB, spec.resources.memory_mib)
            empty += [["/tmp", f"mode=1777,size={files_mib}m"], ["/var/tmp", f"mode=1777,size={files_mib}m"]]
            empty += [[f"/{name}", _SEEN] for name in (*EMPTY, "sys/fs/cgroup")]
            empty += [[str(path), _SEEN] for path in self.hide if _shown(path)]
            binds += [[str(path), str(path), False] for path in _programs() if not _is_system(path)]
            binds += [[group, _seen_group(group), False] for group in groups]
            binds += [[str(work), str(work), True], *_resolver()]
            links += [["/var/run", "/run"], *map(list, _links())]
        elif spec.shared_memory_mib is None:
            empty = []
        return {
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(work),
            "isolate": isolate,
            "uid": uid,
            # Counted for all replicas of a user together, so only where control groups do not count each.
            "processes": None if groups else cgroup.MAX_PROCESSES,
            "accounts": _accounts(spec.workspace, uid, work),
            "namespace": None if namespace is None else str(namespace),
            "root": str(root),
            "system": list(SYSTEM) if isolate else [],
            "empty": empty,
            "binds": binds,
            "links": links,
            "mounts": [self._volume(mount, spec.workspace, uid) for mount in spec.mounts],
        }

    def _volume(self, mount: MountOrder, workspace: str, uid: int | None) -> dict[str, Any]:
        root = mount.root
        if mount.volume == LOCAL and root is None:
            path = self.folder / "volumes" / workspace
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                _own(path, 0 if uid is None else uid)
            except OSError as error:
                raise Failed(f"cannot make {path}: {error.strerror}", hint="check the disk") from error
            root = str(path)
        if root is None:
            raise Failed(f"volume {mount.volume} has no folder on this node", hint="give the volume a path")
        values = {"volume": mount.volume, "root": root, "path": mount.path, "target": mount.target}
        return {**values, "read_only": mount.read_only, "owner": uid}


def home(folder: Path) -> Path:
    """What is hidden from the replicas of the node in `folder`: every cell of its user, or the node's own folder."""
    return folder.parents[3] if folder.parents[0].name == "nodes" and folder.parents[2].name == "cells" else folder


@cache
def able() -> str:
    """Why this process cannot make files and users of their own for replicas; empty when it can."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root"
    argv = [sys.executable, "-I", "-S", "-E", enter.__file__, "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        return ""
    return f"it cannot {said.removeprefix(enter.SIGN)[:200] or 'be tried'}"


def _programs() -> Iterator[Path]:
    """Where the interpreter, this package and the modules of PYTHONPATH lie, under every name they go by."""
    named = [Path(sys.prefix), Path(sys.base_prefix), Path(lepton_ai.__file__).parent]
    named += [Path(part).absolute() for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    package: Path | None = Path(lepton_ai.__file__).resolve().parents[1]
    if package is not None and not (package / "pyproject.toml").exists():
        package = None  # it is installed among others, which are needed too
    seen: set[Path] = set()
    for path in named:
        for one in (path, path.resolve()):
            # What a checkout holds beside the package is nobody's business.
            if one not in seen and one.exists() and one.resolve() != package and one != Path("/"):
                seen.add(one)
                yield one


def _links() -> Iterator[tuple[str, str]]:
    """The symbolic links between the interpreter's name and its file that lie outside what is shown."""
    path = Path(sys.executable)
    shown = list(_programs())
    for _ in range(16):
        if not path.is_symlink():
            return
        target = os.readlink(path)
        if not _is_system(path) and not any(path.is_relative_to(one) for one in shown):
            yield str(path), target
        path = Path(os.path.normpath(path.parent / target))


def _seen_group(group: str) -> str:
    """Where a replica finds its own control group: where a whole machine's would be, as programs look there."""
    parts = Path(group).relative_to(cgroup.ROOT).parts
    return str(cgroup.ROOT.joinpath(*parts[: len(parts) - 2]))


def _accounts(workspace: str, uid: int | None, home: Path) -> list[list[str]]:
    if uid is None:
        return []
    # A name that no account of the host has.
    name = f"w-{workspace}"[:32]
    return [["/etc/passwd", f"{name}:x:{uid}:{uid}::{home}:/bin/sh"], ["/etc/group", f"{name}:x:{uid}:"]]


def _resolver() -> list[list[object]]:
    """The host's list of name servers, as one that replicas reach: not a server on the host's own loopback."""
    path, direct = Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    servers = [line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1]
    real = path.resolve()
    local = bool(servers) and all(server.startswith("127.") for server in servers)
    source = direct if local and direct.exists() else real
    if source == real and _is_system(real):
        return []
    return [[str(source), str(real), False]]


def _is_system(path: Path) -> bool:
    return len(path.parts) > 1 and path.parts[1] in SYSTEM


def _shown(path: Path) -> bool:
    """Whether something that is shown would show `path`."""
    return path.exists() and (_is_system(path) or any(path.is_relative_to(one) for one in _programs()))


def _own(path: Path, uid: int) -> None:
    """Give a volume to the user that its workspace runs as now, if it was another's (isolation was switched)."""
    if path.stat().st_uid == uid:
        return
    for _, folders, files, fd in os.fwalk(path, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
    os.chown(path, uid, uid)  # last: a walk that was cut off is done again
