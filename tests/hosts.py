"""Other hosts for tests and measurements, on this one: network namespaces on one wire, each with its own /run and /sys.

A host has an address on the wire and nothing but that. Needs root on Linux. Everything goes by `close`, and what is
forgotten goes with its last process. Loaded by path from what needs it.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_HOST = """
set -e
mkdir -p "$1"
mount -t tmpfs tmpfs "$1"
mkdir "$1/cgroup"
mount --rbind /sys/fs/cgroup "$1/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$1/cgroup" /sys/fs/cgroup
mount -t tmpfs tmpfs /run
ip link set lo up
echo ready
exec sleep infinity
"""
PROGRAMS = ("ip", "nft", "unshare", "nsenter", "mount")


def missing() -> str:
    """Why this machine cannot do it; empty when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts as network namespaces need root on Linux"
    for program in PROGRAMS:
        if shutil.which(program, path=_path()) is None:
            return f"the program {program} is missing"
    done = subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces can be made: {done.stderr.strip()}" if done.returncode else ""


class Host:
    """One host. `wire` is its interface on the wire's side."""

    def __init__(self, folder: Path, address: str, wire: str) -> None:
        self.address, self.wire = address, wire
        argv = ["unshare", "-n", "-m", "--propagation", "slave", "sh", "-c", _HOST, "host", str(folder / address)]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    @property
    def pid(self) -> int:
        return self._holder.pid

    def inside(self, *argv: str) -> list[str]:
        """The command that runs `argv` there."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "--", *argv]

    def run(self, *argv: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(self.inside(*argv), env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def left(self) -> list[int]:
        """What still runs there, but for its holder."""
        mine, found = os.stat(f"/proc/{self.pid}/ns/mnt").st_ino, []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and int(name) != self.pid and os.stat(f"/proc/{name}/ns/mnt").st_ino == mine:
                    found.append(int(name))
        return found

    def close(self) -> None:
        """End everything there."""
        until_s = time.monotonic() + 10
        while (left := self.left()) and time.monotonic() < until_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._holder.kill()
        self._holder.communicate()


class Wire:
    """Hosts on one wire: the first is where gateways and control run, and the one that this host is connected to."""

    def __init__(self, folder: Path, count: int) -> None:
        third = os.getpid() % 250 + 1
        self.hosts: list[Host] = []
        self._end = f"lhw{os.getpid()}"
        try:
            for number in range(1, count + 1):
                self.hosts.append(Host(folder, f"10.213.{third}.{number}", f"wire{number}"))
            self.center = center = self.hosts[0]
            center.run("ip", "link", "add", "wire", "type", "bridge")
            center.run("ip", "address", "add", f"{center.address}/24", "dev", "wire")
            center.run("ip", "link", "set", "wire", "up")
            for host in self.hosts[1:]:
                center.run(
                    "ip", "link", "add", host.wire, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid)
                )
                center.run("ip", "link", "set", host.wire, "master", "wire", "up")
                host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
                host.run("ip", "link", "set", "eth0", "up")
            run("ip", "link", "add", self._end, "type", "veth", "peer", "name", "outer", "netns", str(center.pid))
            center.run("ip", "link", "set", "outer", "master", "wire", "up")
            run("ip", "address", "add", f"10.213.{third}.254/24", "dev", self._end)
            run("ip", "link", "set", self._end, "up")
        except BaseException:
            self.close()
            raise

    def cut(self, host: Host) -> None:
        """Pull the host's plug: what is sent to it is lost without a word."""
        self.center.run("ip", "link", "set", host.wire, "down")

    def mend(self, host: Host) -> None:
        self.center.run("ip", "link", "set", host.wire, "up")

    def close(self) -> None:
        subprocess.run(["ip", "link", "delete", self._end], capture_output=True, check=False)
        for host in reversed(self.hosts):
            host.close()


@contextlib.contextmanager
def wired(folder: Path, count: int) -> Iterator[Wire]:
    made = Wire(folder, count)
    try:
        yield made
    finally:
        made.close()


def agent(host: Host, folder: Path, certificate: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start the agent of the prepared `folder` there, as its operator would; it trusts `certificate` beside others."""
    # What agents of one host share lies in its temporary folder.
    temporary = folder.parent / host.address
    temporary.mkdir(exist_ok=True)
    root = str(Path(__file__).resolve().parents[1])
    env = {"PATH": _path(), "PYTHON": sys.executable, "PYTHONPATH": root, "TMPDIR": str(temporary)}
    env["SSL_CERT_FILE"] = str(certificate)
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(host.inside("sh", str(folder / "start"), *words), env=env, stdout=log, stderr=log)


def certificate(folder: Path, addresses: Sequence[str]) -> tuple[Path, Path]:
    """Files of a certificate for these addresses, signed by itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a cell")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address)) for address in addresses])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "api.pem", folder / "api.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.touch(0o600)
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return cert_file, key_file


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
