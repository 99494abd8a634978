"""How the network learns: gradients, seeds, what an example is, the file, and adapting to a cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_ai.errors import Corrupt, Invalid
from lepton_ai.scheduler import learn
from lepton_ai.scheduler.features import COUNT, features
from lepton_ai.scheduler.learn import Examples, adapt, examples, gradients, losses, train
from lepton_ai.scheduler.naive import HISTORY, naive
from lepton_ai.scheduler.network import BYTES_MAX, Network, Weights, forward, joined, pack, shipped, unpack

Array = NDArray[np.float64]


def wave(seed: int, samples: int = 600) -> Array:
    """A load that follows its own past closely: there is something to learn."""
    random = np.random.default_rng(seed)
    return 50.0 + 30.0 * np.sin(np.arange(samples) / 9.0 + random.random()) + random.normal(0.0, 3.0, samples)


def some(seed: int, rows: int = 40) -> Examples:
    random = np.random.default_rng(seed)
    shapes = ((rows, COUNT), (rows, 3), (rows, 3), (rows,))
    inputs, median, upper, weight = (random.normal(0.0, 1.0, shape).astype(np.float32) for shape in shapes)
    median[3, 1] = upper[3, 1] = np.nan  # an outcome that was not measured
    return Examples(inputs, median, upper, np.abs(weight))


def weights(seed: int) -> Weights:
    random = np.random.default_rng(seed)
    start = learn.initial(np.zeros(COUNT, np.float32), np.ones(COUNT, np.float32), seed)
    arrays = {name: random.normal(0.0, 0.3, array.shape).astype(np.float32) for name, array in start.arrays().items()}
    return replace(start, **{**arrays, "deviation": np.abs(arrays["deviation"]) + np.float32(0.5)})


def test_gradients_are_those_of_differences() -> None:
    # float64 throughout, so that a difference of 1e-6 says something
    batch = Examples(*(getattr(some(0), name).astype(np.float64) for name in ("inputs", "median", "upper", "weight")))
    start = weights(1)
    start = replace(start, **{name: array.astype(np.float64) for name, array in start.arrays().items()})
    _, found = gradients(start, batch)
    assert set(found) == {"hidden", "bias", "out", "line", "shift"}
    random = np.random.default_rng(2)
    for name, slope in found.items():
        for _ in range(12):
            place = tuple(int(random.integers(0, size)) for size in slope.shape)
            ends = []
            for sign in (1.0, -1.0):
                array = getattr(start, name).copy()
                array[place] += sign * 1e-6
                ends.append(gradients(replace(start, **{name: array}), batch)[0])
            assert slope[place] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=2e-5), name


def test_the_loss_of_a_network_without_residuals_is_the_naive_rule_s() -> None:
    series = wave(3)
    batch = examples([series], level=1.0)
    windows = np.lib.stride_tricks.sliding_window_view(series, HISTORY)[: len(series) - HISTORY - 14]
    median, upper = naive(windows, 0.9)
    after = np.stack([series[HISTORY - 1 + step :][: len(windows)] for step in (1, 5, 15)], axis=1)
    off = after - upper[:, None]
    lost = np.abs(after - median[:, None]) + learn.LEAN * np.maximum(learn.UPPER * off, (learn.UPPER - 1.0) * off)
    assert losses(np.zeros((len(batch), 6), np.float32), batch)[0] == pytest.approx(lost.sum() / len(batch), rel=1e-4)


def test_training_lowers_the_loss_and_is_the_same_for_a_seed() -> None:
    groups = {"waves": examples([wave(seed) for seed in range(4)])}
    one, two = (train(groups, {"waves": 1.0}, seed=5, members=2, steps=150) for _ in range(2))
    other = train(groups, {"waves": 1.0}, seed=6, members=2, steps=150)
    assert pack(one) == pack(two)
    assert pack(one) != pack(other)
    unseen = examples([wave(100)])
    nothing = np.zeros((len(unseen), 6), np.float32)
    assert losses(forward(one, unseen.inputs), unseen)[0] < 0.8 * losses(nothing, unseen)[0]


def test_a_group_without_a_share_teaches_nothing() -> None:
    waves, noise = examples([wave(1)]), some(2, 500)
    alone = train({"waves": waves}, {"waves": 1.0}, members=1, steps=5)
    beside = train({"waves": waves, "noise": noise}, {"waves": 1.0}, members=1, steps=5)
    assert pack(alone) == pack(beside)
    with pytest.raises(Invalid) as caught:
        train({"waves": examples([])}, {"waves": 1.0})
    assert caught.value.hint


def test_poisoned_series_teach_nothing_wrong() -> None:
    good = wave(7)
    bad = good.copy()
    bad[100:110], bad[200], bad[300:420] = np.nan, np.inf, -7.0
    for series in (np.full(200, np.nan), np.zeros(200), np.full(200, 4.0), good[:50]):
        assert len(examples([series])) == 0
    batch = examples([bad])
    assert 0 < len(batch) < len(examples([good]))
    assert np.isfinite(batch.inputs).all()
    learned = train({"bad": batch}, {"bad": 1.0}, members=1, steps=60)
    assert all(np.isfinite(array).all() for array in learned.arrays().values())


def test_the_file_gives_what_numpy_gives_and_stays_small() -> None:
    start = joined([weights(1), replace(weights(2), mean=weights(1).mean, deviation=weights(1).deviation)])
    data = pack(start)
    assert len(data) < BYTES_MAX
    inputs = some(8).inputs * np.float32(10.0)
    assert np.allclose(Network(data)(inputs).reshape(len(inputs), -1), forward(start, inputs), atol=1e-4)
    assert pack(unpack(data)) == data


def test_joined_is_the_mean() -> None:
    members = [replace(weights(seed), mean=weights(0).mean, deviation=weights(0).deviation) for seed in range(3)]
    inputs = some(9).inputs
    mean = np.mean([forward(member, inputs) for member in members], axis=0)
    assert np.allclose(forward(joined(members), inputs), mean, atol=1e-4)


@pytest.mark.parametrize("data", [b"", b"nothing", shipped()[:500]])
def test_other_bytes_are_no_network(data: bytes) -> None:
    for use in (unpack, Network):
        with pytest.raises(Corrupt) as caught:
            use(data)
        assert caught.value.hint


def test_adapting_helps_where_the_cell_is_unlike_what_was_learned_from() -> None:
    cell = [wave(seed, 1200) for seed in range(6)]
    found = adapt(pack(learn.initial(np.zeros(COUNT, np.float32), np.ones(COUNT, np.float32), 0)), cell)
    assert found.used
    assert found.after < found.before == pytest.approx(1.0, abs=1e-5)
    later = examples([wave(50, 1200)])
    lost = [losses(forward(unpack(model), later.inputs), later)[0] for model in (found.model, shipped())]
    assert lost[0] < losses(np.zeros((len(later), 6), np.float32), later)[0]


def test_adapting_that_does_not_help_is_not_used() -> None:
    random = np.random.default_rng(0)
    found = adapt(shipped(), [random.gamma(2.0, 10.0, 900) for _ in range(8)])
    assert not found.used
    assert found.model == shipped()
    for series in ([], [wave(1, 100)], [np.full(900, np.nan)]):
        assert not adapt(shipped(), series).used


def test_features_see_no_unit_and_no_flat_window() -> None:
    windows = np.stack([wave(seed, HISTORY) for seed in range(5)])
    assert np.allclose(features(windows).values, features(windows * 1e5).values, atol=1e-4)
    flat = features(np.full((2, HISTORY), 3.0))
    assert (flat.spread == 0.0).all()
    assert (features(windows[:, :20]).spread == 0.0).all()
