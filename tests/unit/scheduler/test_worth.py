"""What a rest is worth: the values of cutting stock, where they are known, and their bounds where they are not."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.scheduler.worth import worth


def test_sizes_of_which_two_fit_are_worth_half() -> None:
    found = worth({470: 5.0})
    assert found[470] == found[940] / 2 == 0.5
    assert (found[469], found[939], found[1000]) == (0.0, 0.5, 1.0)


def test_what_nothing_fits_beside_is_worth_a_whole_one() -> None:
    found = worth({810: 10.0, 160: 1.0})
    assert found[810] == 1.0
    assert found[190] == 0.0  # there are more such rests than 160s to fill them


def test_pairs_that_fill_an_accelerator_share_its_worth() -> None:
    found = worth({650: 1.0, 320: 1.0})
    assert found[650] + found[320] == 1.0
    assert found[970] == 1.0


def test_without_shares_only_a_whole_one_is_worth_anything() -> None:
    assert worth({}).tolist() == [0.0] * 1000 + [1.0]
    assert (worth({0: 3.0, 1000: 2.0, 300: 0.0}) == worth({})).all()


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(1, 999), st.floats(1e-6, 1e6), min_size=1, max_size=25))
def test_worth_never_falls_and_no_set_that_fits_is_worth_more_than_the_whole(rates: dict[int, float]) -> None:
    found = worth(rates)
    assert (np.diff(found) >= 0).all()
    assert (found[0], found[1000]) == (0.0, 1.0)
    assert (found == worth({size: 3.0 * rate for size, rate in rates.items()})).all()
    for size in rates:  # superadditive: two rests are worth no more than both in one
        other = 1000 - size
        assert found[size] + found[other] <= 1.0 + 1e-9
