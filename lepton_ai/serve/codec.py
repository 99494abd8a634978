"""JSON bodies to checked arrays, and arrays to JSON answers.

Owns every check on what a caller sends, so that a row which reaches a batch cannot spoil it: names, datatypes,
shapes, ragged rows, numbers out of range. It runs no model. A number that is not finite in an answer becomes null,
since JSON has no other form for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from lepton_ai.errors import Invalid, TooLarge
from lepton_ai.serve.call import Call
from lepton_ai.serve.signature import Signature, Tensor

Array = np.ndarray[Any, Any]

ANSWER_ELEMENTS_MAX = 4 * 1024 * 1024
"""Numbers in one answer: a small body may ask for many rows, and each row for many outputs."""

PIECE_ELEMENTS = 16 * 1024
"""Numbers turned into JSON at a time (about a millisecond): between two pieces other threads run."""


class Codec:
    """The two JSON forms of one model: V2 (Open Inference Protocol) and plain (field names are input names)."""

    def __init__(self, signature: Signature, name: str, version: str) -> None:
        self._inputs = signature.inputs
        self._outputs = signature.outputs
        self._by_name = {tensor.name: tensor for tensor in signature.inputs}
        self._output_index = {tensor.name: index for index, tensor in enumerate(signature.outputs)}
        self._all = tuple(range(len(signature.outputs)))
        self._body = msgspec.json.Decoder(_Body)
        self._plain = msgspec.json.Decoder(dict[str, Any])
        self._encode = msgspec.json.Encoder().encode
        # A single symbol that occurs once needs no agreement, and then the check is skipped.
        self._symbols_shared = len([d for t in signature.inputs for d in t.shape if isinstance(d, str)]) > 1
        self._head = b'{"model_name":' + self._encode(name) + b',"model_version":' + self._encode(version)
        self._output_heads = [
            b'{"name":' + self._encode(t.name) + b',"datatype":"' + t.datatype.encode() + b'","shape":'
            for t in signature.outputs
        ]
        # What a row adds to an answer at least; outputs without a row dimension are checked when they are there.
        self._row_elements = [
            math.prod([d for d in t.shape[1:] if isinstance(d, int)]) if t.dynamic else 0 for t in signature.outputs
        ]
        self._rowed = [t.dynamic for t in signature.outputs]  # the others have no row to take from an answer
        self._plain_heads = [self._encode(t.name) + b":" for t in signature.outputs]

    def decode(self, body: bytes) -> Call:
        """A V2 request.

        Raises:
            Invalid: with the first thing that is wrong.
        """
        request = self._parse(self._body, body)
        given: dict[str, Array] = {}
        for sent in request.inputs:
            tensor = self._known(sent.name)
            if sent.name in given:
                raise Invalid(f"input {sent.name!r} is given twice")
            if sent.datatype != tensor.datatype:
                raise Invalid(
                    f"input {sent.name!r} has datatype {sent.datatype!r}, the model takes {tensor.datatype}",
                    hint=f'send "datatype": "{tensor.datatype}"',
                )
            shape = tuple(sent.shape)
            _check_shape(tensor, shape)
            given[sent.name] = _array(tensor, _flat(tensor.name, sent.data, shape), shape)
        outputs = self._all if not request.outputs else self._select([wanted.name for wanted in request.outputs])
        return self._call(given, outputs, request.id, scalar=False)

    def decode_plain(self, body: bytes) -> Call:
        """A plain request: ``{"user": 7}`` is one row without a batch dimension, ``{"user": [7, 8]}`` two rows.

        Raises:
            Invalid: with the first thing that is wrong.
        """
        request = self._parse(self._plain, body)
        given: dict[str, Array] = {}
        scalar: bool | None = None
        for name, value in request.items():
            tensor = self._known(name)
            shape = _shape_of(value, len(tensor.shape))
            single = tensor.dynamic and len(shape) == len(tensor.shape) - 1
            if scalar is not None and scalar != single:
                raise Invalid("some inputs have a batch dimension and some have not", hint="send all as lists, or none")
            scalar = single
            if single:
                value, shape = [value], (1, *shape)
            _check_shape(tensor, shape)
            given[name] = _array(tensor, _flat(name, value, shape), shape)
        return self._call(given, self._all, None, scalar=bool(scalar))

    def answer_elements(self, results: Sequence[Array]) -> int:
        """How many values the answer will hold.

        Raises:
            TooLarge: more than an answer may.
        """
        elements = sum([result.size for result in results])
        if elements > ANSWER_ELEMENTS_MAX:
            _check_answer(elements)
        return elements

    def encode(self, call: Call, results: Sequence[Array]) -> bytes:
        """The V2 answer to ``call``; data is flat, in row-major order. ``answer_elements`` comes before it."""
        encode = self._encode
        parts: list[bytes] = [self._head]
        if call.id is not None:
            parts += (b',"id":', encode(call.id))
        separator = b',"outputs":['
        for index, result in zip(call.outputs, results, strict=True):
            parts += (
                separator,
                self._output_heads[index],
                encode(result.shape),
                b',"data":',
                encode(result.ravel().tolist()) if result.size <= PIECE_ELEMENTS else self._pieces(result.ravel()),
                b"}",
            )
            separator = b","
        parts.append(b"]}")
        return b"".join(parts)

    def encode_plain(self, call: Call, results: Sequence[Array]) -> bytes:
        """The plain answer to ``call``; without a batch dimension when the request had none."""
        encode, scalar = self._encode, call.scalar
        parts: list[bytes] = []
        separator = b"{"
        for index, result in zip(call.outputs, results, strict=True):
            if result.size > PIECE_ELEMENTS:
                text = self._pieces(result[0] if scalar and self._rowed[index] else result)
            elif scalar and self._rowed[index]:
                text = encode(result.tolist()[0])
            else:
                text = encode(result.tolist())
            parts += (separator, self._plain_heads[index], text)
            separator = b","
        parts.append(b"}")
        return b"".join(parts)

    def _pieces(self, array: Array) -> bytes:
        """What ``encode(array.tolist())`` gives, piece by piece: whole, it would hold the interpreter for too long."""
        if array.size <= PIECE_ELEMENTS:
            return self._encode(array.tolist())
        step = PIECE_ELEMENTS // max(1, array.size // len(array))
        if step:  # whole rows (or single values) a piece, without the brackets around them
            parts = [self._pieces(array[start : start + step])[1:-1] for start in range(0, len(array), step)]
        else:
            parts = [self._pieces(row) for row in array]
        return b"[" + b",".join(parts) + b"]"

    def _parse(self, decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
        try:
            return decoder.decode(body)
        except RecursionError:
            raise Invalid("the JSON body is nested too deeply") from None
        except ValueError as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
            raise Invalid(f"the body is not a valid request: {error}", hint="GET / shows the form") from None

    def _known(self, name: str) -> Tensor:
        tensor = self._by_name.get(name)
        if tensor is None:
            raise Invalid(f"the model has no input {name[:100]!r}", hint="its inputs: " + ", ".join(self._by_name))
        return tensor

    def _select(self, names: list[str]) -> tuple[int, ...]:
        chosen: dict[int, None] = {}
        for name in names:
            index = self._output_index.get(name)
            if index is None:
                raise Invalid(
                    f"the model has no output {name[:100]!r}", hint="its outputs: " + ", ".join(self._output_index)
                )
            if index in chosen:
                raise Invalid(f"output {name!r} is asked for twice")
            chosen[index] = None
        return tuple(chosen)

    def _call(self, given: Mapping[str, Array], outputs: tuple[int, ...], id: str | None, *, scalar: bool) -> Call:
        if len(given) != len(self._inputs):
            missing = [tensor.name for tensor in self._inputs if tensor.name not in given]
            raise Invalid("missing input: " + ", ".join(missing), hint="GET / shows the form")
        arrays = tuple([given[tensor.name] for tensor in self._inputs])
        if self._symbols_shared:
            self._check_symbols(arrays)
        first = arrays[0].shape if arrays else ()
        rows = first[0] if first else 1
        _check_answer(rows * sum([self._row_elements[index] for index in outputs]))
        key = (outputs, *[array.shape[1:] for array in arrays])
        elements = max([array.size for array in arrays], default=0)
        return Call(arrays, rows, elements, outputs, key, id, scalar)

    def _check_symbols(self, arrays: tuple[Array, ...]) -> None:
        """A free dimension of one name has one size in a request; the first one also where it has no name."""
        sizes: dict[str, int] = {}
        for tensor, array in zip(self._inputs, arrays, strict=True):
            for axis, (symbol, size) in enumerate(zip(tensor.shape, array.shape, strict=True)):
                if isinstance(symbol, int):
                    continue
                name = symbol or ("batch" if axis == 0 else "")
                if name and sizes.setdefault(name, size) != size:
                    raise Invalid(
                        f"dimension {axis} of input {tensor.name!r} is {size}, but {name!r} is {sizes[name]} elsewhere"
                    )


class _Sent(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class _Wanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    inputs: list[_Sent]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Wanted] | None = None


def _check_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if len(shape) == len(tensor.shape):
        for size, wanted in zip(shape, tensor.shape, strict=True):
            if size <= 0 or (size != wanted and not isinstance(wanted, str)):
                break
        else:
            return
    raise Invalid(
        f"input {tensor.name!r} has shape {_short(shape)}, the model takes {tensor.public['shape']}",
        hint="-1 stands for any size of at least 1",
    )


def _flat(name: str, data: Any, shape: tuple[int, ...]) -> list[Any]:
    """The scalars of ``data``, which is flat already or nested exactly as ``shape`` says."""
    if not shape:  # a V2 tensor of rank 0 is sent as a list of one scalar, a plain one as the scalar
        data = data if type(data) is list else [data]
    wanted = math.prod(shape)
    if len(data) == wanted and (not data or type(data[0]) is not list):
        return data  # type: ignore[no-any-return]  # nested values further on fail the type check of _array
    level = [data]
    for size in shape:
        if {*map(type, level)} != {list} or {*map(len, level)} != {size}:
            raise Invalid(
                f"the data of input {name!r} do not have shape {_short(shape)} (or rows differ in length)",
                hint=f"send {wanted} values flat, or nested as the shape says",
            )
        level = list(chain.from_iterable(level))
    return level


_ACCEPTED: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
_KINDS = {"b": "true or false", "i": "integers", "u": "integers", "f": "numbers", "O": "strings"}


def _array(tensor: Tensor, flat: list[Any], shape: tuple[int, ...]) -> Array:
    dtype = tensor.dtype
    if not _ACCEPTED[dtype.kind].issuperset(map(type, flat)):
        other = sorted(
            {_JSON_NAMES.get(type(value), "values") for value in flat if type(value) not in _ACCEPTED[dtype.kind]}
        )
        raise Invalid(f"input {tensor.name!r} takes {_KINDS[dtype.kind]} ({tensor.datatype}), not {' or '.join(other)}")
    try:
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = np.array(flat, dtype=dtype)
            if not np.isfinite(array).all():
                raise OverflowError
        else:
            array = np.array(flat, dtype=dtype)
    except OverflowError:
        raise Invalid(f"input {tensor.name!r} has a value out of the range of {tensor.datatype}") from None
    return array if len(shape) == 1 else array.reshape(shape)


_JSON_NAMES: dict[type, str] = {
    bool: "booleans", int: "integers", float: "fractions", str: "strings", list: "lists",
    dict: "objects", type(None): "null",
}  # fmt: skip


def _shape_of(value: Any, rank_max: int) -> tuple[int, ...]:
    shape: list[int] = []
    while type(value) is list and len(shape) <= rank_max:
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _check_answer(elements: int) -> None:
    if elements > ANSWER_ELEMENTS_MAX:
        raise TooLarge(
            f"the answer would hold {elements} values, more than {ANSWER_ELEMENTS_MAX}",
            hint="send fewer rows in each request, or ask for fewer outputs",
        )


def _short(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"of {len(shape)} dimensions"
