"""Requests against a deployment while something happens to it: the load generator as a process of its own.

Owns the plan of what is asked (each answer is known beforehand and checked) and the process; what happens meanwhile
is the caller's. The generator shares the machine with what it measures: `capacity` is what all of it does together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from lepton_ai.demo.load import Plan, Result
from lepton_ai.errors import Failed

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.70
"""of the capacity: what the open loop offers"""
LONGEST_S = 120.0
START_S = 30.0


@dataclass(frozen=True)
class Questions:
    """What is asked of `url`, and what every answer must hold under the key `check`."""

    url: str
    bodies: tuple[str, ...]
    expected: tuple[Any, ...]
    check: str = "items"
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, model: Any, users: Sequence[Any]) -> Questions:
        """One question a user; the answers are the model's own, computed by numpy in this process."""
        items = model.predict(list(users), k=10).items.tolist()
        return cls(url, tuple(json.dumps({"user": user}, ensure_ascii=False) for user in users), tuple(items))


class Traffic:
    """A running load; use it in a `with`. Leaving without `stop` ends it and forgets what it measured."""

    def __init__(
        self,
        questions: Questions,
        folder: Path,
        *,
        rate_per_s: float = 0.0,
        connections: int = 64,
        duration_s: float = LONGEST_S,
        retry: bool = False,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._out = folder / "load.json"
        self._out.unlink(missing_ok=True)
        plan = Plan(
            questions.url, list(questions.bodies), list(questions.expected), questions.check, str(self._out),
            rate_per_s, connections, duration_s, retry, headers=dict(questions.headers),
        )  # fmt: skip
        path = folder / "plan.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(plan)), "utf-8")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
        # A session of its own: Ctrl-C is for the demo, which then ends the load itself.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lepton_ai.demo.load", str(path)], env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._started = False

    def __enter__(self) -> Traffic:
        assert self._process.stdout is not None
        try:
            self._started = self._process.stdout.readline().strip() == b"started"
            if not self._started:
                raise self._failed()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def stop(self) -> Result:
        """Ends the load once what is in flight was answered; what it measured."""
        if self._process.poll() is None:
            self._process.terminate()
        return self.result()

    def result(self) -> Result:
        """Waits until the load's own time is over; what it measured. Raises Failed when it could not run.

        A run that sent nothing is one too: none of its requests failed, and that says nothing.
        """
        self._process.wait(LONGEST_S + 60)
        try:
            result = Result(**json.loads(self._out.read_text("utf-8")))
        except (OSError, ValueError):
            raise self._failed() from None
        if not result.sent:
            raise Failed("the load generator sent no request", hint="run: lepton doctor")
        return result

    def _failed(self) -> Failed:
        assert self._process.stderr is not None
        self._process.kill()
        said = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return Failed(f"the load generator ended: {said[-1] if said else 'without a word'}", hint="run: lepton doctor")

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def capacity(questions: Questions, folder: Path, *, connections: int = 32, duration_s: float = 2.5) -> Result:
    """A closed loop: as many answers a second as there can be while the generator shares the machine."""
    with Traffic(questions, folder, connections=connections, duration_s=duration_s) as traffic:
        return traffic.result()
