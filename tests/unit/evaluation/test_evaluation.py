"""recall_p_at_k and ndcg_at_k against answers worked out by hand, and every form of test data."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest

from lepton_ai.errors import Invalid
from lepton_ai.evaluation import Ranked, Triples, ndcg_at_k, recall_p_at_k, triples


class Fixed:
    """A ranker with the lists it was given; items of training are (user, item) pairs."""

    def __init__(self, lists: dict[int, list[int]], recorded: Triples | None = None, trained: set[Any] = frozenset()):
        self.lists, self.recorded, self.trained = lists, recorded, trained

    def predict(self, users: Any, k: int = 10) -> Ranked:
        known = np.array([user in self.lists for user in users.tolist()])
        rows = [(self.lists.get(user, []) + [-1] * k)[:k] for user in users.tolist()]
        items = np.array(rows)
        return Ranked(items, np.where(items >= 0, 1.0, -np.inf).astype(np.float32), known)

    def seen(self, users: Any, items: Any) -> Any:
        return np.array([pair in self.trained for pair in zip(users.tolist(), items.tolist(), strict=True)])


MODEL = Fixed({1: [10, 11, 12], 2: [20, 21, 22]})
TEST = [(1, 10, 5.0), (1, 12, 2.0), (1, 99, 4.0), (2, 77, 3.0)]


def recorded(count: int) -> Fixed:
    held = Triples(np.ones(count, np.int64), np.arange(10, 10 + count), np.full(count, 4.0))
    return Fixed({1: [10, 11]}, held)


def test_recall_and_precision_by_hand() -> None:
    found = recall_p_at_k(MODEL, TEST, k=2)
    recall, precision = found
    assert recall == pytest.approx((1 / 3 + 0) / 2)
    assert precision == pytest.approx((1 / 2 + 0) / 2)
    assert (found.k, found.users, found.pairs, found.skipped) == (2, 2, 4, 0)


def test_ndcg_by_hand() -> None:
    dcg = 1 / math.log2(2) + 1 / math.log2(4)
    ideal = sum(1 / math.log2(rank + 1) for rank in (1, 2, 3))
    assert ndcg_at_k(MODEL, TEST, k=3) == pytest.approx((dcg / ideal + 0) / 2)


def test_relevance_is_a_lowest_rating_and_is_said() -> None:
    found = recall_p_at_k(MODEL, TEST, k=3, relevant=4.0)
    assert found.recall == pytest.approx(1 / 2)
    assert found.pairs == 2
    assert "rating ≥ 4" in str(found)


def test_unknown_users_are_skipped_and_counted() -> None:
    found = recall_p_at_k(MODEL, [*TEST, (404, 10, 5.0)], k=3)
    assert (found.users, found.skipped) == (2, 1)
    assert "1 unknown users skipped" in str(found)
    with pytest.raises(Invalid, match="none of the 1 users") as caught:
        recall_p_at_k(MODEL, [(404, 10, 5.0)])
    assert caught.value.hint


def test_a_pair_listed_twice_is_one_pair() -> None:
    assert recall_p_at_k(MODEL, [(1, 10, 5.0), (1, 10, 5.0), (1, 99, 1.0)], k=3).recall == pytest.approx(1 / 2)


def test_pairs_of_training_stay_in_the_denominator_and_are_said() -> None:
    model = Fixed({1: [10]}, trained={(1, 98)})
    found = recall_p_at_k(model, [(1, 10, 5.0), (1, 98, 5.0)], k=1)
    assert found.recall == pytest.approx(1 / 2)
    assert found.trained == 1
    assert "1 pairs were in training" in str(found)


def test_a_bare_list_of_the_recorded_length_is_their_ratings_in_order() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recall_p_at_k(recorded(4), [5.0, 1.0, 1.0, 5.0], k=2, relevant=4.0)
    # Only items 10 and 13 are rated high enough; 10 is hit.
    assert (found.pairs, found.recall) == (2, pytest.approx(1 / 2))
    assert "ratings as passed" in found.basis


@pytest.mark.parametrize("bare", [[3.5] * 7, np.full(7, 3.5), []])
def test_a_bare_list_of_another_length_warns_and_uses_the_recorded_pairs(bare: Any) -> None:
    with pytest.warns(UserWarning, match="hint: recall_p_at_k\\(model, test_data\\)") as caught:
        found = recall_p_at_k(recorded(4), bare, k=2)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (found.pairs, found.recall) == (4, pytest.approx(2 / 4))


def test_a_bare_list_needs_recorded_pairs() -> None:
    with pytest.raises(Invalid, match="recorded no held-out pairs") as caught:
        recall_p_at_k(MODEL, [3.5] * 10)
    assert "recall_p_at_k(model, test_data)" in str(caught.value.hint)


def test_every_form_of_rows_gives_the_same() -> None:
    columns = {"rating": [r for _, _, r in TEST], "item": [i for _, i, _ in TEST], "user": [u for u, _, _ in TEST]}
    expected = recall_p_at_k(MODEL, TEST, k=2)

    class Lake:
        def read(self) -> Any:
            return pyarrow.table(columns)

    for form in (
        np.array(TEST),
        pandas.DataFrame(columns),
        pyarrow.table(columns),
        Lake(),
        [list(row) for row in TEST],
    ):
        assert recall_p_at_k(MODEL, form, k=2) == expected
    named = {"user_id": columns["user"], "movie_id": columns["item"], "score": columns["rating"]}
    assert recall_p_at_k(MODEL, pandas.DataFrame(named), k=2) == expected
    with_text = pandas.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "rating": [1, 2]})
    assert triples(with_text).users.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([(1, 2)], "row 1"),
        ([(1, 2, 3), (1, None, 3)], "row 2, column item: None"),
        ([(1, 2, "good")], "row 1, column rating: 'good'"),
        ([(1, 2, float("nan"))], "row 1, column rating"),
        ([(1.5, 2, 3)], "row 1, column user: 1.5"),
        ("text", "is text"),
        (7, "no test or training data"),
        ({"user": [1]}, "row 1"),
    ],
)
def test_bad_rows_are_named(rows: Any, says: str) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        recall_p_at_k(MODEL, rows) if rows != 7 else triples(rows)
    assert caught.value.hint


@pytest.mark.parametrize("k", [0, -1, 2.5, True, "10"])
def test_k_is_a_number_of_items(k: Any) -> None:
    with pytest.raises(Invalid, match="k ="):
        recall_p_at_k(MODEL, TEST, k=k)


def test_the_result_prints_everything() -> None:
    text = str(recall_p_at_k(MODEL, TEST, k=2))
    for part in (
        "recall@2",
        "precision@2",
        "k=2",
        "users=2",
        "pairs=4",
        "relevant: every pair",
        "basis: the pairs passed",
    ):
        assert part in text


@pytest.mark.parametrize(
    "users",
    [
        np.array([1, 2**64 - 1], dtype=np.uint64),
        np.array([1, 2**64 - 1], dtype=object),
        np.array(["a", ""]),
        np.array(["a", ""], dtype=object),
    ],
)
def test_what_would_silently_become_another_id_is_refused(users: Any) -> None:
    with pytest.raises(Invalid, match="column user") as caught:
        triples(pandas.DataFrame({"user": users, "item": [1, 2], "rating": [1.0, 2.0]}))
    assert caught.value.hint
