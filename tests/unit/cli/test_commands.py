"""Each command is one call on the cell, and prints what came back. The cell here only remembers what it was asked."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.cli.__main__ import main
from lepton_ai.errors import Failed, NotFound

NODE = {
    "name": "node-1",
    "state": "ready",
    "cpu_milli": 2000,
    "cpu_placed_milli": 500,
    "memory_mib": 4096,
    "memory_placed_mib": 512,
    "cpu_used_milli": 730,
    "load": {
        "u": 0.365,
        "w": 2.5,
        "s": 0.9125,
        "limit": 0.85,
        "mark": "overloaded",
        "resource": "cpu",
        "network": True,
        "stale": False,
        "parts": {"cpu": {"u": 0.365, "w": 2.5, "s": 0.9125}},
    },
    "gauges": {"cpu_stall": 0.25, "io_stall": 0.0},
}
COPY = {
    "name": "movies-1-a", "owner": "movies", "owner_kind": "deployment", "node": "node-1", "phase": "ready",
    "cpu_milli": 730, "cpu_asked_milli": 500, "memory_mib": 300, "memory_asked_mib": 512, "cpu_stall": 0.5,
    "disk_read_bytes_s": 0, "disk_write_bytes_s": 2048, "network_in_bytes_s": None, "network_out_bytes_s": None,
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "plan": {
        "summary": "new deployment movies, 2 replicas",
        "changes": ["replicas 1 -> 2"],
        "placements": [{"replica": "movies-1", "node": "node-2", "reason": "best packed of 3 that fit"}],
        "price_per_hour": 0.0421,
    },
    "deploy": {"name": "movies", "release": 3, "state": "ready", "url": "http://127.0.0.1:1/default/movies/"},
    "rollback": {"name": "movies", "release": 4, "state": "ready"},
    "releases": [{"number": 1, "note": "first"}],
    "run": {"name": "count-x1"},
    "wait": {"name": "count-x1", "state": "succeeded", "reason": ""},
    "call": {"items": ["Fargo"]},
    "ps": [
        {"name": "movies", "kind": "deployment", "state": "waiting", "replicas": "0/2", "reason": "no node has 4 cores"}
    ],
    "query": {"columns": ["n"], "rows": [[100000]], "truncated": False},
    "tables": [{"name": "ratings", "version": 1, "rows": 100000, "size_bytes": 2048}],
    "table": {"name": "ratings", "version": 1, "columns": [{"name": "user", "type": "int64"}]},
    "history": [{"version": 1, "operation": "write", "rows": 5}],
    "nodes": [NODE],
    "top": [COPY],
    "models": [{"model": "movies", "number": 1, "kind": "recommender", "metrics": {"recall@10": 0.2415}}],
    "model": {"model": "movies", "number": 1},
    "tokens": [{"name": "ci", "role": "viewer", "masked": "lta_ab…"}],
    "create_token": "lta_secret",
    "secrets": ["api-key"],
}


class FakeCloud:
    """Remembers each call; answers from ANSWERS, or raises what it was told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.raises: dict[str, Exception] = {}
        self.answers = dict(ANSWERS)
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in {
            *ANSWERS,
            "delete",
            "stop",
            "start",
            "drain",
            "undrain",
            "delete_token",
            "set_secret",
            "delete_secret",
        }:
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Any:
            options.pop("say", None)
            self.asked.append((name, args, options))
            if name in self.raises:
                raise self.raises[name]
            return self.answers.get(name)

        return call

    def logs(self, name: str, **options: Any) -> Iterator[dict[str, Any]]:
        self.asked.append(("logs", (name,), options))
        yield from self.answers.get("logs", [{"line": "hello", "replica": "", "ns": 1}])

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCloud:
    monkeypatch.setenv("LEPTON_AI_HOME", str(tmp_path))
    monkeypatch.delenv("LEPTON_AI_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return FakeCloud()


def lepton(cell: FakeCloud, *words: str) -> int:
    return main(words, connect=lambda _: cell)  # type: ignore[arg-type,return-value]


def test_deploy_prints_the_plan_then_the_release(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        lepton(
            cell,
            *[
                "deploy",
                "movies@1",
                "--replicas",
                "2..8",
                "--survive",
                "1",
                "--cpu",
                "0.5",
                "--memory",
                "1GiB",
                "--env",
                "A=1",
            ],
        )
        == 0
    )
    name, args, options = cell.asked[-1]
    assert (name, args) == ("deploy", ("movies@1",))
    assert options == {
        "replicas": (2, 8),
        "survive": 1,
        "cpu_milli": 500,
        "memory_mib": 1024,
        "env": {"A": "1"},
        "wait": True,
    }
    out = capsys.readouterr().out
    for text in (
        "new deployment movies",
        "movies-1 on node-2: best packed",
        "0.0421 USD per hour",
        "movies#3 ready",
        "url ",
    ):
        assert text in out
    assert cell.closed


def test_a_failed_release_shows_its_log_and_exits_1(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cell.raises["deploy"] = Failed(
        "movies#4 never became healthy", hint="lepton logs movies", details={"log": ["boom"]}
    )
    assert lepton(cell, "deploy", "movies") == 1
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "error: movies#4 never became healthy",
        "  | boom",
        "hint: lepton logs movies",
    ]
    assert cell.closed


@pytest.mark.parametrize(
    "words",
    [
        "deploy movies@1 --dry-run",
        "rollback movies --dry-run",
        "run true --dry-run",
        "rm movies --dry-run",
        "node drain node-1 --dry-run",
        "node undrain node-1 --dry-run",
        "token add ci --dry-run",
        "token rm ci --dry-run",
        "secret set api-key --dry-run",
        "secret rm api-key --dry-run",
    ],
)
def test_a_dry_run_asks_but_changes_nothing(cell: FakeCloud, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lepton(cell, *words.split()) == 0
    assert {name for name, _, _ in cell.asked} <= {"plan", "releases", "ps", "nodes"}
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("rm a b", [("delete", ("a",)), ("delete", ("b",))]),
        ("node drain node-1", [("drain", ("node-1",))]),
        ("token rm ci", [("delete_token", ("ci",))]),
        ("secret rm api-key", [("delete_secret", ("api-key",))]),
    ],
)
def test_what_cannot_be_undone_needs_a_yes(cell: FakeCloud, words: str, asked: list[tuple[str, Any]]) -> None:
    assert lepton(cell, *words.split()) == 2
    assert cell.asked == []
    assert lepton(cell, *words.split(), "--yes") == 0
    assert [(name, args) for name, args, _ in cell.asked] == asked


@pytest.mark.parametrize(("answer", "changed"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_the_question_at_a_terminal(
    cell: FakeCloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, changed: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert lepton(cell, "rm", "movies") == 0
    assert bool(cell.asked) == changed
    assert "remove movies? [y/N]" in capsys.readouterr().err


def test_stop_and_start_take_several_names(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert lepton(cell, "stop", "web", "train-x1", "--dry-run") == 0
    assert {name for name, _, _ in cell.asked} == {"ps"}
    assert "would stop deployment web" in capsys.readouterr().out
    cell.asked.clear()
    assert lepton(cell, "stop", "web", "train-x1") == 2
    assert cell.asked == []
    assert lepton(cell, "stop", "web", "train-x1", "--yes") == 0
    assert lepton(cell, "start", "web") == 0
    assert [(name, args) for name, args, _ in cell.asked] == [
        ("stop", ("web",)), ("stop", ("train-x1",)), ("start", ("web",)),
    ]  # fmt: skip
    assert capsys.readouterr().out == "stopped web\nstopped train-x1\nstarted web\n"


def test_whose_work_is_and_who_may_call_it(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--label", "team=a", "--label", "tier=b", "--private", "--image", "web:1"]
    assert lepton(cell, "deploy", "web.toml", *words, "--allow", "10.0.0.0/8", "--allow", "::1") == 0
    options = cell.asked[-1][2]
    assert (options["labels"], options["visibility"], options["image"]) == (
        {"team": "a", "tier": "b"},
        "private",
        "web:1",
    )
    assert options["allowlist"] == ["10.0.0.0/8", "::1"]
    start = ("--job-retries", "2", "--start-at", "2h", "--detach")
    assert lepton(cell, "run", "true", *words, *start) == 0
    options = cell.asked[-1][2]
    assert (options["labels"], options["visibility"], options["job_retries"]) == (
        {"team": "a", "tier": "b"},
        "private",
        2,
    )
    assert options["start_at_ms"] > time.time() * 1000 + 3_600_000
    capsys.readouterr()


def test_a_job_ends_with_its_own_verdict(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert lepton(cell, "run", "python -c 'print(1)'", "--retries", "2") == 0
    assert cell.asked[0] == ("run", (["python", "-c", "print(1)"],), {"retries": 2})
    assert capsys.readouterr().out == "hello\n"
    cell.answers["wait"] = {"name": "x", "state": "failed", "reason": "exit code 3"}
    assert lepton(cell, "run", "--", "python", "-c", "print(1)") == 1
    assert "failed: exit code 3" in capsys.readouterr().err
    assert lepton(cell, "run", "job.toml", "--detach") == 0
    assert cell.asked[-1] == ("run", ("job.toml",), {})


def test_call_sends_json_and_says_when_it_is_none(
    cell: FakeCloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lepton(cell, "call", "movies", '{"user": 7}') == 0
    assert cell.asked[0][1] == ("movies", {"user": 7})
    assert json.loads(capsys.readouterr().out) == {"items": ["Fargo"]}
    assert lepton(cell, "call", "movies", "{user: 7}") == 2
    assert "hint: quote it for the shell" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1]"))
    assert lepton(cell, "call", "movies", "-") == 0
    assert cell.asked[-1][1] == ("movies", [1])


def test_what_waits_says_for_what(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert lepton(cell, "ps") == 0
    assert "no node has 4 cores" in capsys.readouterr().out
    cell.answers["ps"] = []
    assert lepton(cell, "ps") == 0
    got = capsys.readouterr()
    assert got.out == ""
    assert "nothing runs here" in got.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("query SQL", "100000"),
        ("table ls", "ratings        1  100000  2.0 KiB"),
        ("table show ratings", "user    int64"),
        ("table history ratings", "ratings@1"),
        ("node ls", "node-1  ready  0.36  2.50  0.91  0.85   overloaded: cpu  0.5 of 2  0.5 of 4.0 GiB"),
        ("top", "node-1  0.36  2.50  0.91  0.85   overloaded: cpu  0.73 of 2  25%  "),
        ("top", "movies-1-a  node-1  0.73 of 0.5  300 of 512 MiB  50%    0 B/s  2.0 KiB/s  "),
        ("model ls", "recall@10 0.2415"),
        ("model show movies@1", "movies"),
        ("token ls", "lta_ab…"),
    ],
)
def test_reads_print_tables_or_json(cell: FakeCloud, words: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lepton(cell, *words.split()) == 0
    assert text in capsys.readouterr().out
    assert lepton(cell, *words.split(), "--json") == 0
    assert json.loads(capsys.readouterr().out)


def test_logs_are_lines_or_json_lines(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cell.answers["logs"] = [
        {"line": "a", "replica": "movies-1", "ns": 1},
        {"line": "b", "replica": "movies-2", "ns": 2},
    ]
    assert lepton(cell, "logs", "movies", "-n", "5", "--grep", "x") == 0
    assert cell.asked[-1][2] == {"follow": False, "lines": 5, "grep": "x"}
    assert capsys.readouterr().out == "movies-1 | a\nmovies-2 | b\n"
    assert lepton(cell, "logs", "movies", "--json") == 0
    assert [json.loads(line)["ns"] for line in capsys.readouterr().out.splitlines()] == [1, 2]


def test_a_new_token_goes_to_standard_output_alone(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert lepton(cell, "token", "add", "ci", "--role", "viewer", "--days", "7") == 0
    assert cell.asked == [("create_token", ("ci",), {"role": "viewer", "days": 7})]
    assert capsys.readouterr().out == "lta_secret\n"


def test_what_does_not_exist_is_an_error_with_a_hint(cell: FakeCloud, capsys: pytest.CaptureFixture[str]) -> None:
    cell.raises["rollback"] = NotFound("there is no deployment movees", hint="did you mean movies?")
    assert lepton(cell, "rollback", "movees", "--to", "#2") == 1
    assert cell.asked == [("rollback", ("movees", 2), {})]
    assert "hint: did you mean movies?" in capsys.readouterr().err


def test_a_secret_comes_from_where_no_shell_remembers_it(
    cell: FakeCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("s3cr3t\n"))
    assert lepton(cell, "secret", "set", "api-key") == 0
    (tmp_path / "key.txt").write_text("two\nlines\n")
    assert lepton(cell, "secret", "set", "api-key", "--file", "key.txt") == 0
    assert [args for name, args, _ in cell.asked] == [("api-key", "s3cr3t"), ("api-key", "two\nlines")]
    assert "s3cr3t" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert lepton(cell, "secret", "set", "api-key") == 2
    (tmp_path / "key.bin").write_bytes(b"\xff\xfe\x00")
    assert lepton(cell, "secret", "set", "api-key", "--file", "key.bin") == 2
    assert "hint: " in capsys.readouterr().err
    assert len(cell.asked) == 2
    assert lepton(cell, "secret", "ls") == 0
    assert "api-key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "it's"), "cannot be split into words"),
        (("rollback", "web", "--to", "other#3", "--yes"), "other#3 is no release of web"),
        (("call", "web", '{"x": NaN}'), "NaN is no JSON number"),
    ],
)
def test_words_that_mean_nothing_are_a_usage_error(
    cell: FakeCloud, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert lepton(cell, *words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "hint:" in said
    assert cell.asked == []


def test_a_release_may_be_named_with_its_deployment(cell: FakeCloud) -> None:
    assert lepton(cell, "rollback", "web", "--to", "web#3", "--yes") == 0
    assert cell.asked[-1][:2] == ("rollback", ("web", 3))
