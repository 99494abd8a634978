"""The demo: the main job on real data, step by step, with its measured figures. Reads well in this order:

run.py                    `main`: the stages in order, the end, the exit code
source.py dataset.py      which ratings        cell.py   the demo's own cell, and what is left of it
learn.py article.py       lake, model, the source text's listing
endpoint.py               served, asked, measured
kill.py outage.py refuse.py   shot at, with shoot.py (what to kill), trial.py (the protocol), traffic.py and load.py
texts.py scoreboard.py tour.py interrupts.py   words, record, what stages share, Ctrl-C
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lepton_ai.demo.run import main as main

__all__ = ["main"]


def __getattr__(name: str) -> object:
    if name == "main":
        from lepton_ai.demo.run import main

        return main
    raise AttributeError(f"module 'lepton_ai.demo' has no attribute {name!r}")
