"""What counts as ready, when full capacity is reached, and what of a failure is shown. The cell here is a list."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import pytest

from lepton_ai.demo import refuse
from lepton_ai.demo.load import Result
from lepton_ai.demo.trial import fields, figures, ready, settled, until
from lepton_ai.errors import Failed, Unavailable


@dataclass
class Replica:
    uid: str
    node: str
    phase: str


class Client:
    def __init__(self, *replicas: object) -> None:
        self.found = list(replicas)

    def replicas(self, name: str) -> list[object]:
        if not self.found:
            raise Unavailable("no control plane")
        return self.found

    def nodes(self) -> list[object]:
        return [{"name": "node-1", "state": "ready"}]


def test_only_what_takes_requests_is_ready() -> None:
    client = Client(
        Replica("a", "node-1", "ready"),
        {"uid": "b", "node": "node-2", "phase": "ready"},
        Replica("c", "node-3", "starting"),
        Replica("d", "node-3", "draining"),
    )
    assert ready(client, "movies") == {"a": "node-1", "b": "node-2"}


def test_nobody_is_ready_while_nobody_can_say() -> None:
    assert ready(Client(), "movies") == {}


@pytest.mark.parametrize(("phase", "well"), [("exited", True), ("starting", False), ("draining", False)])
def test_settled_is_when_nothing_moves_any_more(phase: str, well: bool) -> None:
    client = Client(Replica("a", "node-1", "ready"), Replica("b", "node-1", phase))
    assert settled(client, "movies", calm_s=0.05, timeout_s=0.5) is well
    assert settled(Client(), "movies", calm_s=0.05, timeout_s=0.2) is False


def test_time_counts_from_the_shot() -> None:
    assert until(lambda: True, since_s=time.monotonic() - 100) >= 100


def test_what_never_comes_is_infinite() -> None:
    assert until(lambda: False, since_s=time.monotonic() - 1, timeout_s=0.5) == math.inf


def test_fields_of_whatever_the_client_returns() -> None:
    assert fields(Replica("a", "node-1", "ready")) == fields({"uid": "a", "node": "node-1", "phase": "ready"})


def test_figures_leave_out_the_slices() -> None:
    assert "slices" not in figures(Result(sent=3))
    assert figures(Result(sent=3))["sent"] == 3


@pytest.mark.parametrize(
    ("log", "lines"),
    [(["one", " ", "two"], ["one", "two"]), ("one\ntwo", ["one", "two"]), (None, []), ([], [])],
)
def test_the_log_of_a_refused_release(log: object, lines: list[str]) -> None:
    assert refuse._lines(Failed("no", details={"log": log})) == lines
    assert refuse._lines(None) == []
