"""What the demo found: stages with their figures, claims with their musts, and demo.json, which holds all of it.

Owns the record and its two forms (a table for people, a file for programs); it measures nothing.
"""

from __future__ import annotations

import json
import math
import time
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.demo.texts import Texts

FORM = 1


@dataclass
class Stage:
    """One stage: its lines as printed, its figures (names carry units), its seconds."""

    name: str
    number: int
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Claim:
    """One line of the scoreboard. `met` is None where nothing must be reached (a user's own data)."""

    name: str
    measured: str
    must: str
    met: bool | None
    command: str
    value: float | None = None


class Scoreboard:
    """Collects; `missed` decides about the exit code."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self.facts: dict[str, Any] = {}
        self.stages: list[Stage] = []
        self.claims: list[Claim] = []
        self.error: str | None = None

    def at_least(self, name: str, value: float, must: float | None, command: str) -> None:
        """A claim that holds when value >= must; with None it is shown only."""
        met = None if must is None else value >= must
        self._add(name, f"{value:.4f}", "" if must is None else f"≥ {must:.3f}", met, command, value)

    def at_most(self, name: str, value: float, must: float | None, command: str, *, unit: str = "") -> None:
        """A claim that holds when value <= must; with None it is shown only. Without a unit it is a count."""
        met = None if must is None else value <= must
        form = ".2f" if unit else "g"
        limit = "" if must is None else f"≤ {must:g}{unit}" if must else f"0{unit}"
        self._add(name, f"{value:{form}}{unit}", limit, met, command, value)

    def holds(self, name: str, value: bool, command: str, measured: str = "", must: str = "") -> None:
        """A claim that is simply so, or not."""
        said = measured or self._texts("yes" if value else "no")
        self._add(name, said, must or self._texts("yes"), value, command, float(value))

    def _add(self, name: str, measured: str, must: str, met: bool | None, command: str, value: float) -> None:
        self.claims.append(Claim(name, measured, must, met, command, round(value, 6)))

    @property
    def missed(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.met is False]

    @property
    def stages_s(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def table(self) -> str:
        """Claim · measured · must · command, each line marked."""
        texts = self._texts
        rows = [["", *(texts(f"board.{key}") for key in ("claim", "measured", "must", "command"))]]
        for claim in self.claims:
            mark = {True: "✓", False: "✗", None: "·"}[claim.met]
            must = claim.must or texts("board.shown")
            rows.append([mark, texts(f"claim.{claim.name}"), claim.measured, must, claim.command])
        sizes = [max(width(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(pad(text, size) for text, size in zip(row, sizes, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def document(self) -> dict[str, Any]:
        """What demo.json holds."""
        return {
            "form": FORM,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **self.facts,
            "met": not self.missed and self.error is None,
            "error": self.error,
            "stages_s": round(self.stages_s, 2),
            "stages": [asdict(stage) for stage in self.stages],
            "scoreboard": [{**asdict(claim), "claim": Texts("en")(f"claim.{claim.name}")} for claim in self.claims],
            "not_shown": Texts("en")("not_shown"),
        }

    def write(self, path: Path) -> None:
        """The whole file at once."""
        temporary = path.with_name(path.name + ".tmp")
        document = plain(self.document())
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")
        temporary.replace(path)


def plain(value: Any) -> Any:
    """Numbers as JSON has them and people read them: four decimals, and null for what never came."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def width(text: str) -> int:
    """Columns in a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def pad(text: str, size: int) -> str:
    return text + " " * max(0, size - width(text))
