"""What the warm-up learns about a model, and reading the file it comes in."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_ai.errors import Corrupt, Invalid, LeptonError, NotFound, Unsupported
from lepton_ai.serve.container import Container
from lepton_ai.serve.runtime import Runtime


def warmed(onnx: bytes) -> Runtime:
    runtime = Runtime(Container(onnx))
    runtime.warm()
    return runtime


def test_the_signature_is_the_graph_s_own(graphs: Any) -> None:
    signature = warmed(graphs.lookup()).signature
    assert [t.public for t in signature.inputs] == [{"name": "user", "datatype": "INT64", "shape": [-1]}]
    assert [t.public for t in signature.outputs] == [
        {"name": "items", "datatype": "INT64", "shape": [-1, 2]},
        {"name": "scores", "datatype": "FP32", "shape": [-1]},
    ]


def test_rows_are_batched_only_when_they_do_not_mix(graphs: Any) -> None:
    assert warmed(graphs.lookup()).batches
    assert warmed(graphs.words()).batches
    assert not warmed(graphs.mixing()).batches
    assert not warmed(graphs.model([("Identity", "x", "y")], "x:FLOAT:1,4", "y:FLOAT:1,4")).batches


def test_rows_that_take_their_scale_from_the_batch_are_never_batched(graphs: Any, tmp_path: Path) -> None:
    quantised = graphs.quantised()
    assert not warmed(quantised).batches
    file = tmp_path / "bare.onnx"
    file.write_bytes(quantised)
    bare = Runtime(Container.read(file))
    bare.warm()
    assert not bare.batches
    runtime = warmed(quantised)  # what would happen: the answer to a small row is lost beside a large one
    small, large = np.full((1, 8), 0.5, np.float32), np.full((1, 8), 500, np.float32)
    (alone,), (beside,) = runtime.run([small], [0]), runtime.run([np.concatenate([small, large])], [0])
    assert not np.allclose(alone, beside[:1], rtol=0.1)


def test_mixing_that_zeros_and_ones_do_not_show_is_found(graphs: Any) -> None:
    nodes = [("ReduceMax", "x", "top"), ("Max", "top one", "scale"), ("Div", "x scale", "y")]
    assert not warmed(graphs.model(nodes, "x:FLOAT:n", "y:FLOAT:n", one=np.float32(1))).batches
    nodes = [("ReduceMax", "x", "top"), ("Max", "top seven", "scale"), ("Sub", "x scale", "y")]
    assert not warmed(graphs.model(nodes, "x:INT64:n", "y:INT64:n", seven=np.int64(7))).batches


def test_a_table_of_two_rows_and_a_deep_net_are_batched(graphs: Any) -> None:
    assert warmed(graphs.lookup(users=2)).batches
    random = np.random.default_rng(1)
    weights = {f"w{i}": random.normal(size=(64, 64)).astype(np.float32) / 8 for i in range(8)}
    layers = [("MatMul", f"h{i} w{i}", f"p{i}") for i in range(8)]
    nodes = [("Identity", "x", "h0")]
    for i, layer in enumerate(layers):
        nodes += [layer, ("Relu", f"p{i}", f"h{i + 1}")]
    assert warmed(graphs.model([*nodes, ("Identity", "h8", "y")], "x:FLOAT:n,64", "y:FLOAT:n,64", **weights)).batches


def test_wanted_outputs_run_and_bad_values_are_the_caller_s_fault(graphs: Any) -> None:
    runtime = warmed(graphs.lookup(users=5))
    (scores,) = runtime.run([np.array([4])], [1])
    assert scores.tolist() == [2.0]
    with pytest.raises(Invalid, match="out of data bounds"):
        runtime.run([np.array([5])], [0, 1])


def test_a_model_that_refuses_zeros_is_served_without_batching(graphs: Any, caplog: pytest.LogCaptureFixture) -> None:
    onnx = graphs.model(
        [("Sub", "user one", "index"), ("Gather", "table index", "y")],
        "user:INT64:n",
        "y:INT64:n",
        one=np.int64(3),
        table=np.array([5, 6]),
    )
    runtime = warmed(onnx)
    assert "zeros" in caplog.text
    assert not runtime.batches
    assert not runtime.inline(1)
    assert runtime.run([np.array([4])], [0])[0].tolist() == [6]


def test_types_without_a_json_form_are_refused(graphs: Any) -> None:
    onnx = graphs.model([("Identity", "x", "y")], "x:BFLOAT16:n", "y:BFLOAT16:n")
    with pytest.raises(Unsupported, match="bfloat16"):
        Runtime(Container(onnx))


def test_a_container_is_read_and_its_digest_checked(graphs: Any, tmp_path: Path) -> None:
    onnx = graphs.lookup()
    path = graphs.container(tmp_path / "movies.pkl", onnx)
    read = Container.read(path)
    assert (read.onnx, read.meta["name"]) == (onnx, "movies")
    digest = hashlib.sha256(onnx).hexdigest()
    members = {"model.onnx": {"sha256": digest, "size_bytes": len(onnx)}}
    bad = graphs.container(tmp_path / "bad", onnx[:-1] + b"!", members=members)
    with pytest.raises(Corrupt, match="not what was saved"):
        Container.read(bad)


def test_what_a_saved_model_may_not_be_is_not_served_either(graphs: Any, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deflated = tmp_path / "deflated"
    with zipfile.ZipFile(deep, "w") as archive:
        archive.writestr("model.json", "[" * 100_000)
        archive.writestr("model.onnx", graphs.lookup())
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", "{}")
        archive.writestr("model.onnx", b"\0" * 10_000_000)
    for path in (deep, deflated, graphs.container(tmp_path / "bare", b"", members={})):
        with pytest.raises((Corrupt, Invalid)):
            Container.read(path)


def test_files_that_are_no_models_are_refused(graphs: Any, tmp_path: Path) -> None:
    def refusal(content: bytes) -> LeptonError:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(LeptonError) as caught:
            Runtime(Container.read(path))
        return caught.value

    whole = graphs.container(tmp_path / "whole", graphs.lookup()).read_bytes()
    assert isinstance(refusal(b""), Corrupt)
    assert isinstance(refusal(b"not a model"), Corrupt)
    assert isinstance(refusal(whole[: len(whole) // 2]), Corrupt)
    assert isinstance(refusal(whole.replace(b"model.onnx", b"model.nnxo")), Invalid)
    assert isinstance(refusal(whole.replace(b'"format": 1', b'"format": 2')), Corrupt | Invalid)
    assert isinstance(refusal(pickle.dumps({"a": 1})), Invalid)
    with pytest.raises(NotFound):
        Container.read(tmp_path / "none")
    with pytest.raises(NotFound):
        Container.read(tmp_path)
