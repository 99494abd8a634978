"""What may be typed, and how a typing error is answered."""

from __future__ import annotations

import argparse
from datetime import datetime

import pytest

from lepton_ai.cli import grammar, values
from lepton_ai.cli.__main__ import main
from lepton_ai.cli.grammar import COMMANDS, GROUPS, Usage, parse


@pytest.mark.parametrize(
    ("typed", "error", "hint"),
    [
        ("deplyo movies", "unknown command 'deplyo'", "did you mean: lepton deploy"),
        ("node lss", "unknown command 'lss'", "did you mean: lepton node ls"),
        ("xyzzy", "unknown command 'xyzzy'", "lepton --help lists the commands"),
        ("deploy x --relicas 2", "lepton deploy has no flag --relicas", "did you mean --replicas?"),
        ("deploy x --relicas=2", "lepton deploy has no flag --relicas", "did you mean --replicas?"),
        ("--jsn ps", "lepton ps has no flag --jsn", "did you mean --json?"),
        ("ps --xyzzy", "lepton ps has no flag --xyzzy", "lepton ps --help lists the flags"),
        ("query", "lepton query needs SQL", 'lepton query "select count(*) from ratings"'),
        ("node", "a command is missing", "lepton node --help"),
        ("ps a b", "lepton ps takes no further argument 'b'", "lepton ps [--all] [--json] [NAME]"),
        ("demo --lang fr", "--lang cannot be 'fr'", "use one of: en, zh"),
        ("token add x --role admn", "--role cannot be 'admn'", "did you mean admin?"),
        ("deploy x --replicas 5..2", "--replicas: '5..2' has its smaller bound last (use 2..5)", None),
        ("deploy x --memory much", "--memory: 'much' is not a size (use 512MiB or 2GiB)", None),
        ("deploy x --memory 0", "--memory: '0' is not a size (use 512MiB or 2GiB)", None),
        ("deploy x --cpu=-4", "--cpu: '-4' is not a number of cores (use 2 or 0.5)", None),
        ("deploy x --cpu nan", "--cpu: 'nan' is not a number of cores (use 2 or 0.5)", None),
        ("deploy x --cpu inf", "--cpu: 'inf' is not a number of cores (use 2 or 0.5)", None),
        ("run --cpu 0.0001 x", "--cpu: '0.0001' is not a number of cores (use 2 or 0.5)", None),
        ("deploy x --env A", "--env/-e: 'A' is not KEY=VALUE", None),
        ("logs x -n 0", "--lines/-n: '0' is not a whole number of at least 1", None),
        ("rollback x --to first", "--to: 'first' is not a release (use 3 or movies#3)", None),
        ("deploy x --replicas", "--replicas: expected one argument", None),
    ],
)
def test_typing_errors_are_answered(typed: str, error: str, hint: str | None) -> None:
    with pytest.raises(Usage) as caught:
        parse(typed.split())
    assert caught.value.message.replace("--env:", "--env/-e:") == error
    assert caught.value.hint
    assert hint is None or caught.value.hint == hint


def test_a_flag_is_never_guessed_from_its_beginning() -> None:
    with pytest.raises(Usage):
        parse(["deploy", "x", "--repl", "2"])


def test_what_is_typed_arrives() -> None:
    got = parse(
        [
            "deploy",
            "movies@1",
            "--name",
            "movies",
            "--replicas",
            "2..8",
            "--survive",
            "1",
            "--memory",
            "1GiB",
            "--env",
            "A=b=c",
            "--env",
            "D=",
            "--yes",
        ]
    )
    assert (got.source, got.name, got.replicas, got.survive, got.memory) == ("movies@1", "movies", (2, 8), 1, 1024)
    assert got.env == [("A", "b=c"), ("D", "")]
    assert got.yes
    assert not got.dry_run
    assert not hasattr(got, "cell")
    assert parse(["ps", "--cell", "b"]).cell == "b"


def test_the_words_of_a_job_are_left_alone() -> None:
    assert parse(["run", "--name", "x", "--", "python", "-c", "print(1)", "--json"]).command_line[-3:] == [
        "-c",
        "print(1)",
        "--json",
    ]
    assert parse(["run", "python -c 'print(1)'"]).command_line == ["python -c 'print(1)'"]


@pytest.mark.parametrize(
    ("text", "mib"), [("512", 512), ("512MiB", 512), ("2GiB", 2048), ("1.5g", 1536), ("1T", 1 << 20)]
)
def test_sizes(text: str, mib: int) -> None:
    assert grammar.mebibytes(text) == mib


def test_releases_and_bounds() -> None:
    assert [grammar.release(text) for text in ("3", "#3", "movies#3")] == [("", 3), ("", 3), ("movies", 3)]
    assert [values.cores(text) for text in ("2", "0.5", ".001", "1.")] == [2000, 500, 1, 1000]
    assert [grammar.bounds(text) for text in ("2", "0..8")] == [(2, 2), (0, 8)]
    with pytest.raises(argparse.ArgumentTypeError):
        grammar.bounds("2..")


def test_every_command_is_shown_explained_and_real(capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command.name} " in shown
        assert command.group in GROUPS
        module, _, function = command.handler.partition(":")
        assert callable(getattr(importlib.import_module(f"lepton_ai.cli.{module}"), function))
        assert main([*command.path, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: lepton {command.name}")
        assert ("--json" in text) == (command.kind == "read")
        assert ("--dry-run" in text and "--yes" in text) == (command.kind == "change")


def test_the_commands_of_the_design_are_there() -> None:
    words = {command.path[0] for command in COMMANDS}
    assert {
        *[
            "up",
            "down",
            "demo",
            "doctor",
            "deploy",
            "rollback",
            "run",
            "call",
            "ps",
            "logs",
            "rm",
            "query",
            "node",
            "model",
            "token",
            "config",
            "table",
        ]
    } <= words


def test_help_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from lepton_ai import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lepton {__version__}\n"


def test_a_moment_is_a_date_or_from_now() -> None:
    assert values.moment("90s", 1000.0) == 1_090_000
    assert values.moment("2h", 0.0) == 7_200_000
    assert values.moment("2030-01-31T13:10+00:00") == 1_896_095_400_000
    assert values.moment("2030-01-31T14:10+01:00") == 1_896_095_400_000
    assert values.moment("2030-01-31 13:10") == round(datetime(2030, 1, 31, 13, 10).timestamp() * 1000)
    for wrong in ("soon", "", "13:10", "2030-02-31 13:10", "99999999h", "2h30m"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a time"):
            values.moment(wrong)


def test_a_weight_is_a_number_that_a_share_can_have() -> None:
    assert [values.weight(text) for text in ("2", "0.01", "1e2")] == [2.0, 0.01, 100.0]
    for wrong in ("nan", "inf", "0", "-1", "101", "much", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=r"use 0\.01 to 100"):
            values.weight(wrong)
