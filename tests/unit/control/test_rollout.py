"""The arithmetic of an exchange: how many may start while others still serve."""

from __future__ import annotations

import pytest

from lepton_ai.control.rollout import Fleet, room_for
from lepton_ai.store import Record


def copies(count: int) -> list[Record]:
    return [Record("w", "replica", f"r-{n}", f"u-{n}", 1, 1, {}, {}, None, 0, 0, None) for n in range(count)]


@pytest.mark.parametrize(
    ("wanted", "staying", "old", "leaving", "ending", "room"),
    [
        (3, 0, 0, 0, 0, 3),  # a first start: all at once
        (3, 3, 0, 0, 0, 0),
        (2, 5, 0, 0, 0, -3),
        (1, 0, 1, 0, 0, 1),  # one of one: one above
        (4, 0, 4, 0, 0, 1),  # a quarter above
        (8, 0, 8, 0, 0, 2),
        (8, 2, 8, 0, 0, 0),  # as many as the surge allows stand already
        (8, 2, 8, 0, 2, 2),  # two of the old end in this pass
        (3, 2, 0, 1, 0, 1),  # one moves to another node
        (5, 0, 2, 0, 0, 5),  # scaled up in the middle of an update: no more than are wanted
        (2, 0, 5, 0, 0, -2),  # scaled down in the middle of one
    ],
)
def test_room_for(wanted: int, staying: int, old: int, leaving: int, ending: int, room: int) -> None:
    fleet = Fleet(staying=copies(staying), old=copies(old), leaving=copies(leaving))
    found = room_for(wanted, fleet, ending)
    assert found == room
    if found > 0 and (old or leaving):
        assert staying + old + leaving - ending + found <= wanted + max(1, -(-wanted // 4))
