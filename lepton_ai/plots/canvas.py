"""An empty figure in the house's style, and how it becomes a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lepton_ai.errors import Unavailable

SIZE_INCH = (8.0, 4.5)


@contextmanager
def canvas(path: str | os.PathLike[str], title: str, x: str, y: str) -> Iterator[Any]:
    """Axes to draw on; written to `path` (PNG, SVG or PDF by its ending) when the block ends well.

    Raises Unavailable when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Unavailable("figures need matplotlib", hint="run: pip install 'lepton-cloud[plots]'") from None
    # The figure is made without pyplot: no window, no global state, safe in a server's thread.
    figure = Figure(figsize=SIZE_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    yield axes
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
