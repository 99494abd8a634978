"""What was seen within a span of time: the largest value, what was counted, and the last samples of many series.

Adding is O(1) amortised, and so is asking: what is kept is bounded by the span, never by how long it runs. Nothing
here reads a clock; the caller passes times.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_ai.errors import Corrupt, Invalid

LATE = 3
"""A sample so many steps behind the newest is a late one; from further behind, the clock was set back."""
FROZEN_LEAST = 24
FROZEN_CHANCE = 1e-6
"""A series is frozen when it stood still at least 24 samples, and so long as chance would not explain once in a
million, given how often it moved before. One that seldom moves is not expected to."""
_MAGIC = b"lepton-ring-1"
_MOST = 65504.0
"""The largest number of 16 bits; NaN is one of them."""


class Window:
    """Maximum over the last `span_ms` milliseconds of values that are added in time order: a monotone queue."""

    def __init__(self, span_ms: int) -> None:
        self.span_ms = span_ms
        self._queue: deque[tuple[int, float]] = deque()

    def add(self, time_ms: int, value: float) -> None:
        """Note `value` at `time_ms`; a time before the last one counts as the last one."""
        if self._queue and time_ms < self._queue[-1][0]:
            time_ms = self._queue[-1][0]
        while self._queue and self._queue[-1][1] <= value:
            self._queue.pop()
        self._queue.append((time_ms, value))

    def max(self, now_ms: int) -> float:
        """The largest value not older than the span, 0.0 when there is none."""
        while self._queue and self._queue[0][0] < now_ms - self.span_ms:
            self._queue.popleft()
        return self._queue[0][1] if self._queue else 0.0


class Counted:
    """How much a counter grew within `span_ms` milliseconds; one that falls (it began anew) grew by nothing."""

    def __init__(self, span_ms: int) -> None:
        self.span_ms = span_ms
        self._last: float | None = None
        self._sum = 0.0
        self._queue: deque[tuple[int, float]] = deque()

    def add(self, time_ms: int, counter: float) -> None:
        """Note what the counter stands at; the first time is where counting begins."""
        grown = 0.0 if self._last is None else max(0.0, counter - self._last)
        self._last = counter
        if grown:
            self._queue.append((time_ms, grown))
            self._sum += grown

    def within(self, now_ms: int) -> float:
        while self._queue and self._queue[0][0] < now_ms - self.span_ms:
            self._sum -= self._queue.popleft()[1]
        return max(0.0, self._sum)


class Ring:
    """The last `length` samples of many series, on a grid of `spacing_ms`, as arrays.

    A series is one field (a resource) of one key (a node). NaN is a gap: nothing was measured then, or what was said
    is no measurement (not finite, negative). Times only place samples on the grid:

    - a sample that comes late fills its own gap and overwrites nothing;
    - a clock that leaps ahead leaves a gap, as a pause does;
    - after a clock that was set back, samples follow on what is there.

    `frozen` tells a source that stands still from one that is quiet. `snapshot` and `restore` carry all of it over a
    restart, rounded to three digits (16-bit floats).
    """

    def __init__(self, fields: Sequence[str], length: int, spacing_ms: int) -> None:
        if length < 2 or spacing_ms < 1 or not fields:
            raise Invalid("a ring needs fields, two samples and a spacing", hint='Ring(("cpu",), 64, 5000)')
        self.fields, self.length, self.spacing_ms = tuple(fields), length, spacing_ms
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._newest: int | None = None
        self._shift = 0
        self._make(0)
        self._grow()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def add(self, time_ms: int, keys: Sequence[str], values: ArrayLike) -> None:
        """Note samples (keys, fields) that were taken at `time_ms`; of two in one step the later one stays."""
        found = np.array(values, dtype=np.float64).reshape(len(keys), len(self.fields))
        found[~np.isfinite(found) | (found < 0.0)] = np.nan
        behind = self._turn(time_ms)
        if behind >= self.length:
            return
        rows = self._at(keys)
        column = (self._newest_step() - behind) % self.length
        if behind:
            there = self._values[rows, :, column]
            self._values[rows, :, column] = np.where(np.isnan(there), found, there)
            return
        known = ~np.isnan(found)
        self._values[rows, :, column] = np.where(known, found, self._values[rows, :, column])
        self._watch(rows, found, known)

    def history(self, keys: Sequence[str], samples: int, now_ms: int | None = None) -> NDArray[np.float64]:
        """(keys, fields, samples), the newest last: up to the newest that was added, or up to `now_ms`."""
        found = np.full((len(keys), len(self.fields), samples), np.nan)
        if self._newest is None or not len(keys):
            return found
        newest = self._newest if now_ms is None else max(self._newest, now_ms // self.spacing_ms + self._shift)
        steps = np.arange(newest - samples + 1, newest + 1)
        there = (steps > self._newest - self.length) & (steps <= self._newest)
        rows = np.array([self._rows.get(key, -1) for key in keys])
        columns = steps[there] % self.length
        found[:, :, there] = self._values[rows[:, None, None], np.arange(len(self.fields))[None, :, None], columns]
        found[rows < 0] = np.nan
        return found

    def last(self, keys: Sequence[str], within: int) -> NDArray[np.float64]:
        """(keys, fields): the newest value of each series that is at most `within` samples old, else NaN."""
        recent = self.history(keys, max(1, within))
        known = ~np.isnan(recent)
        at = recent.shape[2] - 1 - np.argmax(known[:, :, ::-1], axis=2)
        value: NDArray[np.float64] = np.take_along_axis(recent, at[:, :, None], axis=2)[:, :, 0]
        return value

    def frozen(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        """(keys, fields): whether a series that normally moves has stood still, bit for bit, for too long."""
        rows = np.array([self._rows.get(key, -1) for key in keys], dtype=np.int64)
        steps, moved, run = self._steps[rows], self._moved[rows], self._run[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(steps > 0, moved / steps, 0.0)
            needed = np.where(rate > 0, np.log(FROZEN_CHANCE) / np.log1p(-np.minimum(rate, 0.999)), np.inf)
        found: NDArray[np.bool_] = (steps >= FROZEN_LEAST) & (run >= np.maximum(needed, FROZEN_LEAST))
        found[rows < 0] = False
        return found

    def keep(self, keys: Collection[str]) -> None:
        """Let go of every key that is not among `keys`."""
        for key in [key for key in self._rows if key not in keys]:
            row = self._rows.pop(key)
            self._free.append(row)
            self._clear(row)

    def snapshot(self) -> bytes:
        """All of it as bytes: at most two a sample, far fewer where little happens."""
        keys = sorted(self._rows)
        rows = np.array([self._rows[key] for key in keys], dtype=np.int64)
        ordered = self.history(keys, self.length)
        # Bytes of one kind stand together, so that they pack well.
        data = np.minimum(ordered, _MOST).astype("<f2").view(np.uint8).reshape(-1, 2).T.tobytes()
        counts = np.stack([self._steps[rows], self._moved[rows]]).astype("<f4").tobytes()
        head = {"fields": self.fields, "length": self.length, "spacing_ms": self.spacing_ms, "keys": keys}
        body = json.dumps(head).encode() + b"\n" + zlib.compress(data + counts, 1)
        return b"%s %08x\n%s" % (_MAGIC, zlib.crc32(body), body)

    @classmethod
    def restore(cls, data: bytes, newest_ms: int) -> Ring:
        """What `snapshot` gave; `newest_ms` is the time of its newest sample on the caller's clock of today.

        Raises Corrupt when it is not whole.
        """
        try:
            first, body = data.split(b"\n", 1)
            magic, _, check = first.partition(b" ")
            if magic != _MAGIC or int(check, 16) != zlib.crc32(body):
                raise ValueError("its checksum is another")
            head, packed = body.split(b"\n", 1)
            about = json.loads(head)
            keys, fields, length = list(map(str, about["keys"])), list(map(str, about["fields"])), int(about["length"])
            made = cls(fields, length, int(about["spacing_ms"]))
            plain, count = zlib.decompress(packed), len(keys) * len(fields)
            halves = np.frombuffer(plain, np.uint8, 2 * count * length).reshape(2, -1).T.copy()
            values = halves.view("<f2").reshape(len(keys), len(fields), length)
            rates = np.frombuffer(plain, "<f4", 2 * count, offset=2 * count * length)
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise Corrupt(
                f"these are not the samples of a ring: {error}", hint="delete them; they grow again"
            ) from None
        made._newest = newest_ms // made.spacing_ms
        rows = made._at(keys)
        columns = np.arange(made._newest - length + 1, made._newest + 1) % length
        made._values[rows[:, None, None], np.arange(len(fields))[None, :, None], columns] = values
        made._steps[rows], made._moved[rows] = rates.reshape(2, len(keys), len(fields))
        return made

    # -- within

    def _turn(self, time_ms: int) -> int:
        """Make the step of `time_ms` the newest if it is; how many steps it lies behind the newest."""
        step = time_ms // self.spacing_ms + self._shift
        if self._newest is None:
            self._newest = step
        elif step > self._newest:
            for gone in range(max(self._newest + 1, step - self.length + 1), step + 1):
                self._values[:, :, gone % self.length] = np.nan
            self._newest = step
        elif step < self._newest - LATE:  # the clock was set back: this one follows on what is there
            self._shift += self._newest + 1 - step
            return self._turn(time_ms)
        return self._newest - step

    def _newest_step(self) -> int:
        assert self._newest is not None
        return self._newest

    def _watch(self, rows: NDArray[np.int64], found: NDArray[np.float64], known: NDArray[np.bool_]) -> None:
        """Count how long each series has stood still, and how often it moved before."""
        same = known & (found == self._before[rows])
        moved = known & ~same & ~np.isnan(self._before[rows])
        run = self._run[rows]
        length = np.where(moved, run + 1, 0)
        kept = 0.98 ** length.astype(np.float64)  # what was long ago counts less
        self._steps[rows] = self._steps[rows] * kept + length
        self._moved[rows] = self._moved[rows] * kept + moved
        self._run[rows] = np.where(same, run + 1, np.where(known, 0, run))
        self._before[rows] = np.where(known, found, self._before[rows])

    def _at(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """The rows of keys; new ones are given."""
        for key in keys:
            if key not in self._rows:
                if not self._free:
                    self._grow()
                self._rows[key] = self._free.pop()
        return np.array([self._rows[key] for key in keys], dtype=np.int64)

    def _make(self, rows: int) -> None:
        shape = (rows, len(self.fields))
        self._values = np.full((*shape, self.length), np.nan, dtype=np.float32)
        self._before = np.full(shape, np.nan)
        self._run = np.zeros(shape, dtype=np.int64)
        self._steps, self._moved = np.zeros(shape), np.zeros(shape)

    def _grow(self) -> None:
        values, before, counts = self._values, self._before, (self._run, self._steps, self._moved)
        old = len(values)
        self._make(max(16, 2 * old))
        self._free = list(range(len(self._values) - 1, old - 1, -1))
        self._values[:old], self._before[:old] = values, before
        self._run[:old], self._steps[:old], self._moved[:old] = counts

    def _clear(self, row: int) -> None:
        self._values[row], self._before[row] = np.nan, np.nan
        self._run[row], self._steps[row], self._moved[row] = 0, 0.0, 0.0
