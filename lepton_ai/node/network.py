"""A network of its own for every replica: a namespace, an address, ports that lead to it, and who may talk to whom.

Owns namespaces and interfaces named ``lai…``, one nftables table a node, and the files in /run/lepton_ai that nodes
and cells of one host share (which addresses are in use). Linux, root, `ip`, `nft`. What runs inside is the runtime's.

    replica (eth0, ADDRESS) ── veth ── host ── NODE ADDRESS:HOST PORT -> ADDRESS:PORT     by `rules`

Everything is rendered whole from the files, so every call mends what a crash left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import ipaddress
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lepton_ai.errors import Busy, Failed, LeptonError
from lepton_ai.node import shim
from lepton_ai.node.rules import PREFIX, Rules, inside
from lepton_ai.node.users import Users
from lepton_ai.spec.container import PortMap

SHARED = Path("/run/lepton_ai")
POOLS = ("10.231.0.0/16", "10.87.0.0/16", "172.29.0.0/16", "192.168.224.0/20")
"""Addresses of replicas are seen on their host only. The first of these that the host has no route into is used."""
MTU_DEFAULT = 1500
_INSIDE = "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet && exec nft -f -"


@dataclass(frozen=True)
class Space:
    """A replica's network. `path` is its namespace (``/run/netns/NAME``), `name` also the host's side of the cable."""

    name: str
    path: Path
    address: str


class Network:
    """The networks of one node's replicas. Blocks for some 30 ms a change; safe to call from threads.

    Args:
        folder: the node's; its path tells this node's things from those of others.
        address: where host ports are reached.
        users: gives each workspace its number, which is also that of its group of interfaces.
    """

    def __init__(self, folder: Path, address: str, users: Users, *, shared: Path = SHARED) -> None:
        self._folder = str(folder.absolute())
        self._scope = hashlib.sha256(self._folder.encode()).hexdigest()[:12]
        self._address, self._users, self._shared = address, users, shared
        self._opened: set[str] = set()
        self._known: dict[str, str] = {}

    @property
    def table(self) -> str:
        """The name of this node's table in the packet filter."""
        return Rules(self._scope, self._address).table

    def records(self) -> list[Record]:
        """What is recorded of this node's replicas."""
        with self._locked():
            return self._records()

    def available(self) -> str:
        """Why this machine cannot do it, in a few words; empty when it can."""
        if sys.platform != "linux":
            return "it needs Linux"
        if os.geteuid() != 0:
            return "it needs root"
        for program, package in (("ip", "iproute2"), ("nft", "nftables")):
            if shutil.which(program, path=_path()) is None:
                return f"the program {program} is missing (package {package})"
        try:
            _run(["nft", "--check", "-f", "-"], Rules(self._scope, self._address).render([], []))
        except LeptonError as error:
            return f"the kernel's packet filter refuses: {error.message}"
        try:
            _run(["ip", "netns", "add", f"{PREFIX}{self._scope}"])
            _run(["ip", "netns", "delete", f"{PREFIX}{self._scope}"])
        except LeptonError as error:
            with contextlib.suppress(LeptonError):
                _run(["ip", "netns", "delete", f"{PREFIX}{self._scope}"])
            return f"no network namespace can be made: {error.message}"
        return ""

    def open(self, uid: str, workspace: str, maps: Sequence[PortMap] = (), pid: int | None = None) -> Space:
        """The replica's network, made where it is not there yet; `maps` are the ports that lead to it from now on.

        With `pid` that process's namespace becomes it, instead of a new one. Idempotent.

        Raises:
            Failed: the kernel refused; the message says what. Busy: no address is free. Unavailable: no user id.
        """
        group = self._users.uid(workspace)
        name = self._name(uid)
        with self._locked():
            self._opened.add(uid)
            record = self._read(name)
            if record is None or not self._stands(name):
                self._tear(name)
                record = Record(self._scope, self._folder, uid, name, self._claim(name), group)
                self._write(record)
                self._build(record, pid)
            if pid is None and record.maps != tuple(maps):
                _run(["ip", "netns", "exec", name, "sh", "-c", _INSIDE], inside(maps))
            record = dataclasses.replace(record, group=group, maps=tuple(maps))
            self._write(record)
            self._render()
        self._known[uid] = record.address
        return Space(name, Path("/run/netns") / name, record.address)

    def address(self, uid: str) -> str | None:
        """The address of a replica that was opened or seen by `sweep` in this process."""
        return self._known.get(uid)

    def close(self, uid: str) -> None:
        """Remove a replica's network and end what still runs in it. Idempotent. Raises Failed."""
        name = self._name(uid)
        with self._locked():
            if self._read(name) is not None or self._stands(name):
                self._tear(name)
                self._render()
            self._opened.discard(uid)
            self._known.pop(uid, None)

    def sweep(self, live: Collection[str]) -> None:
        """Remove what belongs to this node and to none of `live`, and what nodes left whose folders are gone.

        Of the others, what is missing is made good.
        """
        with self._locked():
            keep = self._opened | set(live)
            gone = set()
            for record in self._records(every=True):
                if record.scope != self._scope:
                    if not os.path.isdir(record.folder):
                        gone.add(record.scope)
                        self._tear(record.name)
                elif record.uid not in keep:
                    self._tear(record.name)
                else:
                    self._known[record.uid] = record.address
            for scope in gone:
                _drop_table(Rules(scope, self._address).table)
            self._render()

    def remove(self) -> None:
        """Remove everything of this node: networks, rules, and what was switched on for them."""
        with self._locked():
            for record in self._records():
                self._tear(record.name)
            _drop_table(self.table)
            if not any((self._shared / "spaces").iterdir()):
                self._restore()

    # --- what is on disk ------------------------------------------------------------------------------------------

    def _name(self, uid: str) -> str:
        return PREFIX + hashlib.sha256(f"{self._scope}/{uid}".encode()).hexdigest()[:12]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One change of the host's networks at a time, of all nodes and cells."""
        for folder in (self._shared, self._shared / "spaces", self._shared / "addresses"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._shared / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _read(self, name: str) -> Record | None:
        record = shim.read_record(str(self._shared / "spaces" / name))
        return None if record is None else Record.of(record)

    def _write(self, record: Record) -> None:
        try:
            shim.write_record(str(self._shared / "spaces" / record.name), record.values())
        except OSError as error:
            raise Failed(
                f"cannot write to {self._shared}: {error.strerror}", hint=f"check: df {self._shared}"
            ) from error

    def _records(self, every: bool = False) -> list[Record]:
        """Of this node, or of every node of the host."""
        found = [self._read(name) for name in sorted(os.listdir(self._shared / "spaces")) if "." not in name]
        return [record for record in found if record is not None and (every or record.scope == self._scope)]

    def _claim(self, name: str) -> str:
        """An address that no other replica of this host has: by chance, so that one is not soon used again."""
        pool = self._pool()
        folder = self._shared / "addresses"
        for _ in range(1000):
            address = str(pool[random.randrange(2, pool.num_addresses - 1)])
            with contextlib.suppress(FileExistsError):
                with open(os.open(folder / address, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(name)
                return address
            holder = (folder / address).read_text("ascii", "replace")
            if not (self._shared / "spaces" / holder).exists() and not self._stands(holder):
                (folder / address).write_text(name, "ascii")  # its holder never came to be, or an earlier boot's
                return address
        raise Busy(f"no address of {pool} is free", hint="end some replicas")

    def _pool(self) -> ipaddress.IPv4Network:
        path = self._shared / "pool"
        if path.exists():
            return ipaddress.IPv4Network(path.read_text("ascii").strip())
        routes = [line.get("dst", "") for line in json.loads(_run(["ip", "-j", "-4", "route", "show", "table", "all"]))]
        taken = [ipaddress.IPv4Network(dst, strict=False) for dst in routes if dst[:1].isdigit()]
        pools = [ipaddress.IPv4Network(text) for text in POOLS]
        pool = next((one for one in pools if not any(one.overlaps(net) for net in taken if net.prefixlen)), pools[0])
        path.write_text(str(pool), "ascii")
        return pool

    # --- what is so -----------------------------------------------------------------------------------------------

    def _stands(self, name: str) -> bool:
        return os.path.exists(f"/run/netns/{name}") and os.path.exists(f"/sys/class/net/{name}")

    def _build(self, record: Record, pid: int | None) -> None:
        """A namespace, a cable into it, addresses and routes at both ends. What fails is torn down again."""
        name, host = record.name, str(self._pool()[1])
        try:
            _run(["ip", "netns", "add", name] if pid is None else ["ip", "netns", "attach", name, str(pid)])
            # Without generated addresses there is no IPv6 but on the loopback inside.
            outside = (
                f"link add {name} mtu {self._mtu()} type veth peer name eth0 mtu {self._mtu()} netns {name}",
                f"link set {name} group {record.group} addrgenmode none",
                f"address add {host}/32 dev {name}",
                f"link set {name} up",
                f"route replace {record.address}/32 dev {name} src {host}",
            )
            inside = (
                "link set lo up",
                "link set eth0 addrgenmode none",
                f"address add {record.address}/32 dev eth0",
                "link set eth0 up",
                f"route add {host} dev eth0 scope link",
                f"route add default via {host} dev eth0",
            )
            _run(["ip", "-batch", "-"], "\n".join(outside))
            # The peer is answered and heard on its own interface; the host's other interfaces stay as they are.
            _switch(name, "forwarding", "1")
            _switch(name, "route_localnet", "1")
            _run(["ip", "-n", name, "-batch", "-"], "\n".join(inside))
        except (LeptonError, OSError) as error:
            self._tear(name)
            if isinstance(error, OSError):
                raise Failed(f"cannot switch {name}: {error.strerror}", hint="run: lepton doctor") from error
            raise

    def _mtu(self) -> int:
        """The smallest of the host's ways out, so that nothing larger than those take is ever sent."""
        sizes = [MTU_DEFAULT]
        for name in self._outer():
            with contextlib.suppress(OSError, ValueError):
                sizes.append(int(Path(f"/sys/class/net/{name}/mtu").read_text("ascii")))
        return min(sizes)

    def _tear(self, name: str) -> None:
        """Remove a space, however much of it is there."""
        if os.path.exists(f"/run/netns/{name}"):
            _end_all(Path(f"/run/netns/{name}"))
        if os.path.exists(f"/sys/class/net/{name}"):
            _run(["ip", "link", "delete", name])
        if os.path.exists(f"/run/netns/{name}"):
            _run(["ip", "netns", "delete", name])
        record = self._read(name)
        if record is not None:
            (self._shared / "addresses" / record.address).unlink(missing_ok=True)
        (self._shared / "spaces" / name).unlink(missing_ok=True)

    def _render(self) -> None:
        records = [record for record in self._records() if self._stands(record.name)]
        opened = self._forward() if records else []
        _run(["nft", "-f", "-"], Rules(self._scope, self._address).render(records, opened))

    # --- what is switched on for it ---------------------------------------------------------------------------------

    def _outer(self) -> list[str]:
        """The interfaces over which packets of replicas leave and callers come: default route and node address."""
        found = {
            line["dev"] for line in json.loads(_run(["ip", "-j", "-4", "route", "show", "default"])) if "dev" in line
        }
        if not ipaddress.ip_address(self._address).is_loopback:
            links = json.loads(_run(["ip", "-j", "-4", "address", "show", "to", self._address]))
            found |= {line["ifname"] for line in links if line.get("ifname")}
        return sorted(found)

    def _forward(self) -> list[str]:
        """Let those interfaces forward; returns which did not before. What was so is noted, to be restored."""
        path = self._shared / f"forwarding-{os.stat('/proc/self/ns/net').st_ino}"
        noted: list[str] = (shim.read_record(str(path)) or {}).get("opened", [])
        for name in self._outer():
            file = Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding")
            if file.read_text("ascii").strip() == "0":
                noted = sorted({*noted, name})
                shim.write_record(str(path), {"opened": noted})
                file.write_text("1", "ascii")
        return noted

    def _restore(self) -> None:
        path = self._shared / f"forwarding-{os.stat('/proc/self/ns/net').st_ino}"
        for name in (shim.read_record(str(path)) or {}).get("opened", []):
            with contextlib.suppress(OSError):
                _switch(name, "forwarding", "0")
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Record:
    """What the host's nodes know of one replica's network, in /run/lepton_ai/spaces."""

    scope: str
    folder: str
    uid: str
    name: str
    address: str
    group: int
    maps: tuple[PortMap, ...] = ()

    def values(self) -> dict[str, object]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "maps": [one.model_dump() for one in self.maps]}

    @classmethod
    def of(cls, values: dict[str, object]) -> Record | None:
        try:
            maps = tuple(PortMap.model_validate(one) for one in values.pop("maps"))  # type: ignore[attr-defined]
            return cls(**values, maps=maps)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            return None


def _end_all(path: Path) -> None:
    """Kill what still runs in a namespace: what left its replica's groups and session cannot leave this."""
    inode = path.stat().st_ino
    for _ in range(20):
        killed = 0
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}/ns/net").st_ino == inode:
                    os.kill(int(name), signal.SIGKILL)
                    killed += 1
        if not killed:
            return


def _drop_table(table: str) -> None:
    with contextlib.suppress(LeptonError):  # it is not there
        _run(["nft", "delete", "table", "inet", table])


def _switch(name: str, what: str, value: str) -> None:
    Path(f"/proc/sys/net/ipv4/conf/{name}/{what}").write_text(value, "ascii")


def _path() -> str:
    """Where system programs lie is not on every user's path."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _run(argv: list[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(
            argv,
            input=text if text is not None else "",
            env={"PATH": _path(), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"cannot run {argv[0]}: {error}", hint="install iproute2 and nftables") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        raise Failed(f"{' '.join(argv[:4])}: {said}", hint="run: lepton doctor")
    return done.stdout
