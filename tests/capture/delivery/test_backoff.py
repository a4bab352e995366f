"""Waits after failures: spread from the first one on, growing, and not drawn from vLLM's random numbers."""

from __future__ import annotations

import random

from moescope.capture.delivery.backoff import FIRST, LONGEST, Backoff


def test_workers_that_fail_together_come_back_apart_after_the_first_failure() -> None:
    waits = sorted(Backoff().failed() for _ in range(2000))
    assert 0 <= waits[0] < 0.1
    assert FIRST - 0.1 < waits[-1] <= FIRST
    quarters = [sum(a <= wait < a + FIRST / 4 for wait in waits) for a in (0.0, FIRST / 4, FIRST / 2)]
    assert all(400 < share < 600 for share in quarters)


def test_the_limit_doubles_up_to_the_longest_and_begins_again() -> None:
    many = [Backoff() for _ in range(500)]
    longest = [max(one.failed() for one in many) for _ in range(6)]
    limits = [FIRST, 2 * FIRST, LONGEST, LONGEST, LONGEST, LONGEST]
    assert all(0.9 * limit < found <= limit for found, limit in zip(longest, limits, strict=True))
    for one in many:
        one.succeeded()
    assert max(one.failed() for one in many) <= FIRST


def test_what_won_t_change_soon_is_not_hammered() -> None:
    waits = [Backoff().failed(permanent=True) for _ in range(200)]
    assert LONGEST <= min(waits) < max(waits) <= 2 * LONGEST


def test_workers_that_vllm_seeded_alike_wait_differently_and_vllm_draws_what_it_would_have_drawn() -> None:
    state, waits, drawn = random.getstate(), [], []
    try:
        for _ in range(2):
            random.seed(0)
            waits.append(Backoff().failed())
            drawn.append(random.random())
        random.seed(0)
        assert drawn == [random.random()] * 2
    finally:
        random.setstate(state)
    assert waits[0] != waits[1]
