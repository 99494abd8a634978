"""A `lepton` that types its words at a real API in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.cli.__main__ import main

Lepton = Callable[..., int]


@pytest.fixture
def lepton(stand: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lepton:
    monkeypatch.setenv("LEPTON_AI_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    url = stand.serve().url

    def run(*words: str) -> int:
        return main(words, connect=lambda _: stand.cloud(url))

    return run
