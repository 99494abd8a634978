"""The readers of the public traces, and the rolling evaluation, that the measurements in bench/ share."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lepton_ai.errors import Invalid
from lepton_ai.scheduler.forecast import Forecaster

BENCH = Path(__file__).resolve().parents[3] / "bench"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,100,10
2023-11-16 18:17:05.0319600,200,20
2023-11-16 18:17:14.9799600,50,5
"""


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import traces

    return traces


@pytest.fixture
def rolling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import rolling

    return rolling


def file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    packed = {".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(text.encode()))
    return path


def test_kinds_are_told_apart_by_their_columns(traces: ModuleType, tmp_path: Path) -> None:
    np.savez(tmp_path / "day.npz", cpu=np.ones((3, 288), np.uint8), names=np.array(["a", "b", "c"]))
    assert traces.kind(tmp_path / "day.npz") == "hosts"
    for number, (text, kind) in enumerate(
        (
            ("timestamp,value\n", "values"),
            (AZURE, "requests"),
            ("t,tps,norm\n", "minutes"),
            ("sn,cpu_milli,memory_mib,gpu,model\n", "nodes"),
            ("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\n", "pods"),
            ("workload,sc_policy,tune,seed,total_gpus,0,1\n", "published"),
        )
    ):
        for ending in ("csv", "csv.xz", "csv.gz"):
            assert traces.kind(file(tmp_path, f"{number}.{ending}", text)) == kind


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01\x02", "PK no archive"])
def test_other_files_are_refused_with_what_was_found(traces: ModuleType, tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid) as caught:
        traces.series(file(tmp_path, "other.csv", text))
    assert "other.csv" in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_cut_off_is_refused(traces: ModuleType, tmp_path: Path) -> None:
    whole = lzma.compress(b"timestamp,value\n" + b"2014-02-14 14:30:00,1.5\n" * 4000)
    (tmp_path / "cut.csv.xz").write_bytes(whole[: len(whole) // 2])
    for path in (tmp_path / "cut.csv.xz", tmp_path / "none.csv"):
        with pytest.raises(Invalid) as caught:
            traces.values(path)
        assert caught.value.hint
    with pytest.raises(Invalid):
        traces.files([tmp_path / "none"])


def test_a_line_that_is_no_row_is_named(traces: ModuleType, tmp_path: Path) -> None:
    path = file(tmp_path, "values.csv", "timestamp,value\n2014-02-14 14:30:00,1.5\n2014-02-14 14:35:00\n")
    with pytest.raises(Invalid, match="line 3"):
        traces.values(path)
    with pytest.raises(Invalid, match="no column value"):
        traces.values(file(tmp_path, "other.csv", "timestamp,amount\n2014-02-14 14:30:00,1.5\n"))
    with pytest.raises(Invalid, match="no rows"):
        traces.values(file(tmp_path, "empty.csv", "timestamp,value\n"))


def test_values_stand_on_an_even_grid(traces: ModuleType, tmp_path: Path) -> None:
    rows = ["00:00:00,1", "00:15:00,5", "00:05:00,2", "00:05:00,4", "00:20:00,6"]  # out of order, a double, a gap
    text = "timestamp,value\n" + "".join(f"2014-04-10 {row}\n" for row in rows)
    step_s, found = traces.values(file(tmp_path, "elb.csv.xz", text))
    assert step_s == 300.0
    assert np.array_equal(found, [1.0, 3.0, np.nan, 5.0, 6.0], equal_nan=True)


def test_requests_are_counted_in_whole_steps(traces: ModuleType, tmp_path: Path) -> None:
    path = file(tmp_path, "azure_code.csv", AZURE)
    read = traces.requests(path)
    assert read.times_s == pytest.approx([0.0, 1.052, 11.0])
    assert read.context.tolist() == [100.0, 200.0, 50.0]
    arrivals, tokens = traces.series(path)
    assert (arrivals.data, tokens.data, arrivals.step_s) == ("azure-code", "azure-code", 5.0)
    assert arrivals.values.tolist() == [[0.4, 0.0]]  # the third, at 11 s, is in a step that is not whole
    assert tokens.values.tolist() == [[330.0 / 5.0, 0.0]]


def test_a_minute_that_is_missing_had_nothing(traces: ModuleType, tmp_path: Path) -> None:
    path = file(tmp_path, "burst.csv.xz", "t,tps,norm\n10,1.5,0.1\n12,2.5,0.1\n13,3,0.2\n")
    assert traces.minutes(path).tolist() == [1.5, 0.0, 2.5, 3.0]
    (only,) = traces.series(path)
    assert (only.data, only.step_s, only.values.shape) == ("burstgpt", 60.0, (1, 4))


def test_what_is_judged_is_what_came(rolling: ModuleType) -> None:
    values = np.random.default_rng(0).gamma(2.0, 10.0, 120)
    rows = [rolling.Row(values, 2.0)]
    came = rolling.outcomes(values)
    assert came[0].tolist() == [values[48], values[52], values[62]]
    right = rolling.losses(rows, [(came, came)])
    assert right.error.sum() == right.pinball.sum() == 0.0
    assert right.coverage().tolist() == [1.0, 1.0, 1.0]
    off = rolling.losses(rows, [(came + 2.0, came - 4.0)])
    assert off.wape() == pytest.approx(2.0 / came.mean(axis=0))
    assert off.loss() == pytest.approx(0.9 * 4.0 / came.mean(axis=0))
    assert off.coverage().tolist() == [0.0, 0.0, 0.0]


def test_live_is_no_wiser_than_it_may_be(rolling: ModuleType) -> None:
    """What is said at an origin does not depend on anything after it."""
    values = np.random.default_rng(1).gamma(2.0, 10.0, 160)
    changed = values.copy()
    changed[100:] *= 7.0
    one, two = (rolling.live(Forecaster)([rolling.Row(part, 1.0)])[0] for part in (values, changed))
    before = 100 - rolling.HISTORY + 1
    assert np.array_equal(one[0][:before], two[0][:before])
    assert np.array_equal(one[1][:before], two[1][:before])
    assert not np.array_equal(one[1][before:], two[1][before:])
    for rule in (rolling.last, rolling.smoothed(0.8)):
        one, two = (rule([rolling.Row(part, 1.0)])[0] for part in (values, changed))
        assert np.array_equal(one[1][:before], two[1][:before])
