"""The recommender on small seeded data: what it learns, what it answers, and that its graph answers the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from lepton_ai.errors import Invalid
from lepton_ai.models import RecommenderModel
from lepton_ai.models.grid import snap
from lepton_ai.models.recommender import _top
from lepton_ai.models.split import split


def rows(users: int = 60, items: int = 40, seed: int = 1, text: bool = False) -> list[tuple[Any, Any, float]]:
    """Two groups of people that like two halves of the catalogue."""
    rng = np.random.default_rng(seed)
    found = []
    for user in range(users):
        likes = rng.permutation(items // 2)[:12] + (user % 2) * (items // 2)
        found += [(user, int(item), float(rng.integers(1, 6))) for item in likes]
    return [(f"u{u}", f"i{i:03}", r) for u, i, r in found] if text else found


def run(model: RecommenderModel, users: Any, k: int = 10) -> list[Any]:
    session = onnxruntime.InferenceSession(model.export(k), providers=["CPUExecutionProvider"])
    feed = np.asarray(users)
    return list(session.run(None, {"user": feed.astype(object) if feed.dtype.kind == "U" else feed}))


@pytest.mark.parametrize("method", ["ease", "als"])
@pytest.mark.parametrize("text", [False, True])
def test_the_graph_answers_as_numpy_does(method: str, text: bool) -> None:
    model = RecommenderModel(method=method, factors=8).fit(rows(text=text))
    users = np.concatenate([model.users, ["nobody"] if text else [10**9, -1]])
    for k in (1, 10, 40):
        ours = model.predict(users, k=k)
        items, scores, known = run(model, users, k)
        assert (items.astype(ours.items.dtype) == ours.items).all()
        assert (scores == ours.scores).all()
        assert (known == ours.known).all()


@pytest.mark.parametrize("method", ["ease", "als"])
def test_an_answer_does_not_depend_on_its_batch(method: str) -> None:
    model = RecommenderModel(method=method, factors=8).fit(rows())
    whole = run(model, model.users)
    for index, user in enumerate(model.users):
        assert (run_one := run(model, [user]))[0].tolist() == whole[0][index : index + 1].tolist()
        assert run_one[1].tolist() == whole[1][index : index + 1].tolist()
        if index == 9:
            break
    assert (run(model, np.tile(model.users[:3], 40))[1] == np.tile(whole[1][:3], (40, 1))).all()


def test_equal_scores_go_by_item_and_numpy_and_the_graph_agree() -> None:
    # Everyone rated the same items once: all unrated items of each user tie.
    data = [(user, item, 1.0) for user in range(4) for item in range(3)] + [(9, item, 1.0) for item in range(30)]
    model = RecommenderModel().fit(data, holdout=0)
    ours = model.predict([0, 12345], k=12)
    items, scores, _ = run(model, [0, 12345], 12)
    assert ours.items[0].tolist() == list(range(3, 15))
    assert (items == ours.items).all()
    assert (scores == ours.scores).all()


def test_top_is_a_stable_sort() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (50, 200)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    assert (_top(scores, 7) == np.argsort(-scores, axis=1, kind="stable")[:, :7]).all()
    assert (_top(scores, 150) == np.argsort(-scores, axis=1, kind="stable")[:, :150]).all()


def test_history_is_never_recommended_while_there_is_anything_else() -> None:
    model = RecommenderModel().fit(rows())
    best = model.predict(model.users, k=10)
    for user, items in zip(model.users.tolist(), best.items.tolist(), strict=True):
        assert not {item for item, _ in model.history(user, 100)} & set(items)
    every = model.predict([0], k=1000)
    assert every.items.shape == (1, 40)
    assert np.isneginf(every.scores).sum() == len(model.history(0, 100))


def test_unknown_users_get_what_is_popular_and_are_told_so() -> None:
    data = rows() + [(user, 7, 5.0) for user in range(60)]
    model = RecommenderModel().fit(data)
    best = model.predict([0, 777], k=3)
    assert best.known.tolist() == [True, False]
    assert best.items[1][0] == 7
    assert (np.diff(best.scores[1]) <= 0).all()


def test_it_learns_what_people_like_and_a_broken_one_scores_badly() -> None:
    model = RecommenderModel(l2=10).fit(rows(users=200))
    good = model.evaluate()
    assert good.recall > 0.5
    learnt = model._fitted()
    model._learnt = learnt._replace(weights=-learnt.weights)
    assert model.evaluate().recall < 0.25 * good.recall


def test_fitting_twice_gives_the_same_bytes_and_another_seed_another_split() -> None:
    first, second = (RecommenderModel().fit(rows()).container().pack() for _ in range(2))
    assert first == second
    assert RecommenderModel().fit(rows(), seed=7).container().pack() != first


def test_the_protocol_is_written_down() -> None:
    model = RecommenderModel().fit(rows(), holdout=0.25, seed=3)
    assert model.protocol["seed"] == 3
    assert model.protocol["holdout"] == 0.25
    assert model.protocol["held_out_pairs"] == 60 * 3
    assert set(model.metrics) == {"recall_at_10", "precision_at_10", "ndcg_at_10"}
    assert model.recorded is not None
    assert not model.seen(model.recorded.users, model.recorded.items).any()
    nothing = RecommenderModel().fit(rows(), holdout=0)
    assert nothing.recorded is None
    assert nothing.metrics == {}


def test_a_pair_that_occurs_twice_keeps_its_last_rating() -> None:
    model = RecommenderModel().fit([(1, 1, 1.0), (1, 2, 3.0), (1, 1, 5.0)], holdout=0)
    assert model.history(1) == [(1, 5.0), (2, 3.0)]


def test_ids_match_as_numbers_or_text_but_only_in_their_plain_spelling() -> None:
    model = RecommenderModel().fit(rows())
    assert model.predict(np.array(["5", "05", "x", "-", "99999999999999999999"])).known.tolist() == [True] + [False] * 4
    texts = RecommenderModel().fit([("5", "a", 1.0), ("x", "b", 1.0)], holdout=0)
    assert texts.predict([5, 6]).known.tolist() == [True, False]


def test_the_signature_is_that_of_the_graph() -> None:
    for text, user, item in ((False, "INT64", "INT64"), (True, "BYTES", "BYTES")):
        signature = RecommenderModel().fit(rows(text=text)).signature
        assert signature["inputs"] == [{"name": "user", "datatype": user, "shape": [-1]}]
        assert [part["datatype"] for part in signature["outputs"]] == [item, "FP32", "BOOL"]


def test_als_is_chosen_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_ai.models.recommender.EASE_ITEMS_MAX", 39)
    assert RecommenderModel(factors=4).fit(rows()).protocol["method"] == "als"


def test_predicting_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RecommenderModel().fit(rows())
    whole = model.predict(model.users)
    monkeypatch.setattr("lepton_ai.models.recommender.SCORE_CELLS_MAX", 120)
    pieces = model.predict(model.users)
    assert (whole.items == pieces.items).all()
    assert (whole.scores == pieces.scores).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RecommenderModel().predict([1]), "not been fitted"),
        (lambda: RecommenderModel().fit([]), "no ratings"),
        (lambda: RecommenderModel().fit(rows(), holdout=1.0), "holdout"),
        (lambda: RecommenderModel(method="magic"), "method"),
        (lambda: RecommenderModel(l2=0), "positive"),
        (lambda: RecommenderModel(l2=float("nan")), "positive"),
        (lambda: RecommenderModel(als_l2=float("inf")), "positive"),
        (lambda: RecommenderModel(factors=2.5), "factors = 2.5"),  # type: ignore[arg-type]
        (lambda: RecommenderModel(iterations=0), "iterations = 0"),
        (lambda: RecommenderModel().fit(rows(), seed=-1), "seed = -1"),
        (lambda: RecommenderModel().fit(rows()).history(1, limit=-1), "limit = -1"),
        (lambda: RecommenderModel().fit(rows()).predict([1], k=0), "k = 0"),
        (lambda: RecommenderModel().fit(rows()).predict([1], k="3"), "k = '3'"),  # type: ignore[arg-type]
        (lambda: RecommenderModel().fit(rows()).predict([1], k=2.5), "k = 2.5"),  # type: ignore[arg-type]
        (lambda: RecommenderModel().fit(rows()).export(k=True), "k = True"),
    ],
)
def test_mistakes_are_answered(make: Any, says: str) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        make()
    assert caught.value.hint


def test_split_holds_out_the_rounded_share_of_each_user() -> None:
    users = np.repeat(np.arange(4), [1, 2, 3, 10])
    held = split(users, 0.2, 42)
    assert np.bincount(users, weights=held).tolist() == [0, 0, 1, 2]
    assert (split(users, 0.2, 42) == held).all()
    assert not split(users, 0.0, 42).any()
    assert np.bincount(users, weights=split(users, 0.99, 1)).tolist() == [0, 1, 2, 9]


def test_sums_of_snapped_numbers_are_exact_in_any_order() -> None:
    rng = np.random.default_rng(5)
    raw = rng.normal(size=3000).astype(np.float32)
    values = snap(raw, float(np.abs(raw).sum(dtype=np.float64)))
    assert np.abs(values - raw).max() < 1e-3
    sums = {float(np.add.reduce(rng.permutation(values), dtype=np.float32)) for _ in range(20)}
    assert sums == {float(values.sum(dtype=np.float64))}
    # The same numbers as they were do depend on the order: the test can fail.
    assert len({float(np.cumsum(rng.permutation(raw), dtype=np.float32)[-1]) for _ in range(20)}) > 1
