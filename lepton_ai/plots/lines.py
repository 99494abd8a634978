"""Curves over one axis."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from lepton_ai.plots.canvas import canvas


def lines(
    path: str | os.PathLike[str],
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Draw each of `series`, label -> (xs, ys), into the file `path`.

    Args:
        log: both axes logarithmic.
        marks: label -> height of a dashed horizontal line (a bar to clear).

    Raises Unavailable when matplotlib is not installed.
    """
    with canvas(path, title, x, y) as axes:
        for label, (xs, ys) in series.items():
            axes.plot(list(xs), list(ys), label=label, marker="." if len(xs) < 40 else None, linewidth=1.2)
        for label, height in (marks or {}).items():
            axes.axhline(height, label=label, linestyle="--", color="black", linewidth=0.8)
        if log:
            axes.set(xscale="log", yscale="log")
