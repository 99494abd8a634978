"""The residual network: its weights, and the ONNX file they travel in.

Owns the form of the network; what it is fed is `features`, how it learns is `learn`. One hidden layer beside a straight
line from the inputs, 34 -> 160 -> 2 figures a horizon: what to add to the naive median and to the naive upper
quantile, in units of the window's spread. The outputs begin at zero, so a network that has learned nothing is the
naive rule. A file: features (n, 34) -> residuals (n, 2 * horizons), medians first; its metadata names the horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ai.errors import Corrupt
from lepton_ai.scheduler.features import COUNT

Array = NDArray[np.float32]

HORIZONS = (1, 5, 15)
"""Steps ahead that the shipped network was trained for; between them residuals are interpolated."""
FAR = 5.0
"""An input counts at most so many standard deviations from the mean of the training windows."""
BYTES_MAX = 200_000


@dataclass(frozen=True, slots=True)
class Weights:
    """Everything learned, float32. `mean`, `deviation`: (features,) of the training windows; `hidden` (features,
    units), `bias` (units,); `out` (units, outputs); `line` (features, outputs); `shift` (outputs,)."""

    mean: Array
    deviation: Array
    hidden: Array
    bias: Array
    out: Array
    line: Array
    shift: Array
    horizons: tuple[int, ...] = HORIZONS

    def arrays(self) -> dict[str, Array]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "horizons"}


def normal(weights: Weights, inputs: Array) -> Array:
    """The inputs as the layers see them."""
    found: Array = np.clip((inputs - weights.mean) / weights.deviation, -FAR, FAR)
    return found


def forward(weights: Weights, inputs: Array) -> Array:
    """Residuals (n, 2 * horizons) of features (n, COUNT), in numpy: the same figures as the ONNX file gives."""
    seen = normal(weights, inputs)
    units = np.maximum(seen @ weights.hidden + weights.bias, np.float32(0.0))
    found: Array = units @ weights.out + seen @ weights.line + weights.shift
    return found


def joined(members: Sequence[Weights]) -> Weights:
    """The mean of several networks that share `mean` and `deviation`, as one network with all their units."""
    share = np.float32(1.0 / len(members))
    return replace(
        members[0],
        hidden=np.concatenate([member.hidden for member in members], axis=1),
        bias=np.concatenate([member.bias for member in members]),
        out=np.concatenate([member.out for member in members]) * share,
        line=np.sum([member.line for member in members], axis=0) * share,
        shift=np.sum([member.shift for member in members], axis=0) * share,
    )


def pack(weights: Weights) -> bytes:
    """The ONNX file. Equal weights give equal bytes."""
    from onnx import TensorProto, checker, helper, numpy_helper

    outputs = weights.out.shape[1]
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["moved"]),
        helper.make_node("Div", ["moved", "deviation"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "low", "high"], ["seen"]),
        helper.make_node("Gemm", ["seen", "hidden", "bias"], ["raw"]),
        helper.make_node("Relu", ["raw"], ["units"]),
        helper.make_node("Gemm", ["units", "out", "shift"], ["bent"]),
        helper.make_node("MatMul", ["seen", "line"], ["straight"]),
        helper.make_node("Add", ["bent", "straight"], ["residuals"]),
    ]
    constants = {**weights.arrays(), "low": np.array(-FAR, np.float32), "high": np.array(FAR, np.float32)}
    graph = helper.make_graph(
        nodes,
        "monitor",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["series", COUNT])],
        [helper.make_tensor_value_info("residuals", TensorProto.FLOAT, ["series", outputs])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="lepton_ai")
    helper.set_model_props(model, {"horizons": ",".join(str(step) for step in weights.horizons)})
    checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def unpack(data: bytes) -> Weights:
    """The weights in an ONNX file that `pack` made. Raises Corrupt for any other."""
    from onnx import load_from_string, numpy_helper

    try:
        model = load_from_string(data)
        held = {item.name: numpy_helper.to_array(item).astype(np.float32) for item in model.graph.initializer}
        horizons = _horizons({item.key: item.value for item in model.metadata_props})
        names = [field.name for field in fields(Weights) if field.name != "horizons"]
        return Weights(**{name: held[name] for name in names}, horizons=horizons)
    except Exception as error:
        # protobuf raises classes of its own for bytes it cannot read; all mean the same here
        raise Corrupt(f"no network of this form: {error!r}", hint="make one with: python bench/train.py") from error


def shipped() -> bytes:
    """The network that ships with the package."""
    return (files("lepton_ai.scheduler") / "monitor.onnx").read_bytes()


class Network:
    """An ONNX file ready to run, on one thread: 1,000 nodes take a fraction of a millisecond."""

    def __init__(self, data: bytes) -> None:
        """Raises Corrupt when `data` is no network of this form."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self.horizons = _horizons(self._session.get_modelmeta().custom_metadata_map)
            probe = self(np.zeros((1, COUNT), dtype=np.float32))
        except Exception as error:
            # onnxruntime raises classes of its own for each kind of bad file; all mean the same here
            raise Corrupt(f"no network of this form: {error}", hint="make one with: python bench/train.py") from error
        if probe.shape != (1, 2, len(self.horizons)) or not np.isfinite(probe).all():
            raise Corrupt(f"the network answers {probe.shape}", hint="make one with: python bench/train.py")

    def __call__(self, inputs: Array) -> NDArray[np.float64]:
        """Residuals (n, 2, horizons): [:, 0] to the median, [:, 1] to the upper quantile."""
        (found,) = self._session.run(["residuals"], {"features": inputs})
        return np.asarray(found, dtype=np.float64).reshape(len(inputs), 2, len(self.horizons))


def _horizons(metadata: dict[str, str]) -> tuple[int, ...]:
    return tuple(int(step) for step in metadata["horizons"].split(","))
