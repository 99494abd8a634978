"""What the measurements of a running cell stand on: a cell of its own in a temporary home, with the model served.

Not a measurement itself. The model is MovieLens 100K's (or --data's), fetched through pip into .cache; the questions
are its users, and every answer is known beforehand.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai import cloud
from lepton_ai.demo.cell import look
from lepton_ai.demo.source import source
from lepton_ai.demo.traffic import SHARE, Questions, capacity
from lepton_ai.demo.trial import Offer, fields, ready
from lepton_ai.models import RecommenderModel
from lepton_ai.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
CELL, NAME = "bench", "movies"
NODES = 3
USERS = 400
QUIET_S = 60.0


def trained(path: Path | None) -> tuple[str, RecommenderModel]:
    """(name of the data, a model fitted on them)."""
    found = source(None if path is None else str(path), ROOT / ".cache")
    if found.notice:
        print(found.notice, flush=True)
    return found.name, RecommenderModel().fit(found.table)


@dataclass
class Stand:
    """A running cell with the model registered. `rows` collects what was measured."""

    settings: Settings
    folder: Path
    model: RecommenderModel
    client: Any
    version: str
    rows: list[dict[str, object]] = field(default_factory=list)

    @property
    def cell(self) -> Path:
        return self.settings.cell_dir

    def form(self, name: str = NAME, low: int = 2, high: int | None = None, **more: Any) -> dict[str, Any]:
        """A deployment of the model in the form of the API; `survive = {node = 1}` where two replicas allow it."""
        bounds = {"min": low, "max": high or low}
        return {
            "name": name,
            "model": self.version,
            "replicas": bounds,
            "survive": {"node": 1 if low > 1 else 0},
            **more,
        }

    def deploy(self, form: dict[str, Any]) -> str:
        """Deploys, waits until it serves; its URL."""
        return str(fields(self.client.deploy(form, wait=True))["url"])

    def questions(self, url: str) -> Questions:
        users = self.model.users
        return Questions.of(url, self.model, users[:: max(1, len(users) // USERS)][:USERS].tolist())

    def offer(self, url: str, *, retry: bool = False) -> Offer:
        """70 % of what a closed loop reaches now."""
        questions = self.questions(url)
        full = capacity(questions, self.folder)
        assert full.failed == 0, full.reasons
        print(f"capacity {full.rate_per_s:.0f}/s, offered {full.rate_per_s * SHARE:.0f}/s", flush=True)
        self.rows.append({"what": "capacity", "url": url, "capacity_per_s": round(full.rate_per_s)})
        return Offer(questions, full.rate_per_s * SHARE, self.folder, retry)

    def start(self) -> None:
        """Starts what is missing of the cell."""
        before = self.client
        self.client = cloud.up(CELL, settings=self.settings, nodes=NODES)
        before.close()

    def settle(self, name: str, count: int, on: int = 1, *, age_s: float = 0.0) -> dict[str, str]:
        """Waits until `count` replicas on at least `on` nodes are ready for `age_s` and all nodes are."""
        until_s = time.monotonic() + QUIET_S
        while time.monotonic() < until_s:
            found = ready(self.client, name)
            nodes = [fields(node) for node in self.client.nodes()]
            well = all(node["state"] == "ready" for node in nodes)
            if len(found) == count and len(set(found.values())) >= on and well and self._age_s(name) >= age_s:
                return found
            time.sleep(0.05)
        raise TimeoutError(f"{name}: {ready(self.client, name)} is not {count} replicas on {on} nodes")

    def _age_s(self, name: str) -> float:
        """Since when the youngest of the ready replicas is ready."""
        ready_ms = [item["ready_ms"] for item in map(fields, self.client.replicas(name)) if item["phase"] == "ready"]
        return time.time() - max(ready_ms, default=0) / 1000


@contextmanager
def stand(model: RecommenderModel, **configured: Any) -> Iterator[Stand]:
    """A cell for one measurement, `configured` otherwise than by default; afterwards nothing of it is left, or it is
    an error."""
    home = Path(tempfile.mkdtemp(prefix="lepton-bench-"))
    settings = Settings(home=home, cell=CELL, **configured)
    made: Stand | None = None
    try:
        client = cloud.up(CELL, settings=settings, nodes=NODES)
        registered = fields(client.register(NAME, model))
        made = Stand(settings, home / "load", model, client, str(registered["ref"]))
        yield made
    finally:
        if made is not None:
            made.client.close()
        cloud.down(CELL, settings=settings, purge=True)
        left = look((settings.cell_dir,), ())
        shutil.rmtree(home, ignore_errors=True)
        assert not left.count, f"the cell left {left}"
