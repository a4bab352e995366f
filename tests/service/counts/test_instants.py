"""Instants of a clock that is ahead: moved once, in order, and no further apart."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from moescope.service.counts.instants import not_after

NOW = 1_700_000_000.0
INSTANTS = st.lists(st.sampled_from([-90_000, -86_400, -20, -1, 0, 1, 5, 20, 86_400, 90_000]), min_size=1)


@given(INSTANTS)
@example([-20, 5, 86_400])
def test_none_is_after_now_and_what_was_before_stays(offs: list[int]) -> None:
    instants = sorted(NOW + off for off in offs)
    to = not_after(NOW, instants)
    assert (to is None) == (max(instants) <= NOW)
    if to is None:
        return
    moved = [to(at) for at in instants]
    assert max(moved) == NOW
    assert all(new == old for old, new in zip(instants, moved, strict=True) if old <= NOW)
    assert not_after(NOW, moved) is None, "whoever is told again moves nothing"
    ahead = instants[-1] - NOW
    for old, new in zip(instants, moved, strict=True):
        assert old - ahead - 1e-6 <= new <= old
    for (one, other), (first, then) in zip(pairwise(instants), pairwise(moved), strict=True):
        assert 0 <= then - first <= other - one + 1e-6
        if one < other and NOW not in instants:
            assert first < then


def test_of_one_clock_all_keep_their_distances() -> None:
    to = not_after(NOW, [NOW + 5, NOW + 30, NOW - 100])
    assert to is not None
    assert (to(NOW + 30), to(NOW + 5), to(NOW - 100)) == (NOW, NOW - 25, NOW - 100)
