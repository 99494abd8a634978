"""Networks of replicas with real packets: who reaches whom, with the rules and with their refusals taken out."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lepton_ai.node import rules
from lepton_ai.node.network import Network, Space
from lepton_ai.node.users import Users
from lepton_ai.spec.container import PortMap

SERVER = """
import socket, sys
kind = socket.SOCK_DGRAM if sys.argv[3] == "UDP" else socket.SOCK_STREAM
sock = socket.socket(socket.AF_INET, kind)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind((sys.argv[1], int(sys.argv[2])))
if kind == socket.SOCK_STREAM: sock.listen(64)
print("ready", flush=True)
while True:
    if kind == socket.SOCK_STREAM:
        peer, address = sock.accept()
        peer.sendall(address[0].encode())
        peer.close()
    else:
        data, address = sock.recvfrom(100)
        sock.sendto(address[0].encode(), address)
"""
CLIENT = """
import socket, sys
kind = socket.SOCK_DGRAM if sys.argv[3] == "UDP" else socket.SOCK_STREAM
sock = socket.socket(socket.AF_INET, kind)
sock.settimeout(float(sys.argv[4]))
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.send(b"?")
print(sock.recv(100).decode())
"""
OUTSIDE, HOST_END, META = "198.18.7.2", "198.18.7.1", "169.254.169.254"


def reason(tmp: Path) -> str:
    return Network(tmp, "127.0.0.1", Users(tmp / "users.json")).available()


class Wires:
    """Networks of some nodes on this host, processes in them, and a stranger's machine beyond the host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outside = f"lat{os.getpid()}"
        self._networks: list[Network] = []
        self._processes: list[subprocess.Popen[str]] = []
        run("ip", "netns", "add", self.outside)
        run("ip", "link", "add", self.outside, "type", "veth", "peer", "name", "eth0", "netns", self.outside)
        run("ip", "address", "add", f"{HOST_END}/30", "dev", self.outside)
        run("ip", "link", "set", self.outside, "up")
        run("ip", "route", "add", META, "via", OUTSIDE)
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{OUTSIDE}/30", "dev", "eth0"),
            ("address", "add", f"{META}/32", "dev", "lo"),
            ("link", "set", "eth0", "up"),
        ):
            run("ip", "-n", self.outside, *words)

    def node(self, name: str, address: str = "127.0.0.1", cell: str = "a") -> Network:
        folder = self.folder / cell / name
        folder.mkdir(parents=True, exist_ok=True)
        network = Network(folder, address, Users(folder.parent / "users.json"))
        self._networks.append(network)
        return network

    def serve(self, where: str | None, port: int, address: str = "0.0.0.0", protocol: str = "TCP") -> None:
        argv = [*inside(where), sys.executable, "-c", SERVER, address, str(port), protocol]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self._processes.append(process)
        assert process.stdout.readline() == "ready\n"

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        for network in self._networks:
            network.remove()
        run("ip", "netns", "delete", self.outside)
        subprocess.run(["ip", "link", "delete", self.outside], stderr=subprocess.DEVNULL, check=False)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def inside(where: str | None) -> list[str]:
    return [] if where is None else ["ip", "netns", "exec", where]


def ask(where: str | None, address: str, port: int, protocol: str = "TCP", wait_s: float = 20.0) -> str:
    """Whom the other end saw; empty when it was not reached."""
    argv = [*inside(where), sys.executable, "-c", CLIENT, address, str(port), protocol, str(wait_s)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def denied(where: str | None, address: str, port: int, protocol: str = "TCP") -> bool:
    return ask(where, address, port, protocol, wait_s=1.5) == ""


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    why = reason(tmp_path)
    if why:
        pytest.skip(f"networks are not possible here: {why}")
    made = Wires(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_port_leads_to_its_replica(wires: Wires) -> None:
    node = wires.node("node-1")
    one = node.open("one", "acme", [PortMap(number=8080, host_port=20501)])
    two = node.open("two", "acme", [PortMap(number=8080, host_port=20502), udp(9000, 20503)])
    for space in (one, two):
        wires.serve(space.name, 8080)
    wires.serve(two.name, 9000, protocol="UDP")
    assert ask(None, "127.0.0.1", 20501)
    assert ask(None, "127.0.0.1", 20502)
    assert ask(None, "127.0.0.1", 20503, "UDP")
    assert node.open("two", "acme", [PortMap(number=8080, host_port=20504)]) == two
    assert ask(None, "127.0.0.1", 20504)
    assert denied(None, "127.0.0.1", 20502)


def udp(number: int, host_port: int) -> PortMap:
    return PortMap(number=number, host_port=host_port, protocol="UDP")


def test_a_workspace_of_a_cell_is_one_network_and_no_other(wires: Wires) -> None:
    first, second, other = wires.node("node-1"), wires.node("node-2"), wires.node("node-1", cell="b")
    here = first.open("here", "acme")
    wires.serve(here.name, 8000)
    there = second.open("there", "acme")
    assert ask(there.name, here.address, 8000) == there.address
    for network, uid, workspace in ((first, "x", "evil"), (second, "y", "evil"), (other, "z", "acme")):
        space = network.open(uid, workspace)
        assert denied(space.name, here.address, 8000), (uid, workspace)
    # Whose own ports are open to the others of its workspace also by the node's address.
    assert ask(None, here.address, 8000)


Attack = Callable[[Wires, Network, Space, Space], bool]


def by_address(wires: Wires, node: Network, victim: Space, evil: Space) -> bool:
    return bool(ask(evil.name, victim.address, 8080, wait_s=3))


def by_host_port(wires: Wires, node: Network, victim: Space, evil: Space) -> bool:
    return bool(ask(evil.name, HOST_END, 20500, wait_s=3))


def a_service_of_the_host(wires: Wires, node: Network, victim: Space, evil: Space) -> bool:
    wires.serve(None, 20999)
    return bool(ask(evil.name, HOST_END, 20999, wait_s=3))


def the_hosts_loopback(wires: Wires, node: Network, victim: Space, evil: Space) -> bool:
    """As a workload with rights over its own network could: by a route to 127.0.0.1 that leaves it."""
    wires.serve(None, 20998, address="127.0.0.1")
    host = run("ip", "-n", evil.name, "route", "show", "default").split()[2]
    run("ip", "-n", evil.name, "address", "delete", "127.0.0.1/8", "dev", "lo")
    run("ip", "netns", "exec", evil.name, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet")
    run("ip", "-n", evil.name, "route", "add", "127.0.0.1", "via", host)
    return bool(ask(evil.name, "127.0.0.1", 20998, wait_s=3))


def metadata(wires: Wires, node: Network, victim: Space, evil: Space) -> bool:
    wires.serve(wires.outside, 80, address=META)
    return bool(ask(evil.name, META, 80, wait_s=3))


def a_strangers_way_to_a_loopback_port(wires: Wires, node: Network, victim: Space, evil: Space) -> bool:
    """A machine of the same wire sends to 127.0.0.1 by way of this host."""
    local = wires.node("node-9")
    wires.serve(local.open("quiet", "acme", [PortMap(number=8081, host_port=20510)]).name, 8081)
    run("ip", "netns", "exec", wires.outside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet")
    run("ip", "-n", wires.outside, "address", "delete", "127.0.0.1/8", "dev", "lo")
    run("ip", "-n", wires.outside, "route", "add", "127.0.0.1", "via", HOST_END)
    return bool(ask(wires.outside, "127.0.0.1", 20510, wait_s=3))


@pytest.mark.parametrize("defended", [False, True])
@pytest.mark.parametrize(
    "attack",
    [by_address, by_host_port, a_service_of_the_host, the_hosts_loopback, metadata, a_strangers_way_to_a_loopback_port],
)
def test_what_the_rules_refuse(wires: Wires, monkeypatch: pytest.MonkeyPatch, attack: Attack, defended: bool) -> None:
    if not defended:
        open_all = re.sub(r"\n[^\n]*\b(reject|drop|return)(?=\n)", "", rules._CHAINS)
        assert open_all != rules._CHAINS
        monkeypatch.setattr(rules, "_CHAINS", open_all)
    node = wires.node("node-1", HOST_END)
    victim = node.open("victim", "acme", [PortMap(number=8080, host_port=20500)])
    wires.serve(victim.name, 8080)
    evil = node.open("evil", "evil")
    assert ask(None, HOST_END, 20500)
    assert attack(wires, node, victim, evil) is not defended


def test_out_and_in_across_hosts(wires: Wires) -> None:
    node = wires.node("node-1", HOST_END)
    maps = [PortMap(number=8080, host_port=20500), udp(9000, 20501)]
    space = node.open("one", "acme", maps)
    wires.serve(space.name, 8080)
    wires.serve(space.name, 9000, protocol="UDP")
    wires.serve(wires.outside, 7000)
    assert ask(space.name, OUTSIDE, 7000) == HOST_END
    assert ask(wires.outside, HOST_END, 20500) == OUTSIDE
    assert ask(wires.outside, HOST_END, 20501, "UDP") == OUTSIDE
    run("ip", "-n", wires.outside, "route", "add", space.address, "via", HOST_END)
    assert denied(wires.outside, space.address, 8080)  # only by the port that leads there
    assert forwards(wires.outside) == "1"
    node.remove()
    others = os.listdir("/run/lepton_ai/spaces")
    assert forwards(wires.outside) == "0" or others  # restored with the last network of the host


def forwards(name: str) -> str:
    return Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").read_text().strip()


def test_what_a_crash_leaves_is_mended_and_what_nobody_owns_is_removed(wires: Wires) -> None:
    node = wires.node("node-1")
    kept = node.open("kept", "acme", [PortMap(number=8080, host_port=20500)])
    wires.serve(kept.name, 8080)
    lost = node.open("lost", "acme")
    sleeper = subprocess.Popen([*inside(lost.name), "sleep", "600"])
    run("nft", "delete", "table", "inet", node.table)
    again = wires.node("node-1")
    assert again.address("kept") is None
    again.sweep(["kept"])
    assert again.address("kept") == kept.address
    assert ask(None, "127.0.0.1", 20500)
    assert sleeper.wait() == -9
    assert not lost.path.exists()
    # The first one's own are not taken from it by a look that was older than they are.
    node.sweep([])
    assert kept.path.exists()
    again.close("kept")
    again.close("kept")
    assert not kept.path.exists()
    assert denied(None, "127.0.0.1", 20500)


def test_what_a_vanished_node_left_is_removed_by_another(wires: Wires) -> None:
    gone, stays = wires.node("gone", cell="x"), wires.node("stays")
    space = gone.open("one", "acme")
    with contextlib.suppress(FileNotFoundError):
        (wires.folder / "x" / "users.json").unlink()
    os.rename(wires.folder / "x", wires.folder / "elsewhere")
    stays.sweep([])
    assert not space.path.exists()
    assert gone.table not in run("nft", "list", "tables")
