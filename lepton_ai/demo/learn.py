"""Stages 2 and 3: ratings into the lake as a table version, a query over it, a model from it, registered.

Owns the order of these steps and which figures they show; the work is the lake's and the models'.
"""

from __future__ import annotations

import time
from typing import Any

from lepton_ai.demo.tour import NAME, TABLE, Tour
from lepton_ai.demo.trial import fields

MUST_RECALL, MUST_NDCG = 0.240, 0.445
SEED = 42
GRAPH_USERS_MAX = 2_000
"""so many users' answers are compared at most: a user's own data may hold millions"""


def lake(tour: Tour) -> None:
    """The ratings become `ratings@1`, and SQL answers from it."""
    with tour.stage("lake") as stage:
        tour.lake = tour.client.lake
        started_s = time.monotonic()
        version = tour.lake.table(TABLE).append(tour.source.table, transaction="demo")
        write_s = time.monotonic() - started_s
        rows = tour.source.table.num_rows
        tour.say("lake.table", version=version, rows=rows, seconds=write_s)
        sql = (
            f"SELECT count(*) AS ratings, count(DISTINCT user) AS people, round(avg(rating), 3) AS mean FROM {version}"
        )
        started_s = time.monotonic()
        answer = tour.client.query(sql)
        query_ms = (time.monotonic() - started_s) * 1000
        found = answer.rows
        said = ", ".join(f"{name} {value}" for name, value in zip(answer.columns, found[0], strict=True))
        tour.say("lake.query", sql=sql, answer=said, milliseconds=query_ms)
        stage.figures.update(table=str(version), rows=rows, write_s=write_s, sql=sql, answer=found, query_ms=query_ms)


def train(tour: Tour) -> None:
    """A model of the table version: measured, registered with its lineage, exported, and the export checked."""
    from lepton_ai.models import RecommenderModel

    with tour.stage("train") as stage:
        table = tour.lake.table(TABLE).pin()
        model = tour.model = RecommenderModel().fit(table, seed=SEED)
        tour.say(
            "train.fit", table=table.lineage, seconds=model.fit_s, seed=SEED, method=_method(model.protocol["method"])
        )
        _quality(tour, stage.figures)
        lineage = {"table": table.lineage, "seed": SEED, "protocol": model.protocol["split"]}
        registered = fields(tour.client.register(NAME, model, lineage=lineage))
        size_mb = registered["size_bytes"] / 1e6
        tour.version = str(registered["ref"])
        said = ", ".join(f"{key} {value}" for key, value in lineage.items())
        tour.say("train.registered", version=tour.version, size_mb=size_mb, lineage=said)
        graph = model.export()
        users = model.users[:GRAPH_USERS_MAX]
        equal = same_answers(model, graph, users)
        tour.say("train.graph", size_mb=len(graph) / 1e6, equal=equal, users=len(users))
        tour.board.holds(
            "graph", equal == len(users), "python bench/recommender.py --out out",
            f"{equal}/{len(users)}", f"{len(users)}/{len(users)}",
        )  # fmt: skip
        stage.figures.update(
            fit_s=model.fit_s, protocol=model.protocol, version=tour.version, lineage=lineage,
            model_bytes=registered["size_bytes"], onnx_bytes=len(graph), onnx_equal_users=equal, onnx_users=len(users),
        )  # fmt: skip


def _quality(tour: Tour, figures: dict[str, Any]) -> None:
    model, command = tour.model, f"lepton model show {NAME}@1 --cell demo"
    if not model.metrics:
        tour.say("train.none")
        return
    recall, ndcg, precision = (model.metrics[f"{name}_at_10"] for name in ("recall", "ndcg", "precision"))
    recorded = model.recorded
    users, pairs = len(set(recorded.users.tolist())), len(recorded)
    tour.say("train.quality", recall=recall, ndcg=ndcg, precision=precision, users=users, pairs=pairs)
    tour.board.at_least("recall", recall, None if tour.source.own else MUST_RECALL, command)
    tour.board.at_least("ndcg", ndcg, None if tour.source.own else MUST_NDCG, command)
    figures.update(recall_at_10=recall, ndcg_at_10=ndcg, precision_at_10=precision, users=users, held_out_pairs=pairs)


def _method(name: str) -> str:
    return {"ease": "EASE^R", "als": "iALS"}.get(name, name)


def same_answers(model: Any, graph: bytes, users: Any) -> int:
    """For how many users the graph's ten best items, in order, are those that numpy finds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    asked = users.astype(object) if users.dtype.kind == "U" else users
    items = session.run(["items"], {"user": asked})[0]
    ours = model.predict(users, k=10).items
    return int((items.astype(ours.dtype) == ours).all(axis=1).sum())
