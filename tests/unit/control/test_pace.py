from __future__ import annotations

from lepton_ai.control.pace import KEPT, Pace


def test_figures_are_of_the_last_passes() -> None:
    pace = Pace()
    assert pace.figures() == {"passes": 0}
    pace.note(9.0)  # falls out of what is kept
    for number in range(KEPT):
        pace.note((number + 1) / 1000)
    found = pace.figures()
    assert found["passes"] == KEPT + 1
    assert (found["pass_ms_last"], found["pass_ms_max"]) == (KEPT, KEPT)
    assert found["pass_ms_p50"] == KEPT / 2 + 1
    assert 0.94 * KEPT < found["pass_ms_p95"] < 0.96 * KEPT
