"""What the stages of the demo hand on to each other, and how they speak.

Owns no step of its own. Everything printed goes through here, so that it is in demo.json too.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.demo.scoreboard import Scoreboard, Stage
from lepton_ai.demo.source import Source
from lepton_ai.demo.texts import Texts
from lepton_ai.demo.traffic import Questions
from lepton_ai.settings import Settings

NAME = "movies"
TABLE = "ratings"
INDENT = "    "


@dataclass
class Tour:
    """One run of the demo. Fields below `held` are filled by the stages, in their order."""

    settings: Settings
    texts: Texts
    board: Scoreboard
    folder: Path
    """scratch: the saved model, plans of the load; removed at the end"""
    source: Source
    held: Callable[[], AbstractContextManager[None]] = nullcontext
    """entered while processes are started: Ctrl-C waits until all of them can be found again"""
    client: Any = None
    lake: Any = None
    state: Any = None
    model: Any = None
    version: str = ""
    questions: Questions | None = None
    rate_per_s: float = 0.0
    capacity_per_s: float = 0.0
    release: int = 0
    _stage: Stage | None = field(default=None, repr=False)

    @property
    def cell(self) -> str:
        return self.settings.cell

    @property
    def cell_dir(self) -> Path:
        return self.settings.cell_dir

    @property
    def asked(self) -> Questions:
        assert self.questions is not None, "the serve stage comes first"
        return self.questions

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Prints the heading, takes the time, and keeps what was said, also of a stage that fails."""
        stage = Stage(name, len(self.board.stages) + 1)
        self.board.stages.append(stage)
        self._stage = stage
        self.print(f"{stage.number} {self.texts(f'stage.{name}')}")
        started_s = time.monotonic()
        try:
            yield stage
        except BaseException as problem:
            stage.error = str(problem).strip() or type(problem).__name__
            raise
        finally:
            stage.seconds = round(time.monotonic() - started_s, 3)
            self._stage = None

    def say(self, key: str, **values: object) -> None:
        """One line of the running stage."""
        self.quote(self.texts(key, **values))

    def quote(self, text: str, *, deeper: bool = False) -> None:
        """Text as it stands (what a program printed, an answer)."""
        for line in text.splitlines():
            if self._stage is not None:
                self._stage.lines.append(line)
            self.print(textwrap.indent(line, INDENT * (2 if deeper else 1)))

    def print(self, text: str = "") -> None:
        print(text, flush=True)

    def whisper(self, text: str) -> None:
        """What is being waited for: shown to someone who watches, not part of the result."""
        if text and sys.stderr.isatty():
            print(f"{INDENT}… {text}", file=sys.stderr, flush=True)
