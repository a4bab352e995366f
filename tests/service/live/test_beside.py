"""What is made beside questions: first by who asks, then by a thread, and again after a fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from moescope.service.live.beside import Beside
from moescope.service.live.large import NoRoomError
from tests.waiting import wait_until

ONE = ("server", "model")


class World:
    """As much of a live state as it takes, whose room for large questions may be full."""

    def __init__(self) -> None:
        self.at, self.version, self.refused, self.is_full = 0.0, 0, 0, False
        self.large = SimpleNamespace(question=self._question)
        self.made: list[float] = []
        state: Any = self
        self.beside = Beside("test", self._make, state, 60.0, lambda: self.version)

    def now(self) -> float:
        return self.at

    def deployments(self) -> list[tuple[str, str]]:
        return [ONE]

    @contextmanager
    def _question(self, wait_s: float) -> Iterator[None]:
        assert wait_s > 0
        if self.is_full:
            self.refused += 1
            raise NoRoomError("full", ever=True)
        yield

    def _make(self, _: tuple[str, str]) -> float:
        self.made.append(self.at)
        return self.at


def test_it_is_made_anew_when_it_is_old_or_its_version_has_changed() -> None:
    world = World()
    assert world.beside.latest(ONE) == 0.0
    world.at = 59.0
    assert world.beside.latest(ONE) == 0.0
    assert world.made == [0.0]
    world.version = 1
    wait_until(lambda: world.beside.latest(ONE) == 59.0, "it is not made")
    world.at = 120.0
    wait_until(lambda: world.beside.latest(ONE) == 120.0, "it is not made")
    assert world.made == [0.0, 59.0, 120.0]


def test_what_found_no_room_is_tried_again_when_somebody_asks() -> None:
    world = World()
    world.beside.latest(ONE)
    world.at, world.is_full = 100.0, True
    assert world.beside.latest(ONE) == 0.0
    wait_until(lambda: world.refused == 1, "nobody tried")
    world.is_full = False
    wait_until(lambda: world.beside.latest(ONE) == 100.0, "it is not made")


def test_who_may_not_make_the_first_gets_none_until_the_thread_has_made_it() -> None:
    world = World()
    assert world.beside.latest(ONE, lambda: False) is None
    wait_until(lambda: world.beside.latest(ONE, lambda: False) == 0.0, "it is not made")
    assert world.made == [0.0]
