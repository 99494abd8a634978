"""A hostile workload: tries all of the plan it is given and prints what it got. Run as ``python -c SOURCE PLAN``.

PLAN is JSON: {name of an attack: [verb, arguments...]}. An attack is won when its verb returns without an error.
Each line of the answer is {"attack", "won", "found"}. Nothing it does harms its target for good.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

PTRACE_ATTACH, PTRACE_DETACH = 16, 17
WAIT_S = 3.0


def read(path: str, wanted: str = "") -> str:
    """A file's bytes; they must hold `wanted`."""
    data = Path(path).read_bytes()
    assert data, "empty"
    assert wanted.encode() in data, "not in it"
    return f"{len(data)} bytes"


def read_any(pattern: str, wanted: str = "") -> str:
    """One of the files that match."""
    for path in Path("/").glob(pattern.lstrip("/")):
        try:
            return read(str(path), wanted)
        except (OSError, AssertionError):
            continue
    raise OSError("none of them")


def listing(path: str) -> str:
    """The names in a folder."""
    names = os.listdir(path)
    assert names, "empty"
    return " ".join(names[:5])


def write(path: str, text: str = "x") -> str:
    """Change what lies there (as it is: it is written back)."""
    with open(path, "r+" if os.path.exists(path) else "w", encoding="utf-8") as file:
        before = file.read() if file.readable() else text
        file.seek(0)
        file.write(before or text)
    return "written"


def tcp(address: str, port: int) -> str:
    """A connection."""
    with socket.create_connection((address, port), WAIT_S) as sock:
        return str(sock.getpeername())


def unix(path: str) -> str:
    """A connection to a unix socket; a leading @ is an abstract name."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT_S)
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        return "connected"


def send_signal(pid: int) -> str:
    """Whether a signal would be delivered (none is)."""
    os.kill(pid, 0)
    return "allowed"


def trace(pid: int) -> str:
    """Take hold of a process with ptrace, and let go of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    if libc.ptrace(PTRACE_ATTACH, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    libc.ptrace(PTRACE_DETACH, pid, 0, 0)
    return "held"


def memory_of(pid: int) -> str:
    """Open another process's memory."""
    with open(f"/proc/{pid}/mem", "rb"):
        return "open"


def become_root() -> str:
    """The rights of root, however one gets them."""
    os.setgroups([])
    os.setuid(0)
    with open("/proc/self/status", encoding="ascii") as file:
        rights = next(line for line in file if line.startswith("CapEff"))
    assert int(rights.split()[1], 16), "no capability"
    return rights.strip()


def unlimit() -> str:
    """More memory than was given, by writing to one's own control group."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text("ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        groups[controllers] = path
    for controller, file in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        for root in (f"/sys/fs/cgroup/{controller}{groups.get(controller, '')}", f"/sys/fs/cgroup/{controller}"):
            limit = Path(root) / file
            if limit.exists() and groups.get(controller, "/") != "/":
                limit.write_text(str(1 << 40))
                return str(limit)
    raise OSError("no control group is seen")


def join(path: str) -> str:
    """Leave one's limits by moving into another control group."""
    Path(path).write_text(str(os.getpid()))
    return "moved"


def device() -> str:
    """The host's first disk, by a device file of one's own."""
    for major in (8, 253, 254, 259):
        path = f"/tmp/device-{major}"
        try:
            os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(major, 0))
            with open(path, "rb") as file:
                return f"{len(file.read(512))} bytes"
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ENXIO:  # there is no such disk
                raise
        finally:
            Path(path).unlink(missing_ok=True)
    raise OSError("none")


def mount() -> str:
    """A file system of one's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"


def namespace() -> str:
    """All rights, in a namespace of users of one's own: the kernel's parts that only root reaches are a way out."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    return "made"


def raw() -> str:
    """Packets with a sender of one's choice."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
        return "open"


def link(target: str, path: str) -> str:
    """A symbolic link."""
    os.symlink(target, path)
    return os.readlink(path)


def others() -> str:
    """Processes of others that can be seen."""
    own = os.getuid()
    seen = [
        name for name in os.listdir("/proc") if name.isdigit() and (own == 0 or os.stat(f"/proc/{name}").st_uid != own)
    ]
    assert len(seen) > 3, "none"
    return f"{len(seen)} processes"


def main() -> None:
    plan: dict[str, list[Any]] = json.loads(sys.argv[1])
    for name, (verb, *arguments) in plan.items():
        try:
            found, won = globals()[verb](*arguments), True
        except (OSError, AssertionError, ValueError, StopIteration) as error:
            found, won = f"{type(error).__name__}: {error}", False
        print(json.dumps({"attack": name, "won": won, "found": found}), flush=True)


if __name__ == "__main__":
    main()
