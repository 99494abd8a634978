"""ONNX Runtime on one thread: load, warm up, measure, run.

Owns the session, what the warm-up learned about it (whether rows may be batched, whether a run is short enough for
the event loop) and the mapping of its errors. It knows nothing of HTTP or of waiting.
"""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from lepton_ai.errors import Corrupt, Failed, Invalid
from lepton_ai.serve.container import Container
from lepton_ai.serve.signature import Signature, read_signature

logger = logging.getLogger(__name__)

INLINE_S = 1e-3
"""A run expected to take less than this stays on the event loop; a hand-over to a thread costs about 50 µs."""

_PROBE_ROWS = 32
_PROBE_RUNS = 5
_SLOW_RUNS = 8
_INTEGERS = (1000, 7, 1)
"""Values of integers that are tried in a row far from zeros: whether an index may be so large, only the run tells."""

_DYNAMIC = b"DynamicQuantize"

Array = np.ndarray[Any, Any]


class Runtime:
    """A model ready to run. Not thread-safe by contract: one run at a time, as the batcher does.

    Raises:
        Corrupt: the bytes are not a model that ONNX Runtime accepts.
        Unsupported: an input has a type without a V2 form.
    """

    def __init__(self, container: Container) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(container.onnx, options, providers=["CPUExecutionProvider"])
        except _NATIVE_ERRORS as error:
            raise Corrupt(
                f"ONNX Runtime does not accept the model: {_reason(error)}",
                hint="check it with onnx.checker.check_model, and save the model again",
            ) from None
        self.signature: Signature = read_signature(self._session.get_inputs(), self._session.get_outputs())
        self._input_names = [tensor.name for tensor in self.signature.inputs]
        self._output_names = [tensor.name for tensor in self.signature.outputs]
        self._quantises = _quantises(container.onnx)
        self.batches = False
        self._fixed_s, self._element_s = INLINE_S, 0.0  # not measured: a worker thread is the safe side
        self._slow = 0

    def run(self, arrays: Sequence[Array], outputs: Sequence[int]) -> list[Array]:
        """The wanted outputs for one set of inputs.

        Raises:
            Invalid: the model refuses these values (an index out of its range).
            Failed: the run failed for another reason.
        """
        started = time.thread_time()
        try:
            results: list[Array] = self._session.run(
                [self._output_names[index] for index in outputs],
                dict(zip(self._input_names, arrays, strict=True)),
            )
        except native.InvalidArgument as error:
            raise Invalid(f"the model does not accept these values: {_reason(error)}") from None
        except _NATIVE_ERRORS as error:
            raise Failed(f"the model failed: {_reason(error)}") from None
        if self._fixed_s < INLINE_S:
            self._watch(time.thread_time() - started)
        return results

    def inline(self, elements: int) -> bool:
        """Whether a run over inputs of this many elements is short enough for the event loop."""
        return self._fixed_s + elements * self._element_s < INLINE_S

    def warm(self) -> None:
        """Run once or more on zeros, so that the first caller meets a warm model; measure time; try a batch.

        Rows may be batched when a batch gives each row the answer it gets alone, tried on rows of different
        magnitude; a graph that quantises its inputs by what is in the batch never is. A model that refuses zeros
        is served all the same, one call at a time on the worker thread.
        """
        everything = tuple(range(len(self.signature.outputs)))
        one = [tensor.example(1) for tensor in self.signature.inputs]
        try:
            self.run(one, everything)
            self.batches = (
                self.signature.dynamic and not self._quantises and self._rows_are_independent(one, everything)
            )
            self._measure(one, everything)
        except (Invalid, Failed) as error:
            logger.warning("the model cannot be warmed up with zeros, so it runs one call at a time: %s", error.message)

    def _rows_are_independent(self, zeros: list[Array], everything: tuple[int, ...]) -> bool:
        """Zeros, a small row, and rows far larger and far below: what takes its scale from the batch shows it."""
        random = np.random.default_rng(0)
        rows = [zeros, [_row(array, random, 1e-2, 1) for array in zeros]]
        try:
            alone = [self.run(row, everything) for row in rows]
            for largest in _INTEGERS:
                try:
                    rows.append([_row(array, random, 1e3, largest) for array in zeros])
                    alone.append(self.run(rows[-1], everything))
                    break
                except Invalid:  # an index beyond a table's end: a smaller one may be inside
                    rows.pop()
            if any(array.dtype.kind == "f" for array in zeros):
                rows.append([-array if array.dtype.kind == "f" else array for array in rows[-1]])
                alone.append(self.run(rows[-1], everything))
            together = self.run([np.concatenate(column) for column in zip(*rows, strict=True)], everything)
        except (Invalid, Failed):
            return False
        return all(
            result.shape[:1] == (len(rows),) and _same(result[row : row + 1], alone[row][index])
            for index, result in enumerate(together)
            for row in range(len(rows))
        )

    def _measure(self, one: list[Array], everything: tuple[int, ...]) -> None:
        """Seconds of a run = fixed + elements x slope, from CPU time, which a busy machine does not stretch."""
        few = max(array.size for array in one) if one else 0
        few_s = self._fastest(one, everything)
        if not self.batches:
            self._fixed_s, self._element_s = few_s, (few_s / few if few else 0.0)
            return
        if few_s >= INLINE_S:
            self._fixed_s = few_s
            return
        many_s = self._fastest([np.repeat(array, _PROBE_ROWS, axis=0) for array in one], everything)
        self._element_s = max(0.0, (many_s - few_s) / (few * (_PROBE_ROWS - 1)))
        self._fixed_s = few_s

    def _fastest(self, arrays: list[Array], everything: tuple[int, ...]) -> float:
        best = float("inf")
        for _ in range(_PROBE_RUNS):
            started = time.thread_time()
            self.run(arrays, everything)
            best = min(best, time.thread_time() - started)
        return best

    def _watch(self, took_s: float) -> None:
        """Real values can cost more than zeros: after some slow runs in a row the model moves to the worker."""
        self._slow = self._slow + 1 if took_s > 2 * INLINE_S else 0
        if self._slow >= _SLOW_RUNS:
            logger.warning("runs take over %.0f ms, so they move off the event loop", 2e3 * INLINE_S)
            self._fixed_s = INLINE_S


_NATIVE_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
)


def _reason(error: Exception) -> str:
    """ONNX Runtime's own sentence, without its prefix of codes and node names."""
    text = str(error).rsplit("Status Message: ", 1)[-1].strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _quantises(onnx: bytes | str) -> bool:
    """Whether the graph has DynamicQuantizeLinear or one of its fused forms: one scale for all rows of a batch.

    Operators are plain text in the file; the words elsewhere (in a comment) would cost speed, not answers.
    """
    if isinstance(onnx, bytes):
        return _DYNAMIC in onnx
    with open(onnx, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(_DYNAMIC) >= 0


def _row(zeros: Array, random: np.random.Generator, magnitude: float, largest: int) -> Array:
    """A row that differs from zeros: floats of about ``magnitude``, integers of at most ``largest``."""
    kind = zeros.dtype.kind
    if kind == "O":
        return np.full(zeros.shape, str(largest), dtype=object)
    if kind == "f":
        return np.asarray(random.standard_normal(zeros.shape) * magnitude, dtype=zeros.dtype)
    if kind == "b":
        return np.ones_like(zeros)
    largest = min(largest, np.iinfo(zeros.dtype).max)
    return np.asarray(random.integers((largest + 1) // 2, largest + 1, size=zeros.shape), dtype=zeros.dtype)


def _same(together: Array, alone: Array) -> bool:
    """Equal, up to what another order of summing does to numbers of this row's size."""
    if together.shape != alone.shape:
        return False
    if alone.dtype.kind != "f":
        return bool(np.array_equal(together, alone))
    share = 1e-2 if alone.dtype == np.float16 else 1e-4
    finite = np.abs(alone[np.isfinite(alone)]).astype(np.float64)
    return bool(np.allclose(together, alone, rtol=share, atol=share * finite.max(initial=0.0), equal_nan=True))
