"""Stage 4: the source text's own listing, unmodified, beside the same call with its rows passed.

Owns the listing (section 5.2 of the source text, to the letter) and how it is run: a process of its own, in a folder
that holds nothing but `recommender_model.pkl`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lepton_ai.demo.tour import Tour
from lepton_ai.demo.traffic import ROOT
from lepton_ai.errors import LeptonError

LISTING = """\
from lepton_ai.models import RecommenderModel
from lepton_ai.evaluation import recall_p_at_k
model = RecommenderModel.load('recommender_model.pkl')
def evaluate(model, test_data):
    test_ratings = []
    for i in range(len(test_data)):
        test_ratings.append(test_data[i][2])
    recalls = recall_p_at_k(model, test_ratings, k=10)
    return recalls
test_data = []
for i in range(10000):
    test_data.append([i, 1, 3.5])
recalls = evaluate(model, test_data)
print(recalls)
"""
FILE = "recommender_model.pkl"
TIMEOUT_S = 120
COMMAND = "python -m pytest -q tests/integration/models -k listing"


def article(tour: Tour) -> None:
    """Runs the listing, then its last call with whole rows; both outcomes side by side."""
    with tour.stage("article") as stage:
        tour.model.save(tour.folder / FILE)
        done = run(tour.folder)
        printed = done.stdout.strip()
        warned = [line for line in done.stderr.splitlines() if "UserWarning: " in line or line.startswith("hint: ")]
        tour.say("article.listing")
        tour.quote(printed or done.stderr.strip(), deeper=True)
        for line in warned:
            tour.quote(line.partition("UserWarning: ")[2] or line, deeper=True)
        tour.say("article.rows")
        rows = with_rows(tour.folder)
        tour.quote(str(rows), deeper=True)
        ran = done.returncode == 0 and printed.startswith("recall@10 = ")
        stage.figures.update(exit_code=done.returncode, printed=printed, warnings=warned, with_rows=str(rows))
        if not tour.source.own:
            tour.board.holds("article", ran, COMMAND, must="exit 0", measured=f"exit {done.returncode}")


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """The listing in a process of its own, in `folder`."""
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", LISTING], cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def with_rows(folder: Path) -> Any:
    """`recall_p_at_k(model, test_data)` with the listing's rows; what is wrong with them, where it cannot be said."""
    from lepton_ai.evaluation import recall_p_at_k
    from lepton_ai.models import RecommenderModel

    model = RecommenderModel.load(folder / FILE)
    try:
        return recall_p_at_k(model, [[i, 1, 3.5] for i in range(10000)], k=10)
    except LeptonError as error:
        return error
