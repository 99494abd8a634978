"""How the residual network learns: examples of any series, pinball losses, Adam; in numpy, gradients by hand.

Owns training and adapting; it reads and writes no file (bench/train.py does). Seeded: the same arrays, seed and machine
(one thread) give the same weights to the bit.

An example is a window of HISTORY samples and what came after it. Its loss is the pinball loss of the median (half the
absolute error, so that medians are learned) and LEAN times that of the upper quantile, divided by the level of its
series and by what the naive rule loses on its data set: every data set counts alike, and within it errors count as in
the WAPE. Pinball: Koenker and Bassett, Regression Quantiles, 1978. Adam: Kingma and Ba, 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lepton_ai.errors import Invalid
from lepton_ai.scheduler.features import COUNT, features
from lepton_ai.scheduler.naive import HISTORY
from lepton_ai.scheduler.network import HORIZONS, Weights, forward, joined, normal, pack, unpack

UNITS = 32
MEMBERS = 5
STEPS = 8000
BATCH = 1024
RATE = 1e-3
DECAY = 1e-4
LEAN = 3.0
UPPER = 0.905
"""The quantile that the upper output learns, to be used as that of 0.9: of series it never saw it covers less."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Examples:
    """`inputs`: (n, features). `median`, `upper`: (n, horizons), what came, as a distance from the naive figure in
    units of the spread; NaN where it was not measured. `weight`: (n,), the spread as a share of the series' level."""

    inputs: Array
    median: Array
    upper: Array
    weight: Array

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, rows: NDArray[np.int64] | slice) -> Examples:
        return Examples(self.inputs[rows], self.median[rows], self.upper[rows], self.weight[rows])


def examples(
    series: Sequence[NDArray[np.float64]],
    *,
    horizons: Sequence[int] = HORIZONS,
    every: int = 1,
    level: float | None = None,
) -> Examples:
    """Every `every`-th window of each series (samples,), in the order given, and what came after.

    Args:
        level: what errors are divided by; None: each series' own mean. Windows that are flat, or of which too little
            is known, teach nothing and are left out, as are series shorter than a window and the largest horizon.
    """
    windows, afters, scales = [], [], []
    for values in series:
        count = len(values) - HISTORY - max(horizons) + 1
        whole = np.where(np.isfinite(values) & (values >= 0.0), values, np.nan)
        if count < 1 or not np.nansum(whole) > 0.0:
            continue
        windows.append(sliding_window_view(whole, HISTORY)[:count:every])
        afters.append(np.stack([whole[HISTORY - 1 + step :][:count:every] for step in horizons], axis=1))
        scales.append(np.full(len(windows[-1]), float(np.nanmean(whole)) if level is None else level))
    width = len(horizons)
    if not windows:
        return Examples(*(np.zeros(shape, np.float32) for shape in ((0, COUNT), (0, width), (0, width), (0,))))
    seen = features(np.concatenate(windows))
    after = np.concatenate(afters)
    some = (seen.spread > 0.0) & np.isfinite(after).any(axis=1)
    unit = seen.spread[some, None]
    return Examples(
        seen.values[some],
        ((after[some] - seen.median[some, None]) / unit).astype(np.float32),
        ((after[some] - seen.upper[some, None]) / unit).astype(np.float32),
        (unit[:, 0] / np.concatenate(scales)[some]).astype(np.float32),
    )


def initial(mean: Array, deviation: Array, seed: int, horizons: Sequence[int] = HORIZONS) -> Weights:
    """A network that answers nothing but zeros: the naive rule."""
    random = np.random.default_rng(seed)
    outputs = 2 * len(horizons)
    return Weights(
        mean=mean,
        deviation=deviation,
        hidden=(random.standard_normal((COUNT, UNITS)) * np.sqrt(2.0 / COUNT)).astype(np.float32),
        bias=np.zeros(UNITS, np.float32),
        out=np.zeros((UNITS, outputs), np.float32),
        line=np.zeros((COUNT, outputs), np.float32),
        shift=np.zeros(outputs, np.float32),
        horizons=tuple(horizons),
    )


def losses(residuals: Array, batch: Examples) -> tuple[float, Array]:
    """The mean loss of a batch, and its gradient by the residuals (n, 2 * horizons)."""
    width = batch.median.shape[1]
    off_median = batch.median - residuals[:, :width]
    off_upper = batch.upper - residuals[:, width:]
    weight = batch.weight[:, None]
    known = np.isfinite(batch.median)
    loss = np.abs(off_median) + LEAN * np.maximum(UPPER * off_upper, (UPPER - 1.0) * off_upper)
    slopes = (-np.sign(off_median), -LEAN * np.where(off_upper > 0.0, UPPER, UPPER - 1.0))
    slope = np.concatenate([np.where(known, part * weight, 0.0) for part in slopes], axis=1) / len(batch)
    return float(np.where(known, loss * weight, 0.0).sum() / len(batch)), slope.astype(np.float32)


def gradients(weights: Weights, batch: Examples) -> tuple[float, dict[str, Array]]:
    """The mean loss of a batch, and its gradient by each array that learns."""
    seen = normal(weights, batch.inputs)
    units = np.maximum(seen @ weights.hidden + weights.bias, np.float32(0.0))
    loss, slope = losses(units @ weights.out + seen @ weights.line + weights.shift, batch)
    back = (slope @ weights.out.T) * (units > 0.0)
    found = {
        "hidden": seen.T @ back,
        "bias": back.sum(axis=0),
        "out": units.T @ slope,
        "line": seen.T @ slope,
        "shift": slope.sum(axis=0),
    }
    return loss, found


def train(
    groups: Mapping[str, Examples],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    members: int = MEMBERS,
    steps: int = STEPS,
) -> Weights:
    """A network for all `groups`, of which each step draws in proportion to `shares`: the mean of `members` networks.

    Raises Invalid when no group has an example.
    """
    held = {name: group for name, group in groups.items() if len(group) and shares.get(name, 0.0) > 0.0}
    if not held:
        raise Invalid("nothing to learn from", hint=f"give series of more than {HISTORY + max(HORIZONS)} samples")
    total = sum(shares[name] for name in held)
    counts = {name: max(1, round(BATCH * shares[name] / total)) for name in held}
    sample = np.concatenate([group.inputs[:: max(1, len(group) // 5000)] for group in held.values()])
    mean, deviation = sample.mean(axis=0), np.maximum(sample.std(axis=0), np.float32(1e-3))
    scaled = {name: replace(group, weight=_fair(group)) for name, group in held.items()}
    starts = [initial(mean, deviation, seed * MEMBERS + member) for member in range(members)]
    return joined([_descend(start, scaled, counts, steps, seed * MEMBERS + at) for at, start in enumerate(starts)])


def _fair(group: Examples) -> Array:
    """Weights by which the naive rule loses 1 on average: its residuals are 0."""
    loss, _ = losses(np.zeros((len(group), 2 * group.median.shape[1]), np.float32), group)
    return group.weight / np.float32(max(loss, 1e-9))


def _descend(
    weights: Weights, groups: Mapping[str, Examples], counts: Mapping[str, int], steps: int, seed: int
) -> Weights:
    """Adam with a warm start and a cosine's end; weights of layers decay a little."""
    random = np.random.default_rng((seed, 1))
    adam = Adam()
    for step in range(1, steps + 1):
        parts = [group.part(random.integers(0, len(group), counts[name])) for name, group in groups.items()]
        _, slopes = gradients(weights, together(parts))
        rate = RATE * min(1.0, step / 200) * 0.5 * (1.0 + np.cos(np.pi * step / steps))
        weights = adam.step(weights, slopes, rate)
    return weights


def together(parts: Sequence[Examples]) -> Examples:
    names = ("inputs", "median", "upper", "weight")
    return Examples(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class Adam:
    """The state of Adam for the arrays it is given slopes of."""

    def __init__(self) -> None:
        self._first: dict[str, Array] = {}
        self._second: dict[str, Array] = {}
        self._steps = 0

    def step(self, weights: Weights, slopes: Mapping[str, Array], rate: float) -> Weights:
        """The weights after one step against `slopes`."""
        self._steps += 1
        new = {}
        for name, slope in slopes.items():
            first = self._first.get(name, np.zeros_like(slope))
            second = self._second.get(name, np.zeros_like(slope))
            first = self._first[name] = first + np.float32(0.1) * (slope - first)
            second = self._second[name] = second + np.float32(0.001) * (slope * slope - second)
            way = first / np.float32(1 - 0.9**self._steps)
            way = way / (np.sqrt(second / np.float32(1 - 0.999**self._steps)) + np.float32(1e-8))
            old = getattr(weights, name)
            decay = np.float32(DECAY) * old if old.ndim == 2 else np.float32(0.0)
            new[name] = old - np.float32(rate) * (way + decay)
        return replace(weights, **new)


ADAPT_MOST = 4000
"""Windows that adapting looks at, about: evenly over all series."""
ADAPT_LEAST = 200
ADAPT_TAUGHT = 0.7
ADAPT_STEPS = 120
ADAPT_RATE = 3e-3
ADAPT_GAIN = 0.01
ADAPT_SHARE = np.float32(0.5)
"""How far to go from the old weights to those that fit the cell's recent windows best: what was is not what comes."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """`model`: the network to use from now on. `used`: whether it is a new one. `before`, `after`: the mean loss of the
    old and the new one on the newest windows, which taught the new one nothing; 1 is the naive rule, NaN: too few."""

    model: bytes
    used: bool
    before: float
    after: float


def adapt(model: bytes, series: Sequence[NDArray[np.float64]]) -> Adapted:
    """Fit the output layer to a cell's own recent series (each (samples,), newest last); well below a second.

    The older 70 % of every series' windows teach, the newest 30 % judge; windows that reach into both are left out.
    The new network is used only if it is 1 % better on the earlier and on the later half of what judges. Raises
    Corrupt for a model of another form.
    """
    old = unpack(model)
    every = max(1, -(-sum(len(values) for values in series) // ADAPT_MOST))
    cuts = [int(len(values) * ADAPT_TAUGHT) for values in series]
    half = [at + (len(values) - at) // 2 for values, at in zip(series, cuts, strict=True)]
    spans = ([0] * len(cuts), cuts), (cuts, half), (half, [len(values) for values in series])
    taught, *judges = (
        examples([values[a:b] for values, a, b in zip(series, *span, strict=True)], horizons=old.horizons, every=every)
        for span in spans
    )
    if len(taught) < ADAPT_LEAST or min(len(judge) for judge in judges) < ADAPT_LEAST // 4:
        return Adapted(model, False, float("nan"), float("nan"))
    new = _refit(old, replace(taught, weight=_fair(taught)))
    scores = []
    for judge in judges:
        fair = replace(judge, weight=_fair(judge))
        scores.append([losses(forward(weights, judge.inputs), fair)[0] for weights in (old, new)])
    before, after = np.mean(scores, axis=0)
    used = all(late < early * (1.0 - ADAPT_GAIN) for early, late in scores)
    return Adapted(pack(new) if used else model, used, float(before), float(after))


def _refit(old: Weights, taught: Examples) -> Weights:
    """Half way from the old output layer to the one that full-batch Adam finds; the hidden layer stays."""
    seen = normal(old, taught.inputs)
    units = np.maximum(seen @ old.hidden + old.bias, np.float32(0.0))
    new, adam = old, Adam()
    for step in range(1, ADAPT_STEPS + 1):
        _, slope = losses(units @ new.out + seen @ new.line + new.shift, taught)
        slopes = {"out": units.T @ slope, "line": seen.T @ slope, "shift": slope.sum(axis=0)}
        new = adam.step(new, slopes, ADAPT_RATE * 0.5 * (1.0 + np.cos(np.pi * step / ADAPT_STEPS)))
    between = {name: (1 - ADAPT_SHARE) * getattr(old, name) + ADAPT_SHARE * getattr(new, name) for name in slopes}
    return replace(old, **between)
