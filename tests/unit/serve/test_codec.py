"""What a caller may send, and that everything else is refused with a reason."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.errors import Invalid, TooLarge
from lepton_ai.serve.codec import ANSWER_ELEMENTS_MAX, Codec
from lepton_ai.serve.signature import DTYPES, Signature, Tensor

X = Tensor("x", "FP32", ("n", 4))
CODEC = Codec(Signature((X,), (Tensor("y", "FP32", ("n", 3)), Tensor("z", "INT64", ("n",)))), "m", "1")
PAIR = Codec(
    Signature((Tensor("ids", "INT64", ("b", "s")), Tensor("mask", "BOOL", ("b", "s"))), (Tensor("y", "FP32", ("b",)),)),
    "m",
    "1",
)


def v2(data: Any, shape: list[int], datatype: str = "FP32", name: str = "x", **more: Any) -> bytes:
    return json.dumps({"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}], **more}).encode()


def single(datatype: str) -> Codec:
    tensor = Tensor("x", datatype, ("n",))
    return Codec(Signature((tensor,), (tensor,)), "m", "1")


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6, 7, 8], [[1, 2, 3, 4], [5, 6, 7, 8]]])
def test_flat_and_nested_data_are_the_same(data: list[Any]) -> None:
    call = CODEC.decode(v2(data, [2, 4]))
    assert call.rows == 2
    assert call.arrays[0].dtype == np.float32
    np.testing.assert_array_equal(call.arrays[0], np.arange(1, 9).reshape(2, 4))


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        *[(f"INT{bits}", [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]) for bits in (8, 16, 32, 64)],
        *[(f"UINT{bits}", [0, 2**bits - 1]) for bits in (8, 16, 32, 64)],
        ("FP16", [0.5, -2]),
        ("FP32", [0.25, 1e38]),
        ("FP64", [0.1, 1e300]),
        ("BYTES", ["", "日本\x00é"]),
    ],
)
def test_every_datatype_comes_back_as_it_was_sent(datatype: str, values: list[Any]) -> None:
    codec = single(datatype)
    call = codec.decode(v2(values, [2], datatype))
    assert call.arrays[0].dtype == DTYPES[datatype]
    answer = json.loads(codec.encode(call, call.arrays))["outputs"][0]
    assert answer["datatype"] == datatype
    assert answer["shape"] == [2]
    assert answer["data"] == pytest.approx(values) if datatype == "FP32" else answer["data"] == values


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT8", [128]),
        ("UINT8", [-1]),
        ("INT64", [2**63]),
        ("UINT64", [2**64]),
        ("FP16", [70000.0]),
        ("FP32", [1e39]),
        ("FP64", [10**320]),
        ("INT64", [1.0]),
        ("INT64", [True]),
        ("INT64", ["1"]),
        ("FP32", [True]),
        ("FP32", [None]),
        ("FP32", [{}]),
        ("BOOL", [1]),
        ("BYTES", [1]),
    ],
)
def test_a_value_of_the_wrong_kind_or_range_is_refused(datatype: str, values: list[Any]) -> None:
    with pytest.raises(Invalid, match=r"range|takes|valid"):
        single(datatype).decode(v2(values, [1], datatype))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (v2([1, 2, 3], [1, 4]), "do not have shape"),
        (v2([1, 2, 3, 4], [1, 3]), "has shape"),
        (v2([1, 2, 3, 4], [4]), "has shape"),
        (v2([], [0, 4]), "has shape"),
        (v2([1, 2, 3, 4], [-1, 4]), "has shape"),
        (v2([1, 2, 3, 4], [1] * 100), "100 dimensions"),
        (v2([[1, 2, 3, 4], [1, 2, 3]], [2, 4]), "differ in length"),
        (v2([[1, 2, 3, 4], 5], [2, 4]), "do not have shape"),
        (v2([1, 2, 3, [4]], [1, 4]), "takes numbers"),
        (v2([1, 2, 3, 4], [1, 4], "FP64"), "datatype"),
        (v2([1, 2, 3, 4], [1, 4], name="w"), "no input 'w'"),
        (v2([1, 2, 3, 4], [1, 4], outputs=[{"name": "q"}]), "no output 'q'"),
        (v2([1, 2, 3, 4], [1, 4], outputs=[{"name": "y"}, {"name": "y"}]), "twice"),
        (v2([1, 2, 3, 4], [1, 4], id=7), "not a valid request"),
        (b'{"inputs":[]}', "missing input: x"),
        (b"{}", "inputs"),
        (b"", "not a valid request"),
        (b"\xff\xfe", "not a valid request"),
        (v2([1, 2, 3, 4], [1, 4]).replace(b"[1, 2", b"[NaN, 2"), "not a valid request"),
        (v2([1, 2, 3, 4], [1, 4]).replace(b"[1, 2", b"[1e999, 2"), "out of range"),
        (v2([1, 2, 3, 4], [1, 4]).replace(b'"x"', b'"\xff"'), "not a valid request"),
        (b'{"inputs":' + b"[" * 1_000_000, "valid request|deeply"),
        (v2([1], [1, 4]).replace(b"[1]", b"[" * 50_000 + b"]" * 50_000), "deeply"),
    ],
)
def test_a_malformed_request_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        CODEC.decode(body)


def test_an_input_given_twice_is_refused() -> None:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    with pytest.raises(Invalid, match="twice"):
        CODEC.decode(json.dumps({"inputs": [tensor, tensor]}).encode())


def test_outputs_are_selected_in_the_order_asked_and_the_id_is_echoed() -> None:
    call = CODEC.decode(v2([1, 2, 3, 4], [1, 4], id='a"b', parameters={"k": 1}, outputs=[{"name": "z"}]))
    answer = json.loads(CODEC.encode(call, [np.array([5])]))
    assert answer == {
        "model_name": "m",
        "model_version": "1",
        "id": 'a"b',
        "outputs": [{"name": "z", "datatype": "INT64", "shape": [1], "data": [5]}],
    }


def test_a_plain_row_has_a_plain_answer_and_rows_have_rows() -> None:
    row = CODEC.decode_plain(b'{"x":[1,2,3,4]}')
    assert (row.rows, row.scalar) == (1, True)
    assert json.loads(CODEC.encode_plain(row, [np.ones((1, 3)), np.array([9])])) == {"y": [1, 1, 1], "z": 9}
    rows = CODEC.decode_plain(b'{"x":[[1,2,3,4],[5,6,7,8]]}')
    assert (rows.rows, rows.scalar) == (2, False)
    assert json.loads(CODEC.encode_plain(rows, [np.ones((2, 3)), np.array([9, 8])]))["z"] == [9, 8]


@pytest.mark.parametrize("body", [b'{"x":1}', b'{"x":[[[1,2,3,4]]]}', b'{"x":[]}', b'{"x":null}', b"[1]", b'{"q":1}'])
def test_a_plain_body_of_the_wrong_shape_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid):
        CODEC.decode_plain(body)


def test_free_dimensions_of_one_name_must_agree() -> None:
    assert PAIR.decode_plain(b'{"ids":[[1,2]],"mask":[[true,false]]}').rows == 1
    with pytest.raises(Invalid, match="'s' is 2"):
        PAIR.decode_plain(b'{"ids":[[1,2]],"mask":[[true]]}')
    with pytest.raises(Invalid, match="batch dimension"):
        PAIR.decode_plain(b'{"ids":[1,2],"mask":[[true,false]]}')
    with pytest.raises(Invalid, match="missing input: mask"):
        PAIR.decode_plain(b'{"ids":[1,2]}')


def test_an_answer_that_would_be_too_large_is_refused_before_the_model_runs() -> None:
    wide = Codec(
        Signature((Tensor("x", "INT64", ("n",)),), (Tensor("y", "FP32", ("n", ANSWER_ELEMENTS_MAX)),)), "m", "1"
    )
    assert wide.decode_plain(b'{"x":[1]}').rows == 1
    with pytest.raises(TooLarge, match="values"):
        wide.decode_plain(b'{"x":[1,2]}')


def test_numbers_that_json_cannot_carry_become_null() -> None:
    call = CODEC.decode_plain(b'{"x":[1,2,3,4]}')
    answer = CODEC.encode_plain(call, [np.array([[np.nan, -np.inf, 1.0]]), np.array([1])])
    assert json.loads(answer)["y"] == [None, None, 1.0]


def test_an_output_without_rows_is_answered_whole() -> None:
    outputs = (Tensor("y", "FP32", ("n",)), Tensor("mean", "FP32", ()), Tensor("three", "FP32", (3,)))
    codec = Codec(Signature((Tensor("x", "FP32", ("n",)),), outputs), "m", "1")
    call = codec.decode_plain(b'{"x":1}')
    answer = codec.encode_plain(call, [np.array([5.0]), np.array(2.0), np.array([1.0, 2.0, 3.0])])
    assert json.loads(answer) == {"y": 5.0, "mean": 2.0, "three": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize("shape", [(50_000,), (3, 20_000), (70_000, 1), (30, 40, 50), (1, 1, 40_000), (2, 3, 17_000)])
def test_a_large_answer_is_encoded_in_pieces_and_is_the_same(shape: tuple[int, ...]) -> None:
    call = CODEC.decode_plain(b'{"x":[[1,2,3,4]]}')
    array = np.arange(np.prod(shape)).reshape(shape)
    assert CODEC.answer_elements([array, array]) == 2 * array.size
    assert json.loads(CODEC.encode_plain(call, [array, np.array([9])]))["y"] == array.tolist()
    flat, _ = json.loads(CODEC.encode(call, [array, np.array([9])]))["outputs"]
    assert flat["data"] == array.ravel().tolist()


def test_an_answer_that_is_too_large_is_refused() -> None:
    with pytest.raises(TooLarge, match="values"):
        CODEC.answer_elements([np.zeros(ANSWER_ELEMENTS_MAX), np.zeros(1)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(data=JSON, shape=JSON | st.lists(st.integers(-1, 4), max_size=3), datatype=st.sampled_from(["FP32", "INT64", 7]))
def test_any_json_is_decoded_to_the_signature_or_refused(data: Any, shape: Any, datatype: Any) -> None:
    body = json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]}).encode()
    for decode, text in ((CODEC.decode, body), (CODEC.decode_plain, json.dumps({"x": data}).encode())):
        with contextlib.suppress(Invalid, TooLarge):  # any other error fails the test
            call = decode(text)
            (array,) = call.arrays
            assert array.dtype == np.float32
            assert array.shape == (call.rows, 4)
            assert np.isfinite(array).all()


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_decoded(body: bytes) -> None:
    for decode in (CODEC.decode, CODEC.decode_plain, PAIR.decode_plain):
        with pytest.raises(Invalid):
            decode(body)


@settings(max_examples=200)
@given(st.integers(0, 120), st.binary(min_size=1, max_size=3))
def test_a_damaged_request_never_breaks_the_decoder(position: int, noise: bytes) -> None:
    good = v2([1, 2, 3, 4], [1, 4], id="abc")
    body = good[:position] + noise + good[position + len(noise) :]
    with contextlib.suppress(Invalid, TooLarge):  # any other error fails the test
        call = CODEC.decode(body)
        assert call.arrays[0].shape == (call.rows, 4)
