"""A recommender of items for people, learnt from who rated what: EASE^R, or implicit ALS for large catalogues.

Owns the model: its interactions, fit, predictions and saved state. The arithmetic lives in `ease` and `als`, the
exported graph in `graph`. Every rated item counts as chosen; ratings are kept for `history` and for measuring.

Order and ties: items are ranked by score, equal scores by the item's position in the sorted catalogue (the lower
id first). Scores are exact in single precision (see `grid`), so numpy and the exported graph give equal answers.
"""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lepton_ai.errors import Invalid
from lepton_ai.evaluation import Ranked, Triples, count, ids, ndcg_at_k, triples
from lepton_ai.models.als import als
from lepton_ai.models.ease import ease
from lepton_ai.models.model import Model
from lepton_ai.models.split import split

EASE_ITEMS_MAX = 20_000
"""up to so many items the method "auto" is EASE^R (4 bytes × items²: 1.6 GB here), above it is ALS"""
SCORE_CELLS_MAX = 16 << 20
"""users × items scored at once by `predict`: bounds its memory (64 MiB of scores)"""
GRAPH_K = 10


class Learnt(NamedTuple):
    """What a fit leaves behind; users and items are sorted ids, histories are rows of a CSR matrix."""

    users: NDArray[Any]
    items: NDArray[Any]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    ratings: NDArray[np.float32]
    popularity: NDArray[np.float32]
    """training users of each item ÷ training users: the score given to unknown users"""
    weights: NDArray[np.float32] | None
    """EASE^R (items, items); None with ALS"""
    user_factors: NDArray[np.float32] | None
    item_factors: NDArray[np.float32] | None
    held: Triples


class RecommenderModel(Model):
    """Recommends items to known users; unknown users get what is popular, and `known` says so.

    Args:
        method: "ease", "als" or "auto" (EASE^R up to 20,000 items, ALS above).
        l2: regularisation of EASE^R.
        factors, iterations, unobserved, als_l2: settings of ALS.
    """

    kind: ClassVar[str] = "recommender"

    def __init__(
        self,
        *,
        method: str = "auto",
        l2: float = 300.0,
        factors: int = 64,
        iterations: int = 16,
        unobserved: float = 0.1,
        als_l2: float = 0.02,
    ) -> None:
        super().__init__()
        if method not in ("auto", "ease", "als"):
            raise Invalid(f"method = {method!r} is not known", hint='use method="auto", "ease" or "als"')
        if not all(math.isfinite(value) and value > 0 for value in (l2, unobserved, als_l2)):
            raise Invalid("l2, unobserved and als_l2 must be positive numbers", hint="use the defaults")
        self._settings: dict[str, Any] = {
            "method": method,
            "l2": float(l2),
            "factors": count(factors, "factors", hint="use the defaults"),
            "iterations": count(iterations, "iterations", hint="use the defaults"),
            "unobserved": float(unobserved),
            "als_l2": float(als_l2),
        }
        self._learnt: Learnt | None = None
        self.fit_s: float | None = None
        """seconds of the last fit, reading included; not saved, so that equal models are equal files"""

    def fit(self, data: Any, holdout: float = 0.2, seed: int = 42) -> Self:
        """Learns from (user, item, rating) rows and records the held-out ones.

        `data` is triples, a DataFrame, an Arrow table or a lake table. A pair that occurs twice keeps its last
        row. The split is `split.split`: per user, random, seeded; with holdout=0 all rows are trained on and
        nothing is recorded. Sets `metrics` (recall, precision, NDCG at 10), `protocol` and `fit_s`; a lake
        table is read at its current version, which goes into `lineage`. Raises Invalid for unusable data.
        """
        started_s = time.perf_counter()
        seed = count(seed, "seed", least=0, hint="use seed=42")
        data = data.pin() if hasattr(data, "pin") else data
        rows = _last_of_each(triples(data))
        if len(rows) == 0:
            raise Invalid("no ratings to learn from", hint="pass rows: [(user, item, rating), ...]")
        users, row_user = np.unique(rows.users, return_inverse=True)
        held = split(row_user.astype(np.int64), holdout, seed)
        items, column = np.unique(rows.items, return_inverse=True)
        order = np.flatnonzero(~held)
        order = order[np.lexsort((column[order], row_user[order]))]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row_user[order], minlength=len(users)))]).astype(np.int64)
        indices = column[order].astype(np.int32)
        popularity = (np.bincount(indices, minlength=len(items)) / len(users)).astype(np.float32)
        method = self._method(len(items))
        weights = user_factors = item_factors = None
        if method == "ease":
            weights = ease(indptr, indices, len(items), self._settings["l2"])
        else:
            user_factors, item_factors = als(
                indptr,
                indices,
                len(items),
                factors=self._settings["factors"],
                iterations=self._settings["iterations"],
                unobserved=self._settings["unobserved"],
                l2=self._settings["als_l2"],
                seed=seed,
            )
        recorded = Triples(rows.users[held], rows.items[held], rows.ratings[held])
        self._learnt = Learnt(
            users, items, indptr, indices, rows.ratings[order].astype(np.float32), popularity,
            weights, user_factors, item_factors, recorded,
        )  # fmt: skip
        self.fit_s = time.perf_counter() - started_s
        self._describe(data, method, holdout, seed)
        return self

    def predict(self, users: Any, k: int = 10) -> Ranked:
        """The k best items of each user, best first, without those of the user's history.

        A user with fewer than k items left gets the rest with the score −inf. k is cut to the number of items.
        Memory is bounded whatever the number of users. Raises Invalid before the first fit or for bad ids.
        """
        learnt = self._fitted()
        k = count(k, "k", hint="use k=10")
        wanted = ids(np.atleast_1d(np.asarray(users)), "user")
        index, known = _index(wanted, learnt.users)
        k = min(k, len(learnt.items))
        chunk = max(1, SCORE_CELLS_MAX // len(learnt.items))
        best = np.zeros((len(index), k), dtype=np.int64)
        scores = np.zeros((len(index), k), dtype=np.float32)
        for start in range(0, len(index), chunk):
            part = slice(start, start + chunk)
            block = _scores(learnt, index[part], known[part])
            best[part] = _top(block, k)
            scores[part] = np.take_along_axis(block, best[part], axis=1)
        return Ranked(learnt.items[best], scores, known)

    def history(self, user: int | str, limit: int = 10) -> list[tuple[int | str, float]]:
        """(item, rating) of the user's training rows, best rated first; empty for an unknown user."""
        learnt = self._fitted()
        limit = count(limit, "limit", least=0, hint="use limit=10")
        index, known = _index(ids([user], "user"), learnt.users)
        if not known[0]:
            return []
        part = slice(int(learnt.indptr[index[0]]), int(learnt.indptr[index[0] + 1]))
        order = np.argsort(-learnt.ratings[part], kind="stable")[:limit]
        chosen = learnt.indices[part][order]
        return list(zip(learnt.items[chosen].tolist(), learnt.ratings[part][order].tolist(), strict=True))

    @property
    def users(self) -> NDArray[Any]:
        """The ids of every known user, sorted."""
        return self._fitted().users

    @property
    def items(self) -> NDArray[Any]:
        """The ids of every item of the data, sorted."""
        return self._fitted().items

    @property
    def recorded(self) -> Triples | None:
        learnt = self._learnt
        return learnt.held if learnt is not None and len(learnt.held) else None

    def seen(self, users: Any, items: Any) -> NDArray[np.bool_]:
        learnt = self._fitted()
        row, known = _index(ids(users, "user"), learnt.users)
        column, listed = _index(ids(items, "item"), learnt.items)
        width = len(learnt.items)
        rows = np.repeat(np.arange(len(learnt.users), dtype=np.int64), np.diff(learnt.indptr))
        trained = rows * width + learnt.indices
        result: NDArray[np.bool_] = np.isin(row * width + column, trained) & known & listed
        return result

    @property
    def signature(self) -> dict[str, Any]:
        """`user` takes the caller's own ids: the look-up is part of the graph. `known` false: popular items."""
        learnt = self._fitted()
        k = min(GRAPH_K, len(learnt.items))
        user, item = (("BYTES" if side.dtype.kind == "U" else "INT64") for side in (learnt.users, learnt.items))
        return {
            "inputs": [{"name": "user", "datatype": user, "shape": [-1]}],
            "outputs": [
                {"name": "items", "datatype": item, "shape": [-1, k]},
                {"name": "scores", "datatype": "FP32", "shape": [-1, k]},
                {"name": "known", "datatype": "BOOL", "shape": [-1]},
            ],
        }

    def export(self, k: int = GRAPH_K) -> bytes:
        """One ONNX graph: user ids -> items (n, k), scores (n, k), known (n). See `graph.graph`.

        Raises TooLarge when the weights do not fit into one ONNX file (2 GiB).
        """
        from lepton_ai.models.graph import graph

        return graph(self._fitted(), k)

    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        learnt = self._fitted()
        arrays = {name: array for name, array in learnt._asdict().items() if name != "held" and array is not None}
        held = {"held_users": learnt.held.users, "held_items": learnt.held.items, "held_ratings": learnt.held.ratings}
        return dict(self._settings), {**arrays, **held}

    @classmethod
    def _restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        model = cls(**settings)
        held = Triples(arrays["held_users"], arrays["held_items"], arrays["held_ratings"])
        optional = ("weights", "user_factors", "item_factors")
        fields: dict[str, Any] = {
            name: arrays.get(name) if name in optional else arrays[name] for name in Learnt._fields if name != "held"
        }
        learnt = Learnt(**fields, held=held)
        _check(learnt)
        model._learnt = learnt
        return model

    def _method(self, items: int) -> str:
        method = str(self._settings["method"])
        return method if method != "auto" else "ease" if items <= EASE_ITEMS_MAX else "als"

    def _fitted(self) -> Learnt:
        if self._learnt is None:
            raise Invalid("the model has not been fitted", hint="RecommenderModel().fit(ratings)")
        return self._learnt

    def _describe(self, data: Any, method: str, holdout: float, seed: int) -> None:
        learnt = self._fitted()
        self.protocol = {
            "split": "per user, random",
            "holdout": holdout,
            "seed": seed,
            "ranking": "full catalogue, training items masked",
            "method": method,
            "users": len(learnt.users),
            "items": len(learnt.items),
            "trained_pairs": len(learnt.indices),
            "held_out_pairs": len(learnt.held),
        }
        version = getattr(data, "lineage", None)
        self.lineage = {"table": version} if isinstance(version, str) else {}
        self.metrics = {}
        if self.recorded is not None:
            measured = self.evaluate(k=10)
            self.metrics = {
                "recall_at_10": round(measured.recall, 6),
                "precision_at_10": round(measured.precision, 6),
                "ndcg_at_10": round(ndcg_at_k(self, k=10), 6),
            }


def _last_of_each(rows: Triples) -> Triples:
    _, user = np.unique(rows.users, return_inverse=True)
    items, item = np.unique(rows.items, return_inverse=True)
    key = user.astype(np.int64) * max(1, len(items)) + item
    _, from_end = np.unique(key[::-1], return_index=True)
    keep = np.sort(len(key) - 1 - from_end)
    return rows if len(keep) == len(key) else Triples(rows.users[keep], rows.items[keep], rows.ratings[keep])


def _index(wanted: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(position of each id in the sorted labels, whether it is there). Numbers match their text and the reverse."""
    if wanted.dtype.kind != labels.dtype.kind:
        if labels.dtype.kind == "U":
            wanted = wanted.astype(np.str_)
        else:
            # Only the canonical spelling is the same id: "07" is not 7, and what is no number is unknown.
            texts = wanted.tolist()
            values = [int(text) if text.lstrip("-").isdecimal() and len(text) < 19 else 0 for text in texts]
            fits = np.array([str(value) == text for value, text in zip(values, texts, strict=True)], dtype=np.bool_)
            numbers = np.array(values, dtype=np.int64)
            index, known = _index(numbers, labels)
            return index, known & fits
    index = np.minimum(np.searchsorted(labels, wanted), max(0, len(labels) - 1)).astype(np.int64)
    return index, np.asarray(labels[index] == wanted, dtype=np.bool_)


def _scores(learnt: Learnt, index: NDArray[np.int64], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scores (users, items), −inf where the item is in the user's history."""
    starts, counts = learnt.indptr[index], np.where(known, learnt.indptr[index + 1] - learnt.indptr[index], 0)
    rows = np.repeat(np.arange(len(index)), counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = learnt.indices[np.repeat(starts, counts) + offsets]
    if learnt.weights is not None:
        history = np.zeros((len(index), len(learnt.items)), dtype=np.float32)
        history[rows, columns] = 1
        scores = history @ learnt.weights
    else:
        assert learnt.user_factors is not None
        assert learnt.item_factors is not None
        scores = learnt.user_factors[index] @ learnt.item_factors.T
    scores[~known] = learnt.popularity
    scores[rows, columns] = -np.inf
    return scores


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Columns of the k best of each row, best first, equal scores by column."""
    width = scores.shape[1]
    if k * 8 >= width:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    # The k-th best value, then everything above it and the leftmost of those equal to it.
    limit = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    result = np.empty((len(scores), k), dtype=np.int64)
    for row in range(len(scores)):
        above = np.flatnonzero(scores[row] > limit[row])
        equal = np.flatnonzero(scores[row] == limit[row])[: k - len(above)]
        chosen = np.sort(np.concatenate([above, equal]))
        result[row] = chosen[np.argsort(-scores[row, chosen], kind="stable")]
    return result


def _check(learnt: Learnt) -> None:
    """ValueError unless the arrays of a file fit together: a file is never trusted to index memory."""
    users, items, pairs = len(learnt.users), len(learnt.items), len(learnt.indices)
    shapes: dict[str, tuple[NDArray[Any], tuple[int, ...], str]] = {
        "indptr": (learnt.indptr, (users + 1,), "i"),
        "indices": (learnt.indices, (pairs,), "i"),
        "ratings": (learnt.ratings, (pairs,), "f"),
        "popularity": (learnt.popularity, (items,), "f"),
    }
    if learnt.weights is not None:
        shapes["weights"] = (learnt.weights, (items, items), "f")
    elif learnt.user_factors is not None and learnt.item_factors is not None:
        factors = learnt.user_factors.shape[-1] if learnt.user_factors.ndim == 2 else 0
        shapes["user_factors"] = (learnt.user_factors, (users, factors), "f")
        shapes["item_factors"] = (learnt.item_factors, (items, factors), "f")
    else:
        raise ValueError("no weights")
    for name, (array, shape, kind) in shapes.items():
        if array.shape != shape or array.dtype.kind != kind:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {shape}")
        if kind == "f" and array.size and not (math.isfinite(array.min()) and math.isfinite(array.max())):
            raise ValueError(f"{name} holds numbers that are not finite")
    for name, labels in (("users", learnt.users), ("items", learnt.items)):
        if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iU" or not (labels[:-1] < labels[1:]).all():
            raise ValueError(f"{name} are not ids in order")
    if learnt.indptr[0] != 0 or learnt.indptr[-1] != pairs or (np.diff(learnt.indptr) < 0).any():
        raise ValueError("indptr is not a row index")
    if pairs and (learnt.indices.min() < 0 or learnt.indices.max() >= items):
        raise ValueError("an item index is out of range")
    held = learnt.held
    if any(array.ndim != 1 for array in (held.users, held.items, held.ratings)) or held.ratings.dtype.kind != "f":
        raise ValueError("the held-out columns are not columns")
    if (held.users.dtype.kind, held.items.dtype.kind) != (learnt.users.dtype.kind, learnt.items.dtype.kind):
        raise ValueError("the held-out ids are of another kind")
    if not len(held.users) == len(held.items) == len(held.ratings):
        raise ValueError("the held-out columns differ in length")
