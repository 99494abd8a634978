"""`lepton demo`: the stages in order, the end of the cell, the scoreboard, demo.json and the exit code.

Owns the order and that nothing is left, whatever happens in between. What a stage does is in its own file.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lepton_ai import __version__
from lepton_ai.demo import cell, learn
from lepton_ai.demo.article import article
from lepton_ai.demo.endpoint import cores, endpoint
from lepton_ai.demo.interrupts import Interrupted, Interrupts
from lepton_ai.demo.kill import kill
from lepton_ai.demo.outage import outage
from lepton_ai.demo.refuse import refuse
from lepton_ai.demo.scoreboard import Scoreboard
from lepton_ai.demo.source import Source, fetched, source
from lepton_ai.demo.texts import Texts
from lepton_ai.demo.tour import INDENT, NAME, Tour
from lepton_ai.errors import Invalid
from lepton_ai.settings import default_home

STAGES: tuple[Callable[[Tour], None], ...] = (
    cell.cell, learn.lake, learn.train, article, endpoint, kill, outage, refuse,
)  # fmt: skip
MUST_STAGES_S = 60.0


def main(arguments: argparse.Namespace) -> int:
    """Run the demo with `.data`, `.keep`, `.lang` and `.out`; 0 when every must it shows was met, else 1.

    Raises LeptonError for what cannot be begun (a bad file, no download) and for a stage that broke; then too
    nothing is left. A signal ends it with 128 + its number.
    """
    texts = Texts(arguments.lang)
    with Interrupts(lambda: print(texts("end.deferred"), flush=True)) as interrupts:
        try:
            return _run(arguments, texts, interrupts)
        except Interrupted as signal:
            return 128 + signal.number


def _run(arguments: argparse.Namespace, texts: Texts, interrupts: Interrupts) -> int:
    home, out = default_home(), Path(arguments.out)
    if not os.access(out.parent, os.W_OK) or out.is_dir():
        raise Invalid(f"cannot write {out}", hint="choose another file: lepton demo --out FILE")
    board = Scoreboard(texts)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(texts("title", version=__version__, cores=cores(), memory_gib=memory_gib), flush=True)
    settings = cell.settings(home, arguments.keep)
    found = _data(arguments.data, home / "cache", texts)
    board.facts = {
        "what": "one machine, three nodes that are shares of it",
        "version": __version__, "cores": cores(), "memory_gib": round(memory_gib, 1), "cell": settings.cell,
        "data": {"name": found.name, "notice": found.notice, **found.counts()},
    }  # fmt: skip
    tour = Tour(settings, texts, board, Path(tempfile.mkdtemp(prefix="lepton-demo-")), found, interrupts.held)
    try:
        for stage in STAGES:
            stage(tour)
    except BaseException as problem:
        board.error = str(problem).strip() or type(problem).__name__
        with interrupts.ignored():
            tour.print(texts("end.interrupted" if isinstance(problem, Interrupted) else "end.removing"))
            _left(tour)
            board.write(out)
        raise
    return _finish(tour, out, keep=arguments.keep, interrupts=interrupts)


def _data(file: str | None, cache: Path, texts: Texts) -> Source:
    if file is None and not fetched(cache):
        print(texts("data.fetching"), flush=True)
    found = source(file, cache)
    if found.notice:
        print(found.notice, flush=True)
    print(texts("data.own" if found.own else "data.movielens", source=found.name, **found.counts()), flush=True)
    return found


def _finish(tour: Tour, out: Path, *, keep: bool, interrupts: Interrupts) -> int:
    """Everything after the stages: removal (or not), scoreboard, what was not shown, where the figures are."""
    board, texts = tour.board, tour.texts
    board.at_most("stages", board.stages_s, MUST_STAGES_S, "lepton demo", unit=" s")
    if keep:
        tour.client.close()
        shutil.rmtree(tour.folder, ignore_errors=True)
    else:
        with interrupts.ignored():
            tour.print(texts("end.removing"))
            left = _left(tour)
        board.at_most("left", left.count, 0, "lepton up && lepton down --purge")
    tour.print()
    tour.print(board.table())
    tour.print(texts("board.note"))
    tour.print(texts("not_shown"))
    if keep:
        _kept(tour)
    board.write(out)
    tour.print(texts("end.written", path=out))
    missed = len(board.missed)
    tour.print(texts("end.missed", count=missed) if missed else texts("end.met", seconds=board.stages_s))
    return 1 if missed else 0


def _left(tour: Tour) -> cell.Left:
    left = cell.remove(tour)
    values = {key: len(getattr(left, key)) for key in ("processes", "ports", "folders")}
    tour.print(INDENT + tour.texts("end.left", **values))
    tour.board.facts["left"] = values
    return left


def _kept(tour: Tour) -> None:
    name, url = tour.cell, tour.asked.url
    tour.print(tour.texts("end.kept", cell=name))
    curl = f"curl -s {url} -H 'Content-Type: application/json' -d {shlex.quote(tour.asked.bodies[0])}"
    for line in (
        url,
        curl,
        f"lepton ps {NAME} --cell {name}",
        f"lepton logs {NAME} --cell {name}",
        f"lepton down {name} --purge",
    ):
        tour.print(INDENT + line)
