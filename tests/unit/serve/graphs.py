"""Small ONNX graphs and containers for the tests of the model server. Owns no test."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def model(nodes: list[tuple[str, str, str]], inputs: str, outputs: str, **weights: object) -> bytes:
    """``nodes`` are (operator, inputs, output); tensors are "name:TYPE:dim,dim", separated by spaces."""
    made = [helper.make_node(kind, sources.split(), [target]) for kind, sources, target in nodes]
    return _made(made, inputs, outputs, weights)


def _made(nodes: list[Any], inputs: str, outputs: str, weights: Mapping[str, object]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [_tensor(text) for text in inputs.split()],
        [_tensor(text) for text in outputs.split()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = made.SerializeToString()
    return data


def lookup(users: int = 200) -> bytes:
    """A recommender in miniature: user -> items (n, 2) = (10 user, 10 user + 1), score (n); refuses unknown users."""
    table = np.arange(users, dtype=np.int64)[:, None] * 10 + np.array([0, 1])
    return model(
        [("Gather", "table user", "items"), ("Gather", "weights user", "scores")],
        "user:INT64:n",
        "items:INT64:n,2 scores:FLOAT:n",
        table=table,
        weights=np.arange(users, dtype=np.float32) / 2,
    )


def mixing() -> bytes:
    """A free first dimension that is not a batch: each value becomes its share of the whole."""
    return model([("ReduceSum", "x", "s"), ("Div", "x s", "y")], "x:FLOAT:n", "y:FLOAT:n")


def quantised() -> bytes:
    """What ``quantize_dynamic`` makes of a matrix product: one scale for all rows of the batch."""
    weights = np.random.default_rng(0).normal(size=(8, 4))
    scale = np.abs(weights).max() / 127
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["product"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["scale"]),
        helper.make_node("Mul", ["product", "scale"], ["y"]),
    ]
    constants = {"w": np.round(weights / scale).astype(np.int8), "ws": np.float32(scale)}
    return _made(nodes, "x:FLOAT:n,8", "y:FLOAT:n,4", constants)


def words() -> bytes:
    """Strings in, the same strings out."""
    return model([("Identity", "text", "same")], "text:STRING:n", "same:STRING:n")


def slow(size: int = 700) -> bytes:
    """y = x + 0 by way of some matrix products that take longer than a millisecond for any input."""
    return model(
        [
            ("ReduceSum", "x", "total"),
            ("Mul", "big total", "scaled"),
            ("MatMul", "scaled big", "product"),
            ("MatMul", "product big", "again"),
            ("ReduceSum", "again", "sum"),
            ("Mul", "sum nought", "none"),
            ("Add", "x none", "y"),
        ],
        "x:FLOAT:n,1",
        "y:FLOAT:n,1",
        big=np.full((size, size), 1e-3, dtype=np.float32),
        nought=np.float32(0),
    )


def container(path: Path, onnx: bytes, **meta: object) -> Path:
    """A saved model in the format of ``lepton_ai.models``."""
    manifest: dict[str, Any] = {"format": 1, "kind": "recommender", "name": "movies"}
    manifest |= {part: {} for part in ("settings", "signature", "metrics", "protocol", "lineage")}
    manifest["members"] = {"model.onnx": {"sha256": hashlib.sha256(onnx).hexdigest(), "size_bytes": len(onnx)}}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model.json", json.dumps({**manifest, **meta}))
        archive.writestr("model.onnx", onnx)
    return path


def _tensor(text: str) -> object:
    name, kind, dims = text.split(":")
    shape = [int(dim) if dim.isdigit() else dim for dim in dims.split(",") if dim]
    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
