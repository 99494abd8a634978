"""The samples of many series: gaps, clocks that jump, late samples, values that stand still, and a restart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.errors import Corrupt, Invalid
from lepton_ai.scheduler.window import FROZEN_LEAST, Ring

STEP = 5000
NAN = math.nan


def cpu(ring: Ring, samples: int = 4, key: str = "a", now_ms: int | None = None) -> list[float]:
    """The first field of a key, gaps as -1 so that lists can be compared."""
    return [round(float(v), 3) for v in np.nan_to_num(ring.history([key], samples, now_ms)[0, 0], nan=-1.0)]


def filled(*values: float) -> Ring:
    ring = Ring(("cpu",), 8, STEP)
    for number, value in enumerate(values):
        ring.add(number * STEP, ["a"], [[value]])
    return ring


def test_samples_are_given_newest_last_and_a_gap_is_a_gap() -> None:
    ring = filled(0.1, 0.2)
    ring.add(4 * STEP + 17, ["a"], [[0.5]])
    assert cpu(ring, 6) == [-1, 0.1, 0.2, -1, -1, 0.5]
    assert cpu(ring, 3, now_ms=6 * STEP) == [0.5, -1, -1]
    assert cpu(ring, 2, "unknown") == [-1, -1]
    assert ring.last(["a", "b"], 2)[0, 0] == pytest.approx(0.5)
    assert np.isnan(ring.last(["b"], 2)).all()


def test_of_two_in_one_step_the_later_stays_and_a_gap_does_not_erase_it() -> None:
    ring = filled(0.1)
    ring.add(1, ["a"], [[0.3]])
    ring.add(2, ["a"], [[NAN]])
    assert cpu(ring, 1) == [0.3]


@pytest.mark.parametrize("lie", [NAN, math.inf, -math.inf, -0.1])
def test_what_is_no_measurement_is_a_gap(lie: float) -> None:
    assert cpu(filled(0.1, lie, 0.2), 3) == [0.1, -1, 0.2]


def test_only_the_last_samples_are_kept() -> None:
    ring = filled(*(n / 100 for n in range(30)))
    assert cpu(ring, 10) == [-1, -1, *(n / 100 for n in range(22, 30))]


def test_a_late_sample_fills_its_gap_and_overwrites_nothing() -> None:
    ring = filled(0.1, NAN, 0.3)
    ring.add(1 * STEP, ["a"], [[0.2]])
    ring.add(0, ["a"], [[0.9]])
    assert cpu(ring, 3) == [0.1, 0.2, 0.3]


def test_a_clock_that_leaps_ahead_leaves_a_gap_and_one_set_back_goes_on() -> None:
    ring = filled(0.1, 0.2)
    ring.add(3_600_000, ["a"], [[0.3]])
    assert cpu(ring, 4) == [-1, -1, -1, 0.3]
    ring.add(2 * STEP, ["a"], [[0.4]])  # an hour back
    ring.add(3 * STEP, ["a"], [[0.5]])
    assert cpu(ring, 4) == [-1, 0.3, 0.4, 0.5]
    assert cpu(ring, 3, now_ms=4 * STEP) == [0.4, 0.5, -1]


def test_keys_come_and_go_without_leaving_a_trace() -> None:
    ring = Ring(("cpu",), 8, STEP)
    names = [f"n{number}" for number in range(40)]
    ring.add(0, names, [[0.1]] * 40)
    ring.keep(set(names[:3]))
    assert len(ring) == 3
    ring.add(STEP, ["new"], [[0.2]])
    assert cpu(ring, 2, "new") == [-1, 0.2]
    assert cpu(ring, 2, "n1") == [0.1, -1]
    assert "n5" not in ring


def test_what_moves_and_then_stands_still_is_frozen() -> None:
    rng, ring = np.random.default_rng(1), Ring(("cpu", "memory"), 64, STEP)
    for step in range(100):  # the memory of "live" never moves, and nobody expects it to
        ring.add(step * STEP, ["live", "stuck"], [[rng.random(), 0.5], [rng.random(), rng.random()]])
    assert not ring.frozen(["live", "stuck", "unknown"]).any()
    for step in range(100, 101 + FROZEN_LEAST):
        ring.add(step * STEP, ["live", "stuck"], [[rng.random(), 0.5], [0.25, rng.random()]])
    assert ring.frozen(["live", "stuck"]).tolist() == [[False, False], [True, False]]
    ring.add(200 * STEP, ["stuck"], [[0.26, 0.1]])
    assert not ring.frozen(["stuck"]).any()


def test_what_seldom_moves_may_stand_still_for_long() -> None:
    rng, ring = np.random.default_rng(2), Ring(("cpu",), 64, STEP)
    value = 0.1
    for step in range(2000):
        value = rng.random() if rng.random() < 0.03 else value
        ring.add(step * STEP, ["a"], [[value]])
        assert not ring.frozen(["a"]).any(), step


def test_a_snapshot_brings_all_of_it_back() -> None:
    rng, ring = np.random.default_rng(3), Ring(("cpu", "memory"), 16, STEP)
    for step in range(40):
        ring.add(step * STEP, ["a", "b"], [[rng.random(), NAN], [7.0, 0.2]])
    back = Ring.restore(ring.snapshot(), 1_000_000)
    assert back.fields == ring.fields
    np.testing.assert_allclose(back.history(["a", "b"], 16), ring.history(["a", "b"], 16), rtol=1e-3)
    for step in range(FROZEN_LEAST + 1):  # also how it moved before
        back.add(1_000_000 + (step + 1) * STEP, ["a"], [[0.5, NAN]])
    assert back.frozen(["a"])[0, 0]


def test_an_empty_ring_and_a_large_value_survive_too() -> None:
    assert len(Ring.restore(Ring(("cpu",), 4, STEP).snapshot(), 0)) == 0
    ring = filled(1e9)
    assert cpu(Ring.restore(ring.snapshot(), 0), 1)[0] == pytest.approx(65504)


def damaged() -> list[bytes]:
    good = filled(0.1, 0.2).snapshot()
    return [b"", b"x", good[:-3], good.replace(b'"cpu"', b'"gpu"'), good[:40] + b"\0" + good[41:], b"\n" * 9]


@pytest.mark.parametrize("data", damaged())
def test_a_damaged_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        Ring.restore(data, 0)


def test_a_ring_needs_a_form() -> None:
    for arguments in (((), 8, 1), (("cpu",), 1, 1), (("cpu",), 8, 0)):
        with pytest.raises(Invalid):
            Ring(*arguments)


class Model:
    """The same in the plainest words: a dictionary of steps."""

    def __init__(self, length: int) -> None:
        self.length, self.seen, self.newest = length, dict[int, float](), 0

    def add(self, step: int, value: float) -> None:
        if math.isfinite(value) and value >= 0 and (step >= self.newest or step not in self.seen):
            self.seen[step] = value
        self.newest = max(self.newest, step)

    def history(self, samples: int) -> list[float]:
        first = self.newest - self.length
        steps = range(self.newest - samples + 1, self.newest + 1)
        return [self.seen.get(step, -1.0) if step > first else -1.0 for step in steps]


number = st.one_of(st.floats(0, 8), st.sampled_from([NAN, math.inf, -1.0]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-3, 12), number), max_size=40), st.integers(2, 9))
def test_it_is_a_dictionary_of_steps(moves: list[tuple[int, float]], length: int) -> None:
    ring, model = Ring(("cpu",), length, STEP), Model(length)
    for change, value in moves:
        step = max(0, model.newest + change)
        ring.add(step * STEP, ["a"], [[value]])
        model.add(step, value)
        got: Any = np.nan_to_num(ring.history(["a"], 12)[0, 0], nan=-1.0)
        np.testing.assert_allclose(got, model.history(12), rtol=1e-6, atol=1e-6)
