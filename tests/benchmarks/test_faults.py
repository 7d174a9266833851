"""What a row of the fault table must show to count as kept."""

from __future__ import annotations

from benchmarks.faults import Ended, Row

WHOLE, CUT, SILENT = Ended(200, True), Ended(200, False, "unavailable"), Ended(200, False)


def test_a_fault_that_was_to_cut_and_cut_nobody_is_not_kept() -> None:
    assert Row("twice", [CUT] * 4, 4, must_lose=4).kept
    assert not Row("twice", [WHOLE] * 4, 4, must_lose=4).kept
    assert not Row("twice", [CUT] * 3 + [SILENT], 4, must_lose=4).kept


def test_a_server_that_did_not_end_as_promised_is_not_kept() -> None:
    assert Row("once", [WHOLE], exit_code=0).kept
    assert not Row("once", [WHOLE], exit_code=-15).kept
