"""The forecast: the naive rule to the letter, bad samples, the network's part, and what outcomes correct."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_ai.errors import Corrupt, Invalid
from lepton_ai.scheduler import track
from lepton_ai.scheduler.features import COUNT
from lepton_ai.scheduler.forecast import HISTORY, Forecaster
from lepton_ai.scheduler.learn import initial
from lepton_ai.scheduler.network import BYTES_MAX, HORIZONS, Weights, pack, shipped

Array = NDArray[np.float64]


def noisy(seed: int, series: int = 20, samples: int = HISTORY) -> Array:
    return np.random.default_rng(seed).gamma(2.0, 10.0, (series, samples))


def untrained() -> Weights:
    return initial(np.zeros(COUNT, np.float32), np.ones(COUNT, np.float32), 0)


def biased(median: float, upper: float) -> bytes:
    """A network that adds so many spreads to everything."""
    weights = untrained()
    weights.shift[:3], weights.shift[3:] = median, upper
    return pack(weights)


def test_naive_is_the_median_of_12_and_the_quantile_of_48() -> None:
    history = noisy(0, samples=100)
    ahead = Forecaster(network=False, horizons=(1, 7), quantile=0.8).forecast(history)
    assert ahead.horizons == (1, 7)
    assert np.allclose(ahead.median, np.median(history[:, -12:], axis=1)[:, None])
    wanted = np.maximum(np.quantile(history[:, -48:], 0.8, axis=1), np.median(history[:, -12:], axis=1))
    assert np.allclose(ahead.upper, wanted[:, None])
    assert not ahead.network.any()


def test_missing_samples_do_not_count() -> None:
    history = noisy(1)
    history[np.random.default_rng(2).random(history.shape) < 0.3] = np.nan
    ahead = Forecaster(network=False).forecast(history)
    assert np.allclose(ahead.median[:, 0], np.nanmedian(history[:, -12:], axis=1))
    history[:, -12:] = np.nan
    assert np.allclose(Forecaster(network=False).forecast(history).median[:, 0], np.nanmedian(history, axis=1))


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize(
    ("history", "median", "upper"),
    [
        ([np.nan] * 48, 0.0, 0.0),
        ([-1.0, np.inf, -np.inf, np.nan], 0.0, 0.0),
        ([3.0], 3.0, 3.0),
        ([0.0] * 60, 0.0, 0.0),
        ([7.0] * 60, 7.0, 7.0),
        ([7.0, -5.0, np.inf] * 20, 7.0, 7.0),
    ],
)
def test_bad_short_and_flat_windows(network: bool, history: list[float], median: float, upper: float) -> None:
    ahead = Forecaster(network=network).forecast([history])
    assert ahead.median.tolist() == [[median] * 3]
    assert ahead.upper.tolist() == [[upper] * 3]
    assert not ahead.network.any()


sample = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 5e-324, 1e-300, 1e300, 1.7e308]),
    st.floats(0.0, 100.0),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(sample, min_size=1, max_size=80), st.lists(sample, min_size=3, max_size=20))
def test_whatever_is_measured_the_forecast_is_a_number(history: list[float], more: list[float]) -> None:
    forecaster = Forecaster()
    held = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for newest in more:
            held.append(newest)
            forecaster.observe([newest], ["x"])
            ahead = forecaster.forecast([held], ["x"])
            assert np.isfinite(ahead.median).all()
            assert np.isfinite(ahead.upper).all()
            assert (ahead.median >= 0.0).all()
            assert (ahead.upper >= ahead.median).all()
        assert np.isfinite(json.loads(json.dumps(forecaster.state()))["series"].get("x", [0.0])).all()


def test_the_unit_of_a_history_does_not_matter() -> None:
    history = noisy(3)
    one, two = Forecaster().forecast(history), Forecaster().forecast(history * 1e-6)
    assert np.allclose(one.median, two.median * 1e6, rtol=1e-4)
    assert np.allclose(one.upper, two.upper * 1e6, rtol=1e-4)


def test_a_bad_series_changes_nothing_of_the_others() -> None:
    history = noisy(4)
    alone = Forecaster().forecast(history)
    poisoned = np.vstack([history, np.full(HISTORY, np.nan), np.full(HISTORY, 1e308), np.full(HISTORY, -3.0)])
    beside = Forecaster().forecast(poisoned)
    assert np.allclose(alone.upper, beside.upper[:-3])


def test_an_untrained_network_is_the_naive_rule() -> None:
    history = noisy(5)
    ours, naive = Forecaster(model=pack(untrained())).forecast(history), Forecaster(network=False).forecast(history)
    assert np.allclose(ours.median, naive.median)
    assert np.allclose(ours.upper, naive.upper)
    assert ours.network.all()


def test_the_shipped_network_is_small_and_takes_part() -> None:
    assert len(shipped()) < BYTES_MAX
    history = noisy(6)
    ours, naive = Forecaster().forecast(history), Forecaster(network=False).forecast(history)
    assert ours.network.all()
    assert not np.allclose(ours.median, naive.median, rtol=1e-3)


def test_between_the_known_horizons_residuals_are_interpolated_and_beyond_them_held() -> None:
    history = noisy(7)
    known, more = Forecaster(horizons=HORIZONS).forecast(history), Forecaster(horizons=(1, 3, 5, 40)).forecast(history)
    assert np.allclose(more.median[:, [0, 2, 3]], known.median)
    low, high = np.minimum(known.median[:, 0], known.median[:, 1]), np.maximum(known.median[:, 0], known.median[:, 1])
    assert ((more.median[:, 1] >= low - 1e-9) & (more.median[:, 1] <= high + 1e-9)).all()


def test_a_network_that_loses_on_a_series_is_dropped_there_and_taken_back() -> None:
    forecaster = Forecaster(model=biased(1.0, 2.0))
    ramp = np.linspace(20.0, 4000.0, 600)[None, :]
    used = run(forecaster, np.vstack([noisy(8, 1, 600), ramp]), ["steady", "rising"])
    assert used[-100:, 0].mean() < 0.2
    assert used[:, 1].all()  # a spread too high is right where the load rises
    used = run(forecaster, ramp, ["steady"])
    assert used[-1, 0]


def run(forecaster: Forecaster, series: Array, keys: list[str]) -> NDArray[np.bool_]:
    used = []
    for now in range(HISTORY, series.shape[1] + 1):
        forecaster.observe(series[:, now - 1], keys)
        used.append(forecaster.forecast(series[:, now - HISTORY : now], keys).network)
    return np.array(used)


def covered(forecaster: Forecaster, series: Array, keys: list[str] | None) -> float:
    """The share of outcomes one step ahead that were not above the upper figure, in the second half of the time."""
    hits = []
    for now in range(HISTORY, series.shape[1]):
        if keys is not None:
            forecaster.observe(series[:, now - 1], keys)
        upper = forecaster.forecast(series[:, now - HISTORY : now], keys).upper[:, 0]
        hits.append(series[:, now] <= upper)
    return float(np.mean(hits[len(hits) // 2 :]))


def test_outcomes_bring_the_coverage_to_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "STEP", 0.03)  # ten times as fast, for a tenth of the samples
    series, keys = noisy(9, 12, 500), [str(number) for number in range(12)]
    off = biased(0.0, -0.4)
    assert covered(Forecaster(model=off), series, None) < 0.85
    assert 0.87 < covered(Forecaster(model=off), series, keys) < 0.93


def test_what_was_not_measured_corrects_nothing() -> None:
    forecaster, keys = Forecaster(), ["a"]
    history = noisy(10, 1)
    for _ in range(30):
        forecaster.observe([np.nan], keys)
        forecaster.forecast(history, keys)
    assert forecaster.state()["series"] == {}


def test_an_outcome_counts_for_the_step_it_was_forecast_for() -> None:
    """Three steps ahead: the outcome three observations later, not an earlier one."""
    forecaster, keys = Forecaster(network=False, horizons=(3,)), ["a"]
    history = np.full((1, HISTORY), 10.0)
    history[0, ::2] = 11.0
    forecaster.forecast(history, keys)
    for value in (1e6, 1e6):
        forecaster.observe([value], keys)
        assert forecaster.state()["series"] == {}
    forecaster.observe([1e6], keys)
    moved = forecaster.state()["series"]
    assert isinstance(moved, dict)
    assert moved["a"][-1] == pytest.approx(track.STEP * 0.9)


def test_a_restart_does_not_forget() -> None:
    series, keys = noisy(11, 5, 200), [str(number) for number in range(5)]
    before = Forecaster()
    run(before, series, keys)
    after = Forecaster()
    after.restore(json.loads(json.dumps(before.state())))
    one, two = before.forecast(series[:, -HISTORY:], keys), after.forecast(series[:, -HISTORY:], keys)
    assert np.allclose(one.upper, two.upper, rtol=1e-5)
    assert not np.allclose(one.upper, Forecaster().forecast(series[:, -HISTORY:], keys).upper, rtol=1e-5)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 9},
        {"version": 1, "horizons": [1, 5, 15], "quantile": 0.9, "series": None},
        {"version": 1, "horizons": [1, 2], "quantile": 0.9, "series": {"a": [1.0] * 7}},
        {"version": 1, "horizons": [1, 5, 15], "quantile": 0.9, "series": {"a": ["x"], "b": [1.0], "c": [None] * 7}},
        {"version": 1, "horizons": [1, 5, 15], "quantile": 0.9, "series": {"a": [float("nan")] * 7}},
    ],
)
def test_a_damaged_state_is_learned_anew(state: dict[str, object]) -> None:
    forecaster = Forecaster()
    forecaster.restore(state)
    assert forecaster.state()["series"] == {}


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "SERIES_MOST", 100)
    forecaster = Forecaster(network=False)
    for start in range(0, 1000, 50):
        keys = [f"pod-{number}" for number in range(start, start + 50)]
        forecaster.observe(np.ones(50), keys)
        forecaster.forecast(noisy(start, 50), keys)
    assert len(forecaster._track) <= 100


def test_a_key_that_comes_back_after_it_was_dropped_starts_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "SERIES_MOST", 2)
    forecaster = Forecaster()
    series = noisy(12, 1, 300)
    run(forecaster, series, ["old"])
    for name in ("one", "two", "three"):
        run(forecaster, series[:, : HISTORY + 3], [name])
    held = forecaster.state()["series"]
    assert isinstance(held, dict)
    assert "old" not in held
    forecaster.forecast(series[:, :HISTORY], ["old"])
    assert "old" not in forecaster.state()["series"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Forecaster(horizons=()), Invalid),
        (lambda: Forecaster(horizons=(0,)), Invalid),
        (lambda: Forecaster(horizons=(1.5,)), Invalid),  # type: ignore[arg-type]
        (lambda: Forecaster(quantile=1.0), Invalid),
        (lambda: Forecaster(quantile=0.2), Invalid),
        (lambda: Forecaster(model=b"no network"), Corrupt),
        (lambda: Forecaster(model=b""), Corrupt),
        (lambda: Forecaster().forecast([1.0, 2.0]), Invalid),
        (lambda: Forecaster().forecast(np.zeros((2, 0))), Invalid),
        (lambda: Forecaster().forecast([[1.0]], ["a", "b"]), Invalid),
        (lambda: Forecaster().observe([1.0], ["a", "b"]), Invalid),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(make, error: type[Invalid]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        make()
    assert caught.value.hint


def test_no_series_is_no_error() -> None:
    assert Forecaster().forecast(np.zeros((0, HISTORY)), []).upper.shape == (0, 3)
