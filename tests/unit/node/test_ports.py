"""Ports are given once, whoever asks."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.errors import Conflict
from lepton_ai.node.maps import Maps
from lepton_ai.node.ports import FIRST, LAST, REST_S, Ports
from lepton_ai.spec.replica import ReplicaSpec


def test_two_agents_that_would_choose_the_same(tmp_path: Path) -> None:
    first, second = Ports("127.0.0.1", tmp_path, seed=1), Ports("127.0.0.1", tmp_path, seed=1)
    taken = [ports.take() for _ in range(20) for ports in (first, second)]
    assert len(set(taken)) == 40
    assert all(FIRST <= port <= LAST for port in taken)
    with pytest.raises(Conflict):
        second.take(taken[0])
    first.close()
    assert second.take(taken[0]) == taken[0]
    second.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_not_given(tmp_path: Path, host: str) -> None:
    probe = Ports("127.0.0.1", tmp_path, seed=2)
    port = probe.take()
    probe.close()
    with closing(socket.socket()) as other:
        other.bind((host, port))
        other.listen()
        assert Ports("127.0.0.1", tmp_path, seed=2).take() != port
        with pytest.raises(Conflict):
            probe.take(port)
        assert probe.take(port, listening=True) == port
    probe.close()


def test_a_port_given_back_rests_before_another_gets_it(tmp_path: Path) -> None:
    now_s = 0.0
    ports = Ports("127.0.0.1", tmp_path, seed=3, clock_s=lambda: now_s)
    port = ports.take()
    ports.free(port)
    again = Ports("127.0.0.1", tmp_path, seed=3)
    assert again.take() != port  # neither another agent
    assert ports.take(port) == port  # who asks for this one gets it
    ports.free(port)
    now_s = REST_S
    assert ports.take() != port  # the lock is free now, the choice is random
    assert Ports("127.0.0.1", tmp_path, seed=3).take() == port
    again.close()
    ports.close()


def test_a_port_that_was_asked_for_by_number_is_free_at_once_for_another_agent(tmp_path: Path) -> None:
    first, second = Ports("127.0.0.1", tmp_path), Ports("127.0.0.1", tmp_path)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert port > LAST
    first.take(port)
    first.free(port)
    assert second.take(port) == port
    first.close()
    second.close()


def test_a_port_that_has_rested_is_let_go_without_another_being_asked_for(tmp_path: Path) -> None:
    now_s = 0.0
    first, second = Ports("127.0.0.1", tmp_path, clock_s=lambda: now_s), Ports("127.0.0.1", tmp_path)
    port = first.take()
    first.free(port)
    now_s = REST_S
    with pytest.raises(Conflict):
        second.take(port)
    first.wake()
    assert second.take(port) == port
    first.close()
    second.close()


def test_a_held_port_is_nobody_elses(tmp_path: Path) -> None:
    ports = Ports("127.0.0.1", tmp_path)
    port = ports.take(hold=True)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with closing(socket.socket(socket.AF_INET, kind)) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
    ports.free(port)
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", port))
    ports.close()


@pytest.mark.parametrize("forwards", [False, True])
def test_a_port_that_is_preferred_is_given_while_it_is_free(tmp_path: Path, forwards: bool) -> None:
    def order(**fields: Any) -> ReplicaSpec:
        return ReplicaSpec(uid="u", workspace="w", name="r", owner_kind="job", owner="j", command=("x",), **fields)

    both = [Ports("127.0.0.1", tmp_path, seed) for seed in (1, 2)]
    first, second = (Maps(ports, forwards=forwards) for ports in both)
    first.take(order())
    wanted = first.host_port
    second.take(order(prefer_port=wanted))
    assert second.host_port not in (None, wanted)
    first.free()
    first.take(order(prefer_port=wanted))
    assert (first.host_port, first.port) == (wanted, wanted)
    for ports in both:
        ports.close()
