"""Figures become files, and say what is missing when they cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lepton_ai.errors import Unavailable
from lepton_ai.plots import bars, lines

PNG = b"\x89PNG"


def test_lines_write_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    lines(path, {"one": ([1, 2, 3], [3, 2, 1])}, title="t", x="x", y="y", marks={"must": 2.0}, log=True)
    assert path.read_bytes().startswith(PNG)


def test_bars_write_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    bars(path, ["a", "b"], {"us": [1.0, 2.0], "them": [2.0, 1.0]}, title="t", y="y", ranges={"us": [(0, 2), (1, 3)]})
    assert path.read_bytes().startswith(PNG)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unavailable) as caught:
        lines(tmp_path / "a.png", {}, title="t", x="x", y="y")
    assert "lepton-cloud[plots]" in caught.value.hint
    assert not list(tmp_path.iterdir())
