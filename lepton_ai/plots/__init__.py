"""Every figure, drawn the same way for benches, notebooks and the command line. matplotlib is imported when drawn.

Needs the extra `plots`. A figure is a file: `lines(path, ...)`, `bars(path, ...)`.
"""

from lepton_ai.plots.bars import bars
from lepton_ai.plots.lines import lines

__all__ = ["bars", "lines"]
