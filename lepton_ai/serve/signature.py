"""What a model takes and gives: tensors with a V2 datatype and a shape.

Owns the table of datatypes (V2 name, numpy type, ONNX Runtime's name, the JSON types accepted). It reads no file and
runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_ai.errors import Unsupported


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output. A dimension is a size, or the name of a free one ("" when it has no name)."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @property
    def dynamic(self) -> bool:
        """Whether the first dimension is free, so that rows can be added to a batch."""
        return bool(self.shape) and isinstance(self.shape[0], str)

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES[self.datatype]

    @property
    def public(self) -> dict[str, object]:
        """The V2 form: a free dimension is -1."""
        return {
            "name": self.name,
            "datatype": self.datatype,
            "shape": [-1 if isinstance(d, str) else d for d in self.shape],
        }

    def example(self, rows: int) -> np.ndarray[Any, Any]:
        """Zeros (or empty strings) with ``rows`` rows; other free dimensions are 1."""
        shape = [(rows if axis == 0 else 1) if isinstance(d, str) else d for axis, d in enumerate(self.shape)]
        if self.datatype == "BYTES":
            return np.full(shape, "", dtype=object)
        return np.zeros(shape, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model, in its own order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def dynamic(self) -> bool:
        """Whether every tensor has a free first dimension (necessary, not sufficient, for batching)."""
        return bool(self.inputs) and all(tensor.dynamic for tensor in (*self.inputs, *self.outputs))

    @property
    def row_elements(self) -> int:
        """Elements of one row of the first input, free dimensions counted as 1."""
        first = self.inputs[0].shape if self.inputs else ()
        return math.prod(d for d in first if isinstance(d, int)) or 1


DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
"""V2 datatypes with a JSON form, and their numpy types (BF16 has neither)."""

_ORT = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def read_signature(inputs: Sequence[Any], outputs: Sequence[Any]) -> Signature:
    """From ONNX Runtime's node arguments. Outputs that are not tensors (a map per row) are left out.

    Raises:
        Unsupported: an input type has no V2 form, or no output is a tensor.
    """
    for arg in inputs:
        if arg.type not in _ORT:
            raise Unsupported(
                f"input {arg.name!r} of the model has type {arg.type}, which V2 JSON cannot carry",
                hint="export the model with inputs of " + ", ".join(sorted(_ORT)),
            )
    kept = tuple(_tensor(arg) for arg in outputs if arg.type in _ORT)
    if not kept:
        raise Unsupported(
            "the model has no tensor output: " + ", ".join(f"{arg.name} is {arg.type}" for arg in outputs),
            hint="scikit-learn models: export with options={'zipmap': False}",
        )
    return Signature(tuple(_tensor(arg) for arg in inputs), kept)


def _tensor(arg: Any) -> Tensor:
    shape = tuple(d if isinstance(d, int) and d >= 0 else (d if isinstance(d, str) else "") for d in arg.shape or [])
    return Tensor(str(arg.name), _ORT[arg.type], shape)
