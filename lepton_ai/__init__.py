"""An AI cloud that a person can own. The public names, loaded when first used.

import lepton_ai as lepton
cloud = lepton.up()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lepton_ai.client import Cloud as Cloud
    from lepton_ai.cloud import attach as attach
    from lepton_ai.cloud import down as down
    from lepton_ai.cloud import up as up
    from lepton_ai.errors import LeptonError as LeptonError
    from lepton_ai.models import Model as Model
    from lepton_ai.models import RecommenderModel as RecommenderModel

_PUBLIC = {
    "up": "lepton_ai.cloud",
    "down": "lepton_ai.cloud",
    "attach": "lepton_ai.cloud",
    "Cloud": "lepton_ai.client",
    "LeptonError": "lepton_ai.errors",
    "Model": "lepton_ai.models",
    "RecommenderModel": "lepton_ai.models",
}
__all__ = ["Cloud", "LeptonError", "Model", "RecommenderModel", "__version__", "attach", "down", "up"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lepton_ai' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
