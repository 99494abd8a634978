"""Models: one contract, and the kinds that keep it. A saved model is arrays and JSON, never code.

from lepton_ai.models import RecommenderModel
model = RecommenderModel().fit(table)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lepton_ai.models.model import Model as Model
    from lepton_ai.models.recommender import RecommenderModel as RecommenderModel
    from lepton_ai.models.registry import ModelVersion as ModelVersion
    from lepton_ai.models.registry import Registry as Registry

_PUBLIC = {
    "Model": "lepton_ai.models.model",
    "RecommenderModel": "lepton_ai.models.recommender",
    "ModelVersion": "lepton_ai.models.registry",
    "Registry": "lepton_ai.models.registry",
}
__all__ = ["Model", "ModelVersion", "RecommenderModel", "Registry"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lepton_ai.models' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
