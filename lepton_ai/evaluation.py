"""How good a recommender is on pairs that it was not fitted on: recall and precision at k, NDCG at k.

Owns the measures and the reading of test data (`triples`); numpy only. It knows a model by what it can do
(`Ranker`), never by its class. Protocol: each user's whole catalogue is ranked, items of training are masked.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lepton_ai.errors import Invalid

USER_NAMES = ("user", "user_id", "userid", "uid", "用户", "用户id")
ITEM_NAMES = ("item", "item_id", "itemid", "movie", "movie_id", "movieid", "iid", "物品", "物品id", "电影")
RATING_NAMES = ("rating", "score", "评分", "打分")
_INT64_MAX = 2**63 - 1
_HINT_IDS = "ids are whole numbers or text"
_HINT_ROWS = "pass rows: [(user, item, rating), ...]"


class Ranked(NamedTuple):
    """The k best items of each user, best first: arrays (users, k), and whether each user was known."""

    items: NDArray[Any]
    scores: NDArray[np.float32]
    known: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Triples:
    """(user, item, rating) as three columns of one length; ids are int64 or text, ratings float64."""

    users: NDArray[Any]
    items: NDArray[Any]
    ratings: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ratings)


class Ranker(Protocol):
    """What a model must offer to be measured."""

    @property
    def recorded(self) -> Triples | None:
        """The pairs held out when the model was fitted, in the order of the data; None if there are none."""

    def predict(self, users: Any, k: int = 10) -> Ranked:
        """The k best items of each user among those that the user has not rated in training."""

    def seen(self, users: Any, items: Any) -> NDArray[np.bool_]:
        """For each pair, whether it was part of training."""


class _Pair(NamedTuple):
    recall: float
    precision: float


class RecallPrecision(_Pair):
    """A pair (recall, precision) that also says what it was measured on; printing it shows all of that."""

    k: int
    users: int
    """users that were measured"""
    pairs: int
    """relevant pairs of those users"""
    skipped: int
    """users that the model does not know: not measured"""
    trained: int
    """pairs that were part of training: masked, so that they can never be hit; they stay in the denominator"""
    relevance: str
    basis: str

    @classmethod
    def of(cls, recall: float, precision: float, **facts: Any) -> RecallPrecision:
        self = cls(recall, precision)
        self.__dict__.update(facts)
        return self

    def __str__(self) -> str:
        more = f", {self.skipped} unknown users skipped" if self.skipped else ""
        more += f", {self.trained} pairs were in training and cannot be hit" if self.trained else ""
        return (
            f"recall@{self.k} = {self.recall:.4f}, precision@{self.k} = {self.precision:.4f} "
            f"(k={self.k}, users={self.users}, pairs={self.pairs}{more}; relevant: {self.relevance}; "
            f"basis: {self.basis})"
        )

    __repr__ = __str__


def recall_p_at_k(model: Ranker, test: Any = None, k: int = 10, relevant: float | None = None) -> RecallPrecision:
    """Recall and precision of the model's k best items for each user of `test`.

    - recall@k: mean over users of hits ÷ (all relevant test pairs of that user);
    - precision@k: mean over users of hits ÷ k (k also when a user has fewer relevant pairs).

    Args:
        model: anything that is a `Ranker`, for example a `RecommenderModel`.
        test: triples (user, item, rating), a DataFrame, an Arrow table or a lake table; None: the pairs that the
            model recorded when it was fitted. A bare list of ratings names no user and no item: with exactly as
            many entries as recorded pairs it is taken as their ratings in that order; otherwise the recorded
            pairs are used as they are, and a warning says so.
        k: how many items are looked at, at least 1.
        relevant: a pair is relevant when its rating is at least this; None: every pair is.

    Users that the model does not know are skipped and counted. Raises Invalid for an unusable test or k, a model
    without recorded pairs where they are needed, or when nothing is left to measure.
    """
    hits, sizes, facts = _measure(model, test, k, relevant)
    counts = hits.sum(axis=1)
    return RecallPrecision.of(float(np.mean(counts / sizes)), float(np.mean(counts / k)), **facts)


def ndcg_at_k(model: Ranker, test: Any = None, k: int = 10, relevant: float | None = None) -> float:
    """Mean over users of DCG@k ÷ ideal DCG@k with gains of 0 or 1 and discount 1 ÷ log2(rank + 1).

    The ideal places min(k, relevant pairs of the user) hits first (Järvelin and Kekäläinen, 2002). Arguments and
    errors as in `recall_p_at_k`.
    """
    hits, sizes, _ = _measure(model, test, k, relevant)
    discount = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    return float(np.mean((hits * discount).sum(axis=1) / ideal[np.minimum(sizes, k)]))


def _measure(
    model: Ranker, test: Any, k: int, relevant: float | None
) -> tuple[NDArray[np.bool_], NDArray[np.int64], dict[str, Any]]:
    """(hits (users, k), relevant pairs of each user, facts) of the users that can be measured."""
    k = count(k, "k", hint="use k=10")
    data, basis = _resolve(model, test)
    if relevant is not None:
        keep = data.ratings >= relevant
        data = Triples(data.users[keep], data.items[keep], data.ratings[keep])
    if not len(data):
        raise Invalid("no relevant pair to measure", hint="pass more test rows, or a lower `relevant`")
    users, row = np.unique(data.users, return_inverse=True)
    best = model.predict(users, k=k)
    trained = model.seen(data.users, data.items)
    # A pair listed twice is one pair: a model can recommend an item to a person only once.
    items, column = np.unique(_joined(data.items, best.items.ravel()), return_inverse=True)
    pair_keys, first = np.unique(row.astype(np.int64) * len(items) + column[: len(data)], return_index=True)
    sizes = np.bincount(row[first], minlength=len(users))
    best_keys = np.arange(len(users))[:, None] * len(items) + column[len(data) :].reshape(best.items.shape)
    hits = np.isin(best_keys, pair_keys) & np.isfinite(best.scores)
    known = best.known
    if not known.any():
        raise Invalid(
            f"none of the {len(users)} users in the test is known to the model",
            hint="test with users that have ratings in the training data",
        )
    facts = {
        "k": k,
        "users": int(known.sum()),
        "pairs": int(sizes[known].sum()),
        "skipped": int((~known).sum()),
        "trained": int((trained & known[row])[first].sum()),
        "relevance": "every pair" if relevant is None else f"rating ≥ {relevant:g}",
        "basis": basis,
    }
    return hits[known], sizes[known], facts


def _joined(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Both in one array; where one side is text and the other numbers, 7 and "7" are the same id."""
    if first.dtype.kind != second.dtype.kind:
        first, second = first.astype(np.str_), second.astype(np.str_)
    return np.concatenate([first, second])


def _resolve(model: Ranker, test: Any) -> tuple[Triples, str]:
    ratings = None if test is None else _bare(test)
    if test is not None and ratings is None:
        return triples(test), "the pairs passed"
    recorded = model.recorded
    if recorded is None or not len(recorded):
        raise Invalid(
            "the model recorded no held-out pairs, and the test names no users and items",
            hint="pass rows: recall_p_at_k(model, test_data), or fit with holdout=0.2",
        )
    if ratings is None:
        return recorded, "the pairs held out when the model was fitted"
    if len(ratings) == len(recorded):
        return Triples(recorded.users, recorded.items, ratings), "the pairs held out by the model, ratings as passed"
    warnings.warn(
        f"{len(ratings)} bare ratings name no user and no item, and the model held out {len(recorded)} pairs: "
        "those pairs are used as they are.\nhint: recall_p_at_k(model, test_data)",
        UserWarning,
        stacklevel=4,
    )
    return recorded, "the pairs held out when the model was fitted (the bare ratings passed were not used)"


def _bare(test: Any) -> NDArray[np.float64] | None:
    """The test as a list of ratings if it is one: one-dimensional numbers; else None."""
    if hasattr(test, "columns") or hasattr(test, "column_names") or hasattr(test, "read") or isinstance(test, Triples):
        return None
    if isinstance(test, str | bytes):
        raise Invalid("the test is text", hint=_HINT_ROWS)
    values = test if isinstance(test, np.ndarray) else list(test)
    if isinstance(values, np.ndarray) and values.ndim != 1:
        return None
    if not all(isinstance(value, int | float | np.number) for value in values):
        return None
    ratings = np.asarray(values, dtype=np.float64)
    if not np.isfinite(ratings).all():
        raise Invalid("a rating in the test is not a finite number", hint="remove or repair that row")
    return ratings


def triples(data: Any) -> Triples:
    """The (user, item, rating) columns of triples, a DataFrame, an Arrow table or a lake table (`read()`).

    Columns are found by name (user, item, rating and the usual spellings), else the first three are taken. Raises
    Invalid, naming the row and column, for a missing value, a rating that is no finite number, or a short row.
    """
    if isinstance(data, Triples):
        return data
    if hasattr(data, "read") and not hasattr(data, "columns"):
        data = data.read()
    if hasattr(data, "column_names"):
        names = [str(name) for name in data.column_names]
        columns = [data.column(index).to_numpy(zero_copy_only=False) for index in _three(names)]
    elif hasattr(data, "columns"):
        names = list(data.columns)
        columns = [np.asarray(data[names[index]]) for index in _three([str(name) for name in names])]
    elif isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] >= 3:
        columns = [data[:, 0], data[:, 1], data[:, 2]]
    else:
        columns = _rows(data)
    users, items = ids(columns[0], "user"), ids(columns[1], "item")
    try:
        ratings = np.asarray(columns[2], dtype=np.float64)
    except (TypeError, ValueError):
        ratings = np.array([_number(value) for value in columns[2]])
    bad = np.flatnonzero(~np.isfinite(ratings))
    if len(bad):
        raise Invalid(
            f"row {bad[0] + 1}, column rating: {columns[2][bad[0]]!r} is not a finite number",
            hint="remove or repair that row",
        )
    return Triples(users, items, ratings)


def ids(values: Any, name: str) -> NDArray[Any]:
    """Ids as int64 or text. Raises Invalid for missing values, fractions and mixtures that are neither."""
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and len(bad := np.flatnonzero(array > _INT64_MAX)):
            raise Invalid(f"row {bad[0] + 1}, column {name}: {array.flat[bad[0]]} is over 2**63 - 1", hint=_HINT_IDS)
        return array.astype(np.int64)
    if array.dtype.kind == "U":
        bad = np.flatnonzero(array == "")
        if len(bad):
            raise Invalid(f"row {bad[0] + 1}, column {name}: '' is not an id", hint=_HINT_IDS)
        return array
    if array.dtype.kind == "f":
        bad = np.flatnonzero(~(np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) < 2**53)))
        if len(bad):
            raise Invalid(f"row {bad[0] + 1}, column {name}: {array[bad[0]]} is not an id", hint=_HINT_IDS)
        return array.astype(np.int64)
    listed = array.tolist()
    for row, value in enumerate(listed):
        if isinstance(value, bool) or not isinstance(value, int | str | np.integer) or value == "":
            raise Invalid(f"row {row + 1}, column {name}: {value!r} is not an id", hint=_HINT_IDS)
    if any(isinstance(value, str) for value in listed):
        return np.array([str(value) for value in listed], dtype=np.str_)
    try:
        return np.array(listed, dtype=np.int64)
    except OverflowError:
        raise Invalid(f"column {name} has an id beyond 64 bits", hint=_HINT_IDS) from None


def count(value: object, name: str, *, least: int = 1, hint: str) -> int:
    """`value` as a whole number of at least `least`. Raises Invalid; fractions, texts and flags are no counts."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise Invalid(f"{name} = {value!r} is not a whole number of at least {least}", hint=hint)
    return int(value)


def _three(names: Sequence[str]) -> tuple[int, int, int]:
    lower = [name.strip().lower().split(":")[0] for name in names]
    found = []
    for wanted in (USER_NAMES, ITEM_NAMES, RATING_NAMES):
        found.append(next((lower.index(name) for name in wanted if name in lower), -1))
    if -1 not in found:
        return found[0], found[1], found[2]
    if len(names) < 3 or any(index != -1 for index in found):
        raise Invalid(f"columns {list(names)} are not user, item, rating", hint="name the columns user, item, rating")
    return 0, 1, 2


def _rows(data: Any) -> list[Any]:
    try:
        rows = list(data)
    except TypeError:
        raise Invalid(f"{type(data).__name__} is no test or training data", hint=_HINT_ROWS) from None
    for number, row in enumerate(rows, 1):
        if isinstance(row, str | bytes) or not hasattr(row, "__len__") or len(row) < 3:
            raise Invalid(f"row {number}: {row!r} is not (user, item, rating)", hint=_HINT_ROWS)
    first, second, third = ([row[index] for row in rows] for index in range(3))
    # numpy would turn [1, "a"] into text silently, and [] into floats: keep the values as they are.
    kept = [np.array(column, dtype=object) if column else np.array([], dtype=np.int64) for column in (first, second)]
    return [*kept, third]


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
