"""Seeded series of the kinds that machines and services show, for training and for measuring where no trace is given.

Not a measurement itself. Each kind is a rate over time (steady, drifting, seasonal, regimes, bursts, a walk), at a mean
drawn evenly over its logarithm, seen through counting noise, proportional noise or clumped counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Random = np.random.Generator

SAMPLES = 400
MEAN_LEAST, MEAN_MOST = 0.5, 200.0


def synthetic(seed: int, count: int, samples: int = SAMPLES) -> dict[str, list[Array]]:
    """`count` series of each kind, by its name."""
    found = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        random = np.random.default_rng((seed, number))
        found[name] = [_seen(random, kind(random, samples)) for _ in range(count)]
    return found


def _steady(random: Random, samples: int) -> Array:
    return np.ones(samples)


def _drifting(random: Random, samples: int) -> Array:
    keep, push = random.uniform(0.7, 0.99), random.normal(0.0, random.uniform(0.05, 0.5), samples)
    return np.exp(np.minimum(_decaying(push, keep), 5.0))


def _seasonal(random: Random, samples: int) -> Array:
    period, phase = random.uniform(24.0, 600.0), random.random()
    return 1.0 + random.uniform(0.2, 1.0) * np.sin(2.0 * np.pi * (np.arange(samples) / period + phase))


def _regimes(random: Random, samples: int) -> Array:
    which = np.cumsum(random.random(samples) < 1.0 / random.uniform(10.0, 120.0))
    return np.exp(random.normal(0.0, random.uniform(0.3, 1.5), int(which[-1]) + 1))[which]


def _bursts(random: Random, samples: int) -> Array:
    hits = (random.random(samples) < random.uniform(0.01, 0.1)) * random.exponential(random.uniform(2.0, 10.0), samples)
    return 1.0 + _decaying(hits, random.uniform(0.2, 0.9))


def _walk(random: Random, samples: int) -> Array:
    return np.exp(np.cumsum(random.normal(0.0, random.uniform(0.01, 0.1), samples)))


KINDS: dict[str, Callable[[Random, int], Array]] = {
    "steady": _steady,
    "drifting": _drifting,
    "seasonal": _seasonal,
    "regimes": _regimes,
    "bursts": _bursts,
    "walk": _walk,
}


def _decaying(pushes: Array, keep: float) -> Array:
    found, value = np.empty_like(pushes), 0.0
    for at, push in enumerate(pushes):
        value = keep * value + push
        found[at] = value
    return found


def _seen(random: Random, rate: Array) -> Array:
    mean = np.exp(random.uniform(np.log(MEAN_LEAST), np.log(MEAN_MOST)))
    rate = np.clip(rate / rate.mean() * mean, 1e-6, 1e5)
    noise = int(random.integers(0, 3))
    if noise == 0:
        return random.poisson(rate).astype(np.float64)
    if noise == 1:
        width = random.uniform(0.05, 0.6)
        return rate * np.exp(random.normal(0.0, width, len(rate)) - width * width / 2.0)
    shape = random.uniform(0.5, 4.0)
    return random.poisson(rate * random.gamma(shape, 1.0 / shape, len(rate))).astype(np.float64)
