"""A cell over HTTP: `Cloud`, and the objects it returns.

cloud.py    Cloud: every verb            objects.py  what comes back     source.py  a file, a model, a dict -> a form
http.py     requests, patience, errors   specfile.py TOML, with lines    wait.py    until a release or job is through
"""

from __future__ import annotations

from lepton_ai.client.cloud import Cloud
from lepton_ai.client.objects import (
    Answer,
    CellInfo,
    Deployment,
    Event,
    Job,
    LogLine,
    ModelVersion,
    Node,
    Plan,
    Release,
    Replica,
    Row,
    Table,
    TableVersion,
    Token,
)

__all__ = [
    "Answer", "CellInfo", "Cloud", "Deployment", "Event", "Job", "LogLine", "ModelVersion", "Node", "Plan", "Release",
    "Replica", "Row", "Table", "TableVersion", "Token",
]  # fmt: skip
