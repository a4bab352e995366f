"""Whatever becomes of services, stores and workers, Prometheus sees no token that was not computed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from moescope.service.store.sqlite import continuation
from tests.service.metrics.world import COUNTERS, RANKS, World

Event = Callable[[World, Path], None]


def busy(world: World, rounds: int = 2) -> None:
    """All workers compute and report, and Prometheus looks in between."""
    for _ in range(rounds):
        for rank in range(RANKS):
            world.compute(rank, 100 + rank)
            world.send(rank)
            if rank != 1:
                world.scrape()


def in_use(folder: Path, keeps: bool, tells: bool = True) -> World:
    """A world in which the workers have a long past that Prometheus has seen, a former start included."""
    world = World(folder, keeps, tells)
    busy(world)
    world.start_worker(0)
    for rank in range(RANKS):
        world.compute(rank, 10**6)
    world.now += 600
    busy(world)
    return world


def again(world: World, kill: bool = False) -> None:
    world.stop(kill)
    for rank in range(RANKS):
        world.compute(rank, 5)
    world.start()
    world.scrape()


def restart(world: World, _: Path) -> None:
    again(world)


def kill(world: World, _: Path) -> None:
    again(world, kill=True)


def wiped(world: World, _: Path) -> None:
    world.stop()
    world.wipe()
    world.start()
    world.scrape()


def restored(world: World, folder: Path) -> None:
    world.back_up(folder / "backup.sqlite")
    busy(world)
    world.start_worker(1)
    busy(world)
    world.stop()
    world.restore(folder / "backup.sqlite")
    world.start()
    world.scrape()


def rolled_back(world: World, folder: Path) -> None:
    """Folders are put back as they were, behind our back."""
    again(world)
    world.stop()
    world.copy_to(folder / "copy")
    world.start()
    busy(world)
    world.start_worker(1)
    busy(world)
    world.stop()
    world.copy_back(folder / "copy")
    world.start()
    world.scrape()


def worker_starts_again(world: World, _: Path) -> None:
    world.start_worker(1)
    world.scrape()


def worker_starts_again_while_away(world: World, _: Path) -> None:
    world.stop()
    world.start_worker(2)
    world.compute(2, 50)
    world.send(2)
    world.start()
    world.scrape()


def expired(world: World, _: Path) -> None:
    world.now += 7200
    world.scrape()


def another_model(world: World, _: Path) -> None:
    world.another_model(4)
    world.scrape()


def second_service(world: World, _: Path) -> None:
    for rank in range(RANKS):
        world.move(rank, 1)
        world.send(rank)
        world.scrape()


def there_and_back(world: World, _: Path) -> None:
    for service in (1, 0):
        for rank in (0, 1):
            world.move(rank, service)
        busy(world)


EVENTS: dict[str, Event] = {
    function.__name__: function
    for function in (
        restart,
        kill,
        wiped,
        restored,
        rolled_back,
        worker_starts_again,
        worker_starts_again_while_away,
        expired,
        another_model,
        second_service,
        there_and_back,
    )
}
NEEDS_STORE = {"wiped", "restored", "rolled_back", "kill"}
ELSEWHERE = {"rolled_back", "second_service", "there_and_back"}
WITHOUT_STORE = sorted(EVENTS.keys() - NEEDS_STORE)


CASES = [
    *((name, True, True) for name in EVENTS),
    *((name, False, True) for name in WITHOUT_STORE),
    # Workers of 0.1.0 don't tell what they have delivered elsewhere.
    *((name, True, False) for name in EVENTS if name not in ELSEWHERE),
    *((name, False, False) for name in WITHOUT_STORE if name not in ELSEWHERE),
]


@pytest.mark.parametrize(("event", "keeps", "tells"), CASES)
def test_an_event_makes_up_no_traffic(event: str, keeps: bool, tells: bool, tmp_path: Path) -> None:
    world = in_use(tmp_path, keeps, tells)
    EVENTS[event](world, tmp_path)
    busy(world)
    after = {name: [item.increase[name] for item in world.prometheus] for name in COUNTERS}
    busy(world, rounds=3)
    computed = 3 * sum(100 + rank for rank in range(RANKS))
    for name, before in after.items():
        expected = computed * (2 if "slots" in name else 1)
        rises = [item.increase[name] - old for item, old in zip(world.prometheus, before, strict=True)]
        assert rises == [expected, expected], name


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate], deadline=None)
@given(
    events=st.lists(st.sampled_from(sorted(EVENTS)), max_size=4),
    keeps=st.booleans(),
)
def test_whatever_happens_no_traffic_is_made_up(events: list[str], keeps: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = in_use(Path(folder), keeps)
        for name in events:
            if keeps or name not in NEEDS_STORE:
                EVENTS[name](world, Path(folder))
                busy(world, rounds=1)


@pytest.mark.parametrize("event", ["restart", "kill", "worker_starts_again_while_away"])
def test_with_its_store_a_service_misses_nothing(event: str, tmp_path: Path) -> None:
    world = World(tmp_path, keeps=True)
    for rank in range(RANKS):
        world.send(rank)
    world.scrape()  # from zero on
    busy(world)
    EVENTS[event](world, tmp_path)
    busy(world, rounds=1)
    for prometheus in world.prometheus:
        assert prometheus.increase["moescope_tokens_total"] == world.computed
        assert prometheus.increase["moescope_ep_rank_slots_total"] == 2 * world.computed


def test_a_power_cut_that_took_the_last_moments_makes_up_no_traffic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, keeps=True)
    monkeypatch.setattr(continuation, "_boot_id", lambda: str(world.boot).encode())
    busy(world, rounds=4)
    world.copy_to(tmp_path / "on-disk")
    busy(world, rounds=1)
    world.stop(kill=True)
    world.copy_back(tmp_path / "on-disk")
    world.boot += 1
    world.start()
    for rank in range(RANKS):  # the workers were on the same machine
        world.start_worker(rank)
    busy(world)
