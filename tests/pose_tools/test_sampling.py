"""Which of many samples to look at."""

from __future__ import annotations

import pytest

from pose_tools.sampling import evenly


@pytest.mark.parametrize(
    "total, most, numbers",
    [(0, 5, []), (1, 5, [0]), (3, 5, [0, 1, 2]), (5, 1, [0]), (5, 2, [0, 4]), (9, 5, [0, 2, 4, 6, 8]), (10, 4, [0, 3, 6, 9]), (5, 0, [])],
)
def test_numbers_are_spread_evenly(total, most, numbers):
    assert evenly(total, most).tolist() == numbers


def test_there_are_as_many_as_asked_for():
    assert all(len(evenly(total, most)) == min(total, most) for total in range(100) for most in (1, 7, 64))
