"""Until a release is through or a job has ended, saying what is waited for whenever that changes.

Owns the two loops; each look is one read of the cell.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lepton_ai.client.objects import ENDED, Deployment, Job
from lepton_ai.errors import Conflict, Failed, NotFound, Timeout

LOOK_S = (0.05, 0.5)
Say = Callable[[str], None]


def released(
    look: Callable[[], Deployment], wanted: Deployment, say: Say | None, timeout_s: float | None = None
) -> Deployment:
    """The deployment once the release of `wanted` is through. Raises Failed with the last lines of its log.

    Conflict when another release is wanted meanwhile, NotFound when it was removed, Timeout after `timeout_s`.
    """
    name, release = wanted.name, wanted.release
    tell = _Teller(say)
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = LOOK_S[0]
    while True:
        now = look()
        if now.uid != wanted.uid:
            raise NotFound(f"{name} was removed while it was being deployed", hint=f"lepton ps {name}")
        if now.release != release:
            hint = f"see who deployed: lepton rollback {name} --dry-run"
            raise Conflict(f"{name}#{release} was replaced by {name}#{now.release} before it was through", hint=hint)
        rollout = now.rollout
        if now.observed >= wanted.generation and rollout.get("release") == release:
            if rollout.get("state") == "failed":
                raise _failed(now)
            if rollout.get("state") == "done" or now.state == "stopped":
                return now
        seen = now.observed >= wanted.generation
        tell(f"{name}#{release}: {(now.reason or now.state) if seen else 'recorded, the control loop is about to act'}")
        if deadline_s is not None and time.monotonic() > deadline_s:
            hint = f"it goes on: lepton ps {name}"
            raise Timeout(f"{name}#{release} was not through within {timeout_s:g} s: {now.reason}", hint=hint)
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.3, LOOK_S[1])


def ended(look: Callable[[], Job], say: Say | None, timeout_s: float | None = None) -> Job:
    """The job once it has ended, however. Raises Timeout after `timeout_s`, NotFound when it was removed."""
    tell = _Teller(say)
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = LOOK_S[0]
    while True:
        now = look()
        if now.state in ENDED:
            return now
        tell(f"{now.name}: {now.reason or now.state}")
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise Timeout(f"job {now.name} is {now.state} after {timeout_s:g} s", hint=f"lepton logs {now.name}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.3, LOOK_S[1])


def _failed(now: Deployment) -> Failed:
    rollout, name = now.rollout, now.name
    text = f"{name}#{now.release} failed: {rollout.get('reason') or 'it never became ready'}"
    if now.serving:
        text += f"; {name}#{now.serving} keeps serving"
    log = [line for item in rollout.get("log") or () for line in str(item).splitlines()]
    return Failed(text, hint=f"lepton logs {name}", details={"log": log, "release": now.release})


class _Teller:
    """Says a line only when it is another than the last."""

    def __init__(self, say: Say | None) -> None:
        self._say, self._last = say, ""

    def __call__(self, text: str) -> None:
        if self._say is not None and text != self._last:
            self._last = text
            self._say(text)
