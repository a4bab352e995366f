"""Large questions: one at a time in their order, within a bound, and not for those who left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from moescope.service.live.large import LITTLE_BYTES, LargeQuestions, NoRoomError, claim, is_counted
from moescope.service.wanted import UnwantedError, wanted_until

LARGE = LITTLE_BYTES + 1


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_they_come_one_at_a_time_in_their_order() -> None:
    large = LargeQuestions(LARGE)
    order: list[int] = []

    def ask(number: int) -> None:
        with large.question():
            claim(LARGE)
            claim(LARGE)  # it keeps its turn
            order.append(number)

    with ThreadPoolExecutor(3) as threads:
        with large.question():
            claim(LARGE)
            asked = []
            for number in range(3):
                asked.append(threads.submit(ask, number))
                until(lambda: large.waiting == len(asked))
            assert order == []
        for job in asked:
            job.result(60)
    assert order == [0, 1, 2]
    assert large.waiting == 0


def test_little_needs_no_turn_nor_does_what_is_no_question() -> None:
    large = LargeQuestions(LARGE)
    claim(1 << 60)
    assert not is_counted(1 << 60)
    with large.question():
        claim(LARGE)
        with large.question(wait_s=0):
            assert is_counted(LARGE)
            assert not is_counted(LITTLE_BYTES)
            claim(LITTLE_BYTES)


def test_one_that_never_fits_and_one_whose_turn_does_not_come() -> None:
    large = LargeQuestions(LARGE)
    with large.question():
        with pytest.raises(NoRoomError, match=r"17 MiB .* 16 are allowed \(max_question_mib\)") as error:
            claim(LARGE + 1)
        assert not error.value.ever
        claim(LARGE)
        with large.question(wait_s=0), pytest.raises(NoRoomError, match="ask again") as error:
            claim(LARGE)
        assert error.value.ever
    with large.question(wait_s=0):
        claim(LARGE)  # nobody is before it any more


def test_one_whose_client_left_waits_no_longer() -> None:
    large, left = LargeQuestions(LARGE), threading.Event()

    def ask() -> None:
        with wanted_until(left), large.question():
            claim(LARGE)

    with ThreadPoolExecutor(1) as threads, large.question():
        claim(LARGE)
        asked = threads.submit(ask)
        until(lambda: large.waiting == 1)
        left.set()
        with pytest.raises(UnwantedError):
            asked.result(60)
        assert large.waiting == 0
