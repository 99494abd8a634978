"""The packet filter's rules of one node, as text for `nft`: which port leads where, and who may talk to whom.

Pure. Owns one table, named after the node; other nodes and cells of the host have their own, and each decides only
about packets from or to its own replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from lepton_ai.spec.container import PortMap

PREFIX = "lai"
"""All interfaces and namespaces of replicas begin so, of whatever node or cell; no more than 15 characters in all."""
FORBIDDEN = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "100.100.100.200", "192.0.0.192", "168.63.129.16")
"""Where no replica may send: this host, and what clouds tell their machines (credentials among it)."""


class Home(Protocol):
    """A replica's interface, address, group of interfaces (its workspace's number) and ports."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def group(self) -> int: ...

    @property
    def maps(self) -> tuple[PortMap, ...]: ...


class Rules:
    """Renders the table of one node whose host ports are at `address`."""

    def __init__(self, scope: str, address: str) -> None:
        self.table, self._address = f"lepton_{scope}", address

    def render(self, homes: Sequence[Home], opened: Iterable[str]) -> str:
        """A script that makes the table so, in one step. `opened`: interfaces that forward only because of us."""
        table = self.table
        groups = sorted({home.group for home in homes})
        forwards = (
            f"{self._address} . {one.protocol.lower()} . {one.host_port} : {home.address} . {one.number}"
            for home in homes
            for one in home.maps
        )
        outer = "{ " + ", ".join(f'"{name}"' for name in sorted(opened)) + " }" if opened else ""
        between = f"iifname {outer} oifname {outer} drop" if outer else ""
        elements = (
            ("mine", [f'"{home.name}"' for home in homes]),
            ("homes", [f'"{home.name}" . {home.address}' for home in homes]),
            ("addresses", [home.address for home in homes]),
            ("pairs", [f"{group} . {group}" for group in groups]),
            ("forwards", sorted(set(forwards))),
        )
        return "\n".join(
            [
                # First as an empty one, so that there is something to flush.
                f"table inet {table} {{\n{_SETS}}}",
                f"flush table inet {table}",
                *(f"flush {'map' if name == 'forwards' else 'set'} inet {table} {name}" for name, _ in elements),
                f"table inet {table} {{\n{_CHAINS.replace('@between', between)}}}",
                *(f"add element inet {table} {name} {{ {', '.join(values)} }}" for name, values in elements if values),
                "",
            ]
        )


def inside(maps: Iterable[PortMap]) -> str:
    """A script for a replica's own namespace: its TCP ports reach it also where it listens on its loopback only.

    A workload that was written for a machine of its own does that; who listens everywhere is reached just the same.
    (Not UDP: who listens everywhere would answer from another address than was asked.)
    """
    numbers = sorted({one.number for one in maps if one.protocol == "TCP"})
    lines = [f"    tcp dport {number} dnat to 127.0.0.1" for number in numbers]
    chain = "  chain prerouting {\n    type nat hook prerouting priority dstnat; policy accept;"
    return "\n".join(
        ["table ip lepton {}", "flush table ip lepton", "table ip lepton {", chain, *lines, "  }", "}", ""]
    )


_SETS = """
  set mine { type ifname; }
  set homes { type ifname . ipv4_addr; }
  set addresses { type ipv4_addr; }
  set pairs { typeof meta iifgroup . meta oifgroup; }
  map forwards { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
"""
# A packet to a loopback address that comes from outside is never led on: it would reach what listens there.
# What a local process sends to a loopback address gets the host's address as its source, else there is no way back.
_CHAINS = f"""
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr 127.0.0.0/8 return
    dnat ip to ip daddr . meta l4proto . th dport map @forwards
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    dnat ip to ip daddr . meta l4proto . th dport map @forwards
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname @mine ip saddr 127.0.0.0/8 masquerade
    ip saddr @addresses oifname != "{PREFIX}*" masquerade
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname @mine ct state established,related accept
    iifname @mine reject
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname @mine jump leaving
    oifname @mine jump coming
    @between
  }}
  chain leaving {{
    meta nfproto ipv6 drop
    iifname . ip saddr != @homes drop
    ct state established,related accept
    oifname "{PREFIX}*" meta iifgroup . meta oifgroup @pairs return
    oifname "{PREFIX}*" reject
    ip daddr {{ {", ".join(FORBIDDEN)} }} reject
  }}
  chain coming {{
    ct state established,related accept
    iifname "{PREFIX}*" meta iifgroup . meta oifgroup @pairs accept
    iifname "{PREFIX}*" drop
    ct status dnat accept
    drop
  }}
"""
