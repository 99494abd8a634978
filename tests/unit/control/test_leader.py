"""Who leads: the lease, its holder, and when a successor need not wait."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ai.control.leader import Leader, _boot_id, _holder, _started, is_dead
from lepton_ai.errors import StaleEpoch
from lepton_ai.store import Create, Store


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms

    def elapsed_ms(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/store.db", now_ms=clock.now_ms) as opened:
        yield opened


def test_one_leads_and_renews_and_the_other_waits(store: Store, clock: Clock) -> None:
    one, two = Leader(store, clock, holder="one"), Leader(store, clock, holder="two")
    assert one.ensure() is not None
    for _ in range(50):
        clock.ms += 1000
        assert one.ensure() is not None
        assert two.ensure() is None
    clock.ms += 4000  # `one` stands still
    assert two.ensure() is None
    clock.ms += 1100
    lease = two.ensure()
    assert lease is not None
    assert lease.epoch == 2
    assert one.ensure() is None
    with pytest.raises(StaleEpoch):
        store.batch([Create("w", "k", "n", {})], lease=store.renew(one_lease(one), 5.0))


def one_lease(leader: Leader):  # type: ignore[no-untyped-def]
    """The lease as the deposed leader last had it."""
    from lepton_ai.store import Lease

    return Lease("control", leader._holder, 1, 5.0, 0)


def test_a_lease_that_was_given_back_is_taken_at_once(store: Store, clock: Clock) -> None:
    one, two = Leader(store, clock, holder="one"), Leader(store, clock, holder="two")
    assert one.ensure() is not None
    assert two.ensure() is None
    one.release()
    clock.ms += 200
    assert two.ensure() is not None


def test_the_lease_of_a_dead_process_is_taken_at_once(store: Store, clock: Clock) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = f"{_boot_id()}/{child.pid}/{_started(child.pid)}/x"
    assert Leader(store, clock, holder=holder).ensure() is not None
    mine = Leader(store, clock)
    assert not is_dead(holder)
    assert mine.ensure() is None
    child.kill()
    child.communicate()
    clock.ms += 200
    assert is_dead(holder)
    assert mine.ensure() is not None


def test_who_is_certainly_dead(store: Store) -> None:
    mine = _holder()
    boot, pid, started, tail = mine.split("/")
    assert not is_dead(mine)
    assert is_dead(f"{boot}/{pid}/{started}0/{tail}")  # the number was given to another process since
    assert not is_dead(f"other-boot/{pid}/0/{tail}")  # of another machine nothing is known
    for odd in ("", "x", f"{boot}/x/1/2", "//"):
        assert not is_dead(odd)
