"""How tables, sizes and errors look."""

from __future__ import annotations

import dataclasses
import json

from lepton_ai.cli import render
from lepton_ai.errors import Failed, Invalid, Unplaceable
from lepton_ai.spec.workload import Resources


def test_columns_are_aligned_numbers_to_the_right_and_wide_letters_count_two() -> None:
    text = render.table(("name", "n"), [("电影", 7), ("books", 1234), ("x", None)])
    assert text == "NAME      N\n电影      7\nbooks  1234\nx         -"


def test_control_characters_never_reach_the_terminal() -> None:
    text = render.table(("a",), [("x\x1b[31mred\nnext",)])
    assert "\x1b" not in text
    assert text.count("\n") == 1


def test_an_error_says_what_is_known_then_the_hint() -> None:
    assert render.error(Invalid("no", hint="lepton ps")) == "error: no\nhint: lepton ps"
    nodes = [{"node": f"node-{i}", "reason": "cpu 1 of 9"} for i in range(5)]
    lines = render.error(Unplaceable("no node fits", hint="ask for less", details={"nodes": nodes})).splitlines()
    assert lines[0] == "error: no node fits"
    assert lines[1] == "  node-0: cpu 1 of 9"
    assert lines[-2] == "  and 2 more nodes"
    assert lines[-1] == "hint: ask for less"
    assert len(lines) <= 6


def test_a_failing_replica_shows_its_last_twenty_lines() -> None:
    log = [f"line {i}" for i in range(30)]
    lines = render.error(Failed("movies#2 never became healthy", hint="h", details={"log": log})).splitlines()
    assert lines[1] == "  | line 10"
    assert lines[-2] == "  | line 29"


def test_sizes_and_ages() -> None:
    assert [render.size(n) for n in (0, 1023, 1536, 150 * 1024, 3 << 30, None)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "150 KiB",
        "3.0 GiB",
        "-",
    ]
    assert [render.age(1, 1 + ms) for ms in (900, 61_000, 7_200_000, 3 * 86_400_000)] == ["0s", "1m", "2h", "3d"]
    assert render.age(10_000, 1_000) == "0s"
    assert render.age(None, 5) == "-"


def test_json_of_models_dataclasses_and_numpy_like_values() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    class Scalar:
        def item(self) -> int:
            return 3

    got = json.loads(render.as_json({"r": Resources(), "p": Point(1), "s": Scalar(), "t": (1, 2), "u": "影"}))
    assert got["r"]["cpu_milli"] == 200
    assert (got["p"], got["s"], got["t"], got["u"]) == ({"x": 1}, 3, [1, 2], "影")
