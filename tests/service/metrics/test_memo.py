"""What is kept from one scrape to the next is what would be made anew, whatever happened in between."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry

from moescope.service.counts.account_state import Latest
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.parts import ranks
from moescope.service.metrics.text.writer import Writer
from moescope.service.settings import MetricsLevel, Settings
from tests.service.frames import EPOCH, frame, producer

SETTINGS = Settings(window_s=25, min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT)


class World:
    """A service's state, a collector that is asked again and again, and new ones beside it."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.now = 1_700_000_100.0
        self.settings = settings
        self.state = LiveState(settings, lambda: self.now)
        self.kept = self._registry()
        self.writer = Writer()

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(RoutingCollector(self.state, self.settings, Instruments()))
        return registry

    def text(self) -> bytes:
        return self.writer.write(self.kept.collect(), openmetrics=True)

    def text_made_anew(self) -> bytes:
        return Writer().write(self._registry().collect(), openmetrics=True)

    def push(
        self, rank: int, seq: int, slots: int, server: str = "prod", size: int = 2, life: int = 0
    ) -> None:
        who = producer(server=server, dp_rank=rank, dp_size=size, ep_rank=rank % 2, ep_size=2)
        made = frame({0: [slots, 3 * slots]}, seq=seq, who=who, epoch=EPOCH + life, after_s=seq)
        self.state.ingest(made)


def happenings(world: World) -> Iterator[str]:
    """One after the other what may change a scrape."""
    for rank in (0, 1):
        world.push(rank, 1, 4)
    yield "two ranks report"
    world.now += 10
    world.push(0, 2, 40)
    yield "one of them counts"
    yield "nothing"
    world.now += 1
    yield "a second passes"
    world.push(0, 5, 0, life=10**9)
    yield "it starts again"
    world.push(0, 3, 44)
    yield "a late frame of its former life comes"
    world.push(0, 1, 8, server="other", size=1)
    yield "another deployment reports"
    world.now += 10
    world.push(1, 2, 20)
    yield "the window moves on, and one is stale soon"
    world.now += 10
    yield "it is stale"
    world.now += 30
    yield "all are, and the window has nothing"
    world.push(0, 6, 20, size=1, life=10**9)
    yield "the deployment has one rank now"
    world.now += SETTINGS.expire_after_s + 1
    yield "all have expired"
    world.push(0, 7, 30, size=1, life=10**9)
    yield "one is back"


def test_a_scrape_is_what_it_would_be_without_those_before() -> None:
    world = World()
    for what in happenings(world):
        assert world.text() == world.text_made_anew(), what


def test_a_stage_that_is_uncompared_for_a_minute_is_said_though_nothing_came() -> None:
    """Two TP ranks share the rows; then one has counted a step that the other has not told."""
    world = World(Settings(stale_after_s=600))
    for tp_rank in (0, 1):
        push_tp(world, tp_rank, seq=1)
    world.now += 1
    push_tp(world, 0, seq=2)
    unknown = b'moescope_conservation_unknown_stages{dp_rank="0",model="tiny",server="prod"} '
    for seconds, stages in ((0, b"0.0"), (58, b"0.0"), (58, b"1.0"), (200, b"1.0")):
        world.now += seconds
        assert unknown + stages in world.text(), seconds
        assert world.text() == world.text_made_anew(), seconds


def push_tp(world: World, tp_rank: int, seq: int) -> None:
    """A frame of one of two TP ranks; all rows are at the first."""
    tokens = 100 * seq
    rows = 0 if tp_rank else tokens
    made = frame(
        {1: [rows, rows]},
        who=producer(tp_rank=tp_rank, tp_size=2),
        seq=seq,
        rows=[rows],
        tokens=tokens,
        steps=seq,
        after_s=world.now - EPOCH / 1e9,
    )
    world.state.ingest(made)


def test_what_did_not_change_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world, made = World(), list[str]()

    def counted(name: str) -> Callable[..., object]:
        part = getattr(ranks, name)

        def make(group: ranks.Group) -> object:
            made.append(group.deployment[0])
            return part(group)

        return make

    monkeypatch.setattr(ranks, "rank_counters", counted("rank_counters"))
    world.kept = world._registry()
    for server in ("a", "b", "c"):
        world.push(0, 1, 4, server=server, size=1)
    world.text()
    world.text()
    world.now += 1
    world.push(0, 2, 8, server="b", size=1)
    text = world.text()
    assert made == ["a", "b", "c", "b"]
    assert b'moescope_snapshot_age_seconds{dp_rank="0",model="tiny",server="a"} 1.0' in text


def test_nothing_of_a_former_scrape_keeps_what_was_replaced() -> None:
    world = World()
    world.push(0, 1, 4, size=1)
    world.text()
    [collector] = world.kept._collector_to_names  # the library has no better way to it
    assert isinstance(collector, RoutingCollector)
    newest_frame, *_ = collector._known["prod", "tiny"].of._objects
    assert isinstance(newest_frame(), Latest)
    world.push(0, 2, 8, size=1)
    gc.collect()
    gone = newest_frame() is None
    assert gone
