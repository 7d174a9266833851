"""How the soak counts: which requests are lost, and how fast the server was at its slowest."""

from __future__ import annotations

import pytest

from benchmarks.soak import Sent, is_lost, slowest_rate

ANSWERED = Sent("small", "a", 200, 1.0, 1.0)
LEFT = Sent("leaving", "b", 0, 1.0, 1.0)
BEGUN = Sent("leaving", "c", 0, 1.0, 1.0, begun=True)
CUT = Sent("small", "d", 200, 1.0, 1.0, whole=False)


@pytest.mark.parametrize(
    ("one", "lines", "lost"),
    [
        (ANSWERED, 1, False),
        (ANSWERED, 0, True),
        (ANSWERED, 2, True),
        (CUT, 1, True),
        (LEFT, 0, False),
        (LEFT, 1, False),
        (LEFT, 2, True),
        (BEGUN, 1, False),
        (BEGUN, 0, True),
    ],
)
def test_who_was_answered_or_admitted_has_one_line(one: Sent, lines: int, lost: bool) -> None:
    assert is_lost(one, lines) is lost


def test_the_slowest_part_is_the_one_in_which_the_fewest_places_came_back() -> None:
    ends = [0.5, 1.0, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5]
    sent = [Sent("small", str(end), 200, 0.5, end) for end in ends]
    # Refused ones hold no place, and what ends after the last was sent has the server to itself.
    sent += [Sent("bad", "x", 429, 0.0, 2.0), Sent("small", "last", 200, 10.0, 20.0)]
    assert slowest_rate(sent, parts=3) == pytest.approx(2 / (10 / 3))
