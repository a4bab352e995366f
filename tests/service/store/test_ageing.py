"""History ages by the wall clock, unless that has just jumped forward."""

from __future__ import annotations

import pytest

from moescope.service.store.ageing import DOUBT_S, Ageing

HOUR = 3600.0
YEAR = 365 * 86400.0
NOW = 1_700_000_000.0


class World:
    """Time that passes, and a wall clock that may jump."""

    def __init__(self, reached: float | None = None) -> None:
        self.passed, self.wall = 0.0, NOW
        self.ageing = Ageing(reached, lambda: self.passed)

    def after(self, seconds: float, jump: float = 0.0, looks: int = 1) -> float:
        """How far history has aged, seconds since the start."""
        self.wall += jump
        for _ in range(looks):
            self.passed += seconds / looks
            self.wall += seconds / looks
            until = self.ageing.until(self.wall)
        return until - NOW


def test_it_is_the_wall_clock_s() -> None:
    world = World()
    assert world.after(10) == 10
    assert world.after(10, jump=0.5) == 20.5
    assert world.after(10, jump=-0.5) == 30


def test_a_jump_that_is_taken_back_cost_little() -> None:
    world = World()
    world.after(10)
    assert world.after(HOUR, jump=YEAR, looks=360) == 10 + 2 * HOUR
    assert world.after(10, jump=-YEAR) == 10 + 2 * HOUR  # never back
    assert world.after(2 * HOUR) == 20 + 3 * HOUR


@pytest.mark.parametrize("looks", [1, 8640])
def test_a_jump_that_lasts_is_believed(looks: int) -> None:
    world = World()
    world.after(10)
    world.after(10, jump=YEAR)
    world.after(DOUBT_S, looks=looks)
    assert world.after(10) == pytest.approx(YEAR + DOUBT_S + 30)


def test_a_second_jump_is_doubted_too() -> None:
    world = World()
    world.after(10, jump=YEAR)
    world.after(10, jump=YEAR)
    assert world.after(DOUBT_S - HOUR, looks=100) < 3 * DOUBT_S + YEAR
    before = world.after(0)
    assert world.after(2 * HOUR, jump=YEAR) == pytest.approx(before + 4 * HOUR)


def test_a_service_that_was_down_catches_up() -> None:
    world = World(reached=NOW - HOUR)
    assert world.after(HOUR / 2, looks=10) == 0
    assert world.after(HOUR, looks=10) == 1.5 * HOUR
