"""Ports are given once, whoever asks."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from lepton_ai.errors import Conflict
from lepton_ai.node.ports import FIRST, LAST, Ports


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
    probe.free(port)
    with closing(socket.socket()) as other:
        other.bind((host, port))
        other.listen()
        assert Ports("127.0.0.1", tmp_path, seed=2).take() != port
        with pytest.raises(Conflict):
            probe.take(port)
        assert probe.take(port, listening=True) == port
    probe.close()
