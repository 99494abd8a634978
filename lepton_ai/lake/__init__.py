"""The lake: objects by key, ACID tables with versions, SQL in a sealed worker. Importing it loads no engine.

lake = lepton_ai.lake.open("file:///data/lake")
lake.table("ratings").append(rows)
"""

from __future__ import annotations

from lepton_ai.lake.lake import Lake as Lake
from lepton_ai.lake.open import open as open
from lepton_ai.lake.query import Answer as Answer
from lepton_ai.lake.query import Limits as Limits
from lepton_ai.lake.tables import Table as Table
from lepton_ai.lake.tables import TableVersion as TableVersion

__all__ = ["Answer", "Lake", "Limits", "Table", "TableVersion", "open"]
