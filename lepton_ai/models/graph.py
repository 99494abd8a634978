"""The recommender as one ONNX graph: user ids in, the k best items out.

Owns the graph only. Memory while it runs is users asked × items: histories stay sparse (one row index and one list
of items), so neither a dense users × items matrix nor padding is stored. Operators: opset 17 and `ai.onnx.ml` 4
(LabelEncoder). TopK puts equal values in the order of their index, as `recommender.predict` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lepton_ai.errors import TooLarge
from lepton_ai.evaluation import count

if TYPE_CHECKING:
    from lepton_ai.models.recommender import Learnt

ONNX_BYTES_MAX = (1 << 31) - (1 << 20)
"""one protobuf message holds less than 2 GiB"""


def graph(learnt: Learnt, k: int = 10) -> bytes:
    """The serialised graph: `user` (n) -> `items` (n, k), `scores` (n, k) float32, `known` (n) bool.

    user id -> LabelEncoder -> index (unknown: an extra user with no history) -> the history as a row of ones
    (Range, Gather, ScatterND) -> MatMul with the weights (ALS: the user's factors with the items') -> popularity
    for unknown users -> −inf on the history -> TopK -> item ids. Raises TooLarge above 2 GiB.
    """
    from onnx import checker, helper

    k = count(k, "k", hint="use k=10")
    constants = _constants(learnt, min(k, len(learnt.items)))
    total = sum(int(array.nbytes) for array in constants.values())
    if total > ONNX_BYTES_MAX:
        hint = 'fit with method="als": it grows with the items, not their square'
        raise TooLarge(f"the graph would take {total} bytes; ONNX holds {ONNX_BYTES_MAX}", hint=hint)
    user, item = (_type(side) for side in (learnt.users, learnt.items))
    width = min(k, len(learnt.items))
    from onnx import TensorProto as T

    body = helper.make_graph(
        _nodes(learnt),
        "recommender",
        [helper.make_tensor_value_info("user", user, ["n"])],
        [
            helper.make_tensor_value_info("items", item, ["n", width]),
            helper.make_tensor_value_info("scores", T.FLOAT, ["n", width]),
            helper.make_tensor_value_info("known", T.BOOL, ["n"]),
        ],
        [_tensor(name, array) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 4)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=8, producer_name="lepton_ai")
    checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _constants(learnt: Learnt, k: int) -> dict[str, Any]:
    # One more user, without history, stands for everyone unknown: his index is the default of the look-up.
    constants: dict[str, Any] = {
        "indptr": np.append(learnt.indptr, learnt.indptr[-1]).astype(np.int64),
        "indices": learnt.indices.astype(np.int64),
        "labels": learnt.items,
        "popularity": learnt.popularity[None, :].astype(np.float32),
        "unknown": np.array(len(learnt.users), dtype=np.int64),
        "width": np.array([len(learnt.items)], dtype=np.int64),
        "zero": np.array(0, dtype=np.int64),
        "one": np.array(1, dtype=np.int64),
        "first": np.array([0], dtype=np.int64),
        "second": np.array([1], dtype=np.int64),
        "minus_infinity": np.array(-np.inf, dtype=np.float32),
        "k": np.array([k], dtype=np.int64),
    }
    if learnt.weights is not None:
        return {**constants, "weights": learnt.weights}
    assert learnt.user_factors is not None
    assert learnt.item_factors is not None
    nobody = np.zeros((1, learnt.user_factors.shape[1]), dtype=np.float32)
    return {
        **constants,
        "user_factors": np.concatenate([learnt.user_factors, nobody]),
        "item_factors": np.ascontiguousarray(learnt.item_factors.T),
    }


def _nodes(learnt: Learnt) -> list[Any]:
    from onnx import helper

    def op(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs.split(), [output], **attributes)

    text = learnt.users.dtype.kind == "U"
    keys = {"keys_strings": learnt.users.tolist()} if text else {"keys_int64s": learnt.users.tolist()}
    values = {"values_int64s": list(range(len(learnt.users))), "default_int64": len(learnt.users)}
    nodes = [
        helper.make_node("LabelEncoder", ["user"], ["index"], domain="ai.onnx.ml", **keys, **values),
        op("Equal", "index unknown", "strange"),
        op("Not", "strange", "known"),
        op("Gather", "indptr index", "start"),
        op("Add", "index one", "next"),
        # The unknown user is last, and its row ends where the row index ends: clip the look-up of the end.
        op("Min", "next unknown", "next_or_last"),
        op("Gather", "indptr next_or_last", "end"),
        op("Sub", "end start", "count"),
        # Each history entry of the batch gets the row it belongs to: how many rows ended at or before it.
        op("CumSum", "count zero", "stop"),
        op("Sub", "stop count", "begin"),
        op("ReduceSum", "count first", "total", keepdims=0),
        op("Range", "zero total one", "entry"),
        op("Unsqueeze", "entry second", "entry_column"),
        op("GreaterOrEqual", "entry_column stop", "ended"),
        op("Cast", "ended", "ended_count", to=7),
        op("ReduceSum", "ended_count second", "row", keepdims=0),
        op("Gather", "begin row", "row_begin"),
        op("Gather", "start row", "row_start"),
        op("Sub", "entry row_begin", "offset"),
        op("Add", "row_start offset", "position"),
        op("Gather", "indices position", "column"),
        op("Unsqueeze", "row second", "row_column"),
        op("Unsqueeze", "column second", "column_column"),
        op("Concat", "row_column column_column", "cells", axis=1),
        op("Shape", "user", "users"),
        op("Concat", "users width", "shape", axis=0),
        op("ConstantOfShape", "shape", "empty"),
        op("Shape", "entry", "entries"),
        op("ConstantOfShape", "entries", "ones", value=_tensor("one_f", np.ones(1, dtype=np.float32))),
        op("ScatterND", "empty cells ones", "history"),
    ]
    if learnt.weights is not None:
        nodes.append(op("MatMul", "history weights", "raw"))
    else:
        nodes += [op("Gather", "user_factors index", "taste"), op("MatMul", "taste item_factors", "raw")]
    nodes += [
        op("Unsqueeze", "known second", "known_column"),
        op("Where", "known_column raw popularity", "scored"),
        op("Cast", "history", "done", to=9),
        op("Where", "done minus_infinity scored", "masked"),
        helper.make_node("TopK", ["masked", "k"], ["scores", "best"], axis=1, largest=1, sorted=1),
        op("Gather", "labels best", "items"),
    ]
    return nodes


def _type(array: Any) -> int:
    from onnx import TensorProto

    return int(TensorProto.STRING if array.dtype.kind == "U" else TensorProto.INT64)


def _tensor(name: str, array: Any) -> Any:
    from onnx import helper, numpy_helper

    if array.dtype.kind == "U":
        texts = [value.encode() for value in array.ravel().tolist()]
        return helper.make_tensor(name, _type(array), array.shape, texts)
    return numpy_helper.from_array(np.ascontiguousarray(array), name)
