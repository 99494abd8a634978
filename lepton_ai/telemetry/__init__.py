"""What happened: logs of ended replicas, events, and who changed what. The rows are in the store, lines on disk.

Owns no live logs (an agent streams those) and no metrics of nodes (their reports carry them).
"""

from __future__ import annotations

from lepton_ai.telemetry.audit import Audit, Entry
from lepton_ai.telemetry.events import Event, Events
from lepton_ai.telemetry.logs import LogLine, Logs

__all__ = ["Audit", "Entry", "Event", "Events", "LogLine", "Logs"]
