"""What is made ahead is used in its order, and nothing is made between two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from moescope.service.api.schemas.ahead import in_turn, made_ahead
from moescope.service.wanted import UnwantedError, check_wanted, wanted_until

Way = Callable[[Iterator[int], Callable[[int], None]], Iterator[None]]


@pytest.mark.parametrize("way", [in_turn, made_ahead])
def test_each_step_uses_one_item_in_order(way: Way) -> None:
    used: list[int] = []
    assert [len(used) for _ in way(iter(range(5)), used.append)] == [1, 2, 3, 4, 5]
    assert used == [0, 1, 2, 3, 4]
    assert list(way(iter(()), used.append)) == []


def test_the_next_item_is_made_while_one_is_used_and_not_between_steps() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    def use(number: int) -> None:
        if number == 0:
            assert second.wait(10)  # of another thread, while this one is here

    steps = made_ahead(items(), use)
    assert made == []
    next(steps)
    assert made == [0, 1]
    next(steps)
    assert made == [0, 1, 2]


def test_an_error_is_raised_in_the_step_of_its_item() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ValueError("broken")

    used: list[int] = []
    steps = made_ahead(items(), used.append)
    next(steps)
    assert used == [0]
    with pytest.raises(ValueError, match="broken"):
        next(steps)


def test_whether_it_is_wanted_is_asked_in_the_thread_too() -> None:
    left = threading.Event()

    def items() -> Iterator[int]:
        while True:
            check_wanted()
            yield 0

    with wanted_until(left):
        steps = made_ahead(items(), lambda _: left.set())
        next(steps)
        with pytest.raises(UnwantedError):
            next(steps)


def test_the_thread_ends_with_the_steps() -> None:
    before = threading.active_count()
    steps = made_ahead(iter(range(5)), lambda _: None)
    next(steps)
    assert threading.active_count() == before + 1
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
