"""The main path on real data: fit, measure, save, the source text's own listing, one graph, one lake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import lepton_ai.lake
from lepton_ai.demo import dataset as dataset_module
from lepton_ai.demo.dataset import WHEEL, Dataset, wheel
from lepton_ai.errors import Unavailable
from lepton_ai.evaluation import ndcg_at_k, recall_p_at_k
from lepton_ai.models import RecommenderModel, Registry

LISTING = """
from lepton_ai.models import RecommenderModel
from lepton_ai.evaluation import recall_p_at_k
model = RecommenderModel.load('recommender_model.pkl')
def evaluate(model, test_data):
    test_ratings = []
    for i in range(len(test_data)):
        test_ratings.append(test_data[i][2])
    recalls = recall_p_at_k(model, test_ratings, k=10)
    return recalls
test_data = []
for i in range(10000):
    test_data.append([i, 1, 3.5])
recalls = evaluate(model, test_data)
print(recalls)
"""


@pytest.fixture(scope="module")
def model(movielens: Dataset) -> RecommenderModel:
    return RecommenderModel().fit(movielens_rows(movielens))


def movielens_rows(data: Dataset) -> list[tuple[int, int, float]]:
    return list(zip(data.users, data.items, data.ratings, strict=True))


def test_the_data_are_what_they_are_said_to_be(movielens: Dataset) -> None:
    assert len(movielens.users) == 100_000
    assert (len(set(movielens.users)), len(set(movielens.items))) == (943, 1682)
    assert movielens.titles[50] == "Star Wars (1977)"
    assert "GroupLens" in movielens.notice


def test_quality(model: RecommenderModel) -> None:
    found = model.evaluate(k=10)
    assert found.recall >= 0.240
    assert ndcg_at_k(model, k=10) >= 0.445
    assert found.precision == pytest.approx(0.3729, abs=0.002)
    assert (found.users, found.pairs) == (943, 20_000)


def test_als_is_close_behind(movielens: Dataset) -> None:
    model = RecommenderModel(method="als").fit(movielens_rows(movielens))
    assert model.metrics["recall_at_10"] >= 0.234
    assert model.metrics["ndcg_at_10"] >= 0.43


@pytest.mark.parametrize("how", ["shuffled", "reversed", "of other items"])
def test_a_broken_model_scores_badly(model: RecommenderModel, movielens: Dataset, how: str) -> None:
    broken = RecommenderModel().fit(movielens_rows(movielens))
    learnt = broken._fitted()
    weights, dice = learnt.weights, np.random.default_rng(0)
    broken._learnt = {
        "shuffled": lambda: learnt._replace(weights=dice.permutation(weights.ravel()).reshape(weights.shape)),
        "reversed": lambda: learnt._replace(weights=-weights),
        "of other items": lambda: learnt._replace(weights=np.roll(weights, 500, axis=1)),
    }[how]()
    good, found = model.evaluate(k=10), broken.evaluate(k=10)
    assert (found.users, found.pairs) == (good.users, good.pairs)
    assert found.recall < 0.05
    assert found.precision < 0.1
    assert ndcg_at_k(broken, k=10) < 0.1
    assert found.recall < good.recall / 5


def test_the_graph_gives_every_user_the_same_answer(model: RecommenderModel) -> None:
    session = onnxruntime.InferenceSession(model.export(), providers=["CPUExecutionProvider"])
    users = np.append(model.users, [0, 10**6])
    items, scores, known = session.run(None, {"user": users})
    ours = model.predict(users, k=10)
    assert (items == ours.items).all()
    assert (scores == ours.scores).all()
    assert (known == ours.known).all()
    assert known.tolist() == [True] * 943 + [False] * 2


def test_the_listing_of_the_source_text_runs_unmodified(model: RecommenderModel, tmp_path: Path) -> None:
    model.save(tmp_path / "recommender_model.pkl")
    root = str(Path(lepton_ai.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LISTING], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("recall@10 = 0.2415, precision@10 = 0.3729 (k=10, users=943, pairs=20000")
    assert done.stderr.count("hint: recall_p_at_k(model, test_data)") == 1
    loaded = RecommenderModel.load(tmp_path / "recommender_model.pkl")
    with_rows = recall_p_at_k(loaded, [[i, 1, 3.5] for i in range(10000)])
    assert (with_rows.users, with_rows.skipped, with_rows.pairs) == (943, 10000 - 943, 943)
    assert with_rows.trained > 300


def test_from_lake_to_registry(movielens: Dataset, model: RecommenderModel, tmp_path: Path) -> None:
    with lepton_ai.lake.open(tmp_path) as lake:
        assert str(lake.table("ratings").append(movielens.columns(), transaction="movielens")) == "ratings@1"
        assert lake.query("SELECT count(*), count(DISTINCT user) FROM ratings@1").rows == [[100_000, 943]]
        fitted = RecommenderModel().fit(lake.table("ratings"))
        assert fitted.lineage == {"table": "ratings@1"}
        assert fitted.metrics == model.metrics
        rows = lake.table("ratings")
        assert recall_p_at_k(fitted, rows, k=10) == fitted.evaluate(rows, k=10)
        assert recall_p_at_k(fitted, rows, k=10).trained == 80_000
        version = Registry(lake.objects).register("movies", fitted)
        assert (str(version), version.lineage) == ("movies@1", {"table": "ratings@1"})
        again = Registry(lake.objects).load("movies@1")
        assert (again.predict([7]).items == model.predict([7]).items).all()


def test_a_damaged_wheel_is_fetched_again_and_a_missing_one_is_said(
    movielens: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (Path(__file__).resolve().parents[3] / ".cache" / WHEEL).read_bytes()
    (tmp_path / WHEEL).write_bytes(good[:1000])

    def download(folder: Path) -> Path:
        (folder / WHEEL).write_bytes(good)
        return folder / WHEEL

    monkeypatch.setattr(dataset_module, "_download", download)
    assert wheel(tmp_path).read_bytes() == good
    monkeypatch.undo()
    monkeypatch.setattr(dataset_module, "REQUIREMENT", "recbole==0.0.0.1")
    with pytest.raises(Unavailable) as caught:
        wheel(tmp_path / "empty")
    assert "lepton demo --data" in str(caught.value.hint)
