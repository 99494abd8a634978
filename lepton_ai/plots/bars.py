"""Groups of bars, each with its range."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from lepton_ai.plots.canvas import canvas


def bars(
    path: str | os.PathLike[str],
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    x: str = "",
    y: str,
    ranges: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Draw one bar a group and series, label -> one height a group, into the file `path`.

    Args:
        ranges: label -> (lowest, highest) of each group, drawn as error bars.
        marks: label -> height of a dashed horizontal line (a bar to clear).

    Raises Unavailable when matplotlib is not installed.
    """
    width = 0.8 / max(1, len(series))
    with canvas(path, title, x, y) as axes:
        for number, (label, heights) in enumerate(series.items()):
            at = [index + (number - (len(series) - 1) / 2) * width for index in range(len(groups))]
            spans = (ranges or {}).get(label)
            error = None
            if spans is not None:
                below = [max(0.0, height - low) for height, (low, _) in zip(heights, spans, strict=True)]
                above = [max(0.0, high - height) for height, (_, high) in zip(heights, spans, strict=True)]
                error = [below, above]
            axes.bar(at, list(heights), width, label=label, yerr=error, capsize=2)
        for label, height in (marks or {}).items():
            axes.axhline(height, label=label, linestyle="--", color="black", linewidth=0.8)
        axes.set_xticks(range(len(groups)), list(groups))
