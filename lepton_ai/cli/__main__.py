"""`lepton` and `python -m lepton_ai.cli`: parse, run one command, and turn every error into words and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. A traceback only with LEPTON_AI_DEBUG=1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lepton_ai.cli.grammar import Usage, parse
from lepton_ai.errors import LeptonError

if TYPE_CHECKING:
    from lepton_ai.cli.session import Connect


def main(argv: Sequence[str] | None = None, *, connect: Connect | None = None) -> int:
    """Run one command line and return its exit code. `connect` is for tests: it makes the cell to talk to."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words, connect)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough (| head): not a failure; nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if os.environ.get("LEPTON_AI_DEBUG") == "1":
            raise
        return _explain(problem)


def _run(words: list[str], connect: Connect | None) -> int:
    try:
        arguments = parse(words)
    except SystemExit:  # help or the version was printed
        return 0
    import importlib

    from lepton_ai.cli.session import Session

    module, _, function = arguments.handler.partition(":")
    session = Session(arguments, connect)
    try:
        code = getattr(importlib.import_module(f"lepton_ai.cli.{module}"), function)(session)
    finally:
        session.close()
    sys.stdout.flush()
    return int(code or 0)


def _explain(problem: Exception) -> int:
    from lepton_ai.cli import render

    if isinstance(problem, LeptonError):
        _complain(render.error(problem))
        return 2 if isinstance(problem, Usage) else 1
    if isinstance(problem, OSError) and problem.strerror:
        where = f"{problem.filename}: " if problem.filename else ""
        _complain(f"error: {where}{problem.strerror}\nhint: lepton doctor says what this machine lacks")
        return 1
    cause = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
    _complain(f"error: internal: {type(problem).__name__}{': ' if cause else ''}{cause[:300]}")
    _complain("hint: this is a bug; LEPTON_AI_DEBUG=1 before the same command shows where, for a report")
    return 1


def _complain(text: str) -> None:
    try:
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


if __name__ == "__main__":
    sys.exit(main())
