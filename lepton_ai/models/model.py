"""The contract of every model: fit, predict, evaluate, export, save, load.

Owns the saving and the choice of the class by the file's `kind`; the kinds live in sibling files. A model file is
a `container.Container`: loading one never runs code from it.
"""

from __future__ import annotations

import abc
import importlib
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lepton_ai.errors import Corrupt, Invalid
from lepton_ai.evaluation import RecallPrecision, Triples, recall_p_at_k
from lepton_ai.models.container import Container

_KINDS = {"recommender": ("lepton_ai.models.recommender", "RecommenderModel")}


class Model(abc.ABC):
    """A thing that learns from a table and answers requests. `metrics` and `lineage` travel in its file."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.lineage: dict[str, Any] = {}
        self.protocol: dict[str, Any] = {}

    @abc.abstractmethod
    def fit(self, data: Any) -> Self:
        """Learns from the data; returns the model itself. Raises Invalid for data it cannot use."""

    @abc.abstractmethod
    def predict(self, users: Any, k: int = 10) -> Any:
        """Answers a batch of inputs. Raises Invalid before the first fit."""

    @property
    @abc.abstractmethod
    def recorded(self) -> Triples | None:
        """The pairs held out when the model was fitted."""

    @abc.abstractmethod
    def seen(self, users: Any, items: Any) -> NDArray[np.bool_]:
        """For each pair, whether it was part of training."""

    @property
    @abc.abstractmethod
    def signature(self) -> dict[str, Any]:
        """Inputs and outputs of the exported graph: {"inputs": [{"name", "datatype", "shape"}], "outputs": […]}.

        `datatype` is a word of the Open Inference Protocol (INT64, FP32, BYTES, BOOL); -1 is the batch.
        """

    @abc.abstractmethod
    def export(self) -> bytes:
        """The model as one ONNX graph with the inputs and outputs of `signature`."""

    @abc.abstractmethod
    def _state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """(settings as JSON, arrays) that `_restore` needs."""

    @classmethod
    @abc.abstractmethod
    def _restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The model of `_state`. KeyError, TypeError and ValueError mean that the file is damaged."""

    def evaluate(self, test: Any = None, k: int = 10, relevant: float | None = None) -> RecallPrecision:
        """`evaluation.recall_p_at_k(self, test, k, relevant)`; without a test: on the recorded pairs."""
        return recall_p_at_k(self, test, k, relevant)

    def container(self) -> Container:
        """What `save` writes."""
        settings, arrays = self._state()
        manifest = {
            "kind": self.kind,
            "settings": settings,
            "signature": self.signature,
            "protocol": self.protocol,
            "metrics": self.metrics,
            "lineage": self.lineage,
        }
        return Container(manifest, arrays, self.export())

    def save(self, path: str | Path) -> Path:
        """Writes the model to `path`, whatever its ending. Raises DiskFull or Invalid; nothing half is kept."""
        return self.container().save(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model saved at `path`. Raises NotFound; Invalid for a pickle or another kind; Corrupt."""
        return cls.of(Container.load(path), str(path))

    @classmethod
    def of(cls, container: Container, name: str = "model") -> Self:
        """The model in a container that was read already."""
        kind = container.manifest["kind"]
        if kind not in _KINDS:
            raise Invalid(f"{name} holds a model of unknown kind {kind!r}", hint="update: pip install -U lepton-cloud")
        module, attribute = _KINDS[kind]
        found: type[Model] = getattr(importlib.import_module(module), attribute)
        if not issubclass(found, cls):
            hint = f"use {found.__name__}.load(path)"
            raise Invalid(f"{name} holds a {found.__name__}, not a {cls.__name__}", hint=hint)
        try:
            model = found._restore(container.manifest["settings"], container.arrays)
            model.metrics = dict(container.manifest["metrics"])
            model.lineage = dict(container.manifest["lineage"])
            model.protocol = dict(container.manifest["protocol"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Corrupt(f"{name} does not hold a whole {kind}: {error}", hint="save the model again") from None
        return model
