"""Series of ranks over their life: what leaves when a deployment has fewer of them."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry

from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.settings import MetricsLevel, Settings
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, halves, producer

Labels = dict[str, str]


class Fleet:
    """A deployment whose sizes change, its service, and what that shows."""

    def __init__(self, clock: Clock, **settings: object) -> None:
        self.clock = clock
        chosen = Settings(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT, **settings)  # type: ignore[arg-type]
        self.state = LiveState(chosen, clock)
        self._registry = CollectorRegistry()
        self._registry.register(RoutingCollector(self.state, chosen, Instruments()))
        self.epochs: list[int] = []
        self._seq = 0

    def start(self) -> None:
        """All ranks of the next frames count from zero again."""
        self.epochs.append(EPOCH + len(self.epochs) * 10**12)
        self._seq = 0

    def say(self, ranks: list[int], size: int, tokens: int, ended: bool = False) -> None:
        """Each of the ranks tells of so many tokens since its start, spread evenly over four experts."""
        self.clock.now += 1
        self._seq += 1
        for rank in ranks:
            loads = np.full((1, 1, size), 1)
            told = frame(
                {0: [tokens // 2] * 4},
                who=producer(dp_rank=rank, dp_size=size, ep_rank=rank, ep_size=size),
                epoch=self.epochs[-1],
                seq=self._seq,
                after_s=self._seq,
                tokens=tokens,
                rows=[tokens],
                placement=halves(4, 1, size) if size > 1 else None,
                ended=ended,
                step_loads=wire.pack_step_loads(self._seq - 1, self._seq, np.array([self._seq - 1]), loads, 1)
                if size > 1
                else None,
            )
            self.state.ingest(told)

    def series(self, name: str) -> list[tuple[Labels, float]]:
        """Labels but for server and model, and the value."""
        return [
            (
                {key: value for key, value in sample.labels.items() if key not in ("server", "model")},
                sample.value,
            )
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == name
        ]

    def values(self, name: str, label: str) -> dict[str, float]:
        """Values by one label."""
        return {labels[label]: value for labels, value in self.series(name)}


def redeployed(clock: Clock, before: int, after: int) -> Fleet:
    """A deployment that has been started again with another number of ranks a second ago."""
    fleet = Fleet(clock)
    fleet.start()
    for tokens in (8, 16):
        fleet.say(list(range(before)), before, tokens)
    clock.now += 3
    fleet.start()
    for tokens in (8, 16, 24):
        fleet.say(list(range(after)), after, tokens)
    return fleet


def test_ranks_beyond_the_present_sizes_leave_and_are_not_stale(clock: Clock) -> None:
    fleet = redeployed(clock, before=4, after=2)
    clock.now += 1  # the former ranks have been silent for 7 s: they are not even stale yet
    for _ in range(2):
        for name in ("tokens", "steps", "producer_restarts"):
            assert fleet.values(f"moescope_{name}_total", "dp_rank").keys() == {"0", "1"}, name
        for name in ("snapshot_age_seconds", "covered_layers", "producer_start_time_seconds"):
            assert fleet.values(f"moescope_{name}", "dp_rank").keys() == {"0", "1"}, name
        for name in ("ep_rank_slots", "layer_ep_rank_slots", "straggler_hottest_layer_steps"):
            assert fleet.values(f"moescope_{name}_total", "ep_rank").keys() == {"0", "1"}, name
        states = fleet.values("moescope_producers", "state")
        assert states == {"counting": 2, "disabled": 0, "stale": 0, "conflict": 0}
        assert fleet.series("moescope_missing_dp_ranks") == [({}, 0)]
        clock.now += 600
        fleet.say([0, 1], 2, 32)
    # What the former ranks counted stays in sums over ranks.
    assert sum(fleet.values("moescope_layer_expert_slots_total", "expert").values()) == (4 * 16 + 2 * 32) * 2


def test_a_rank_that_still_sends_is_not_gone(clock: Clock) -> None:
    """As while a former worker shuts down; once it is silent it is gone and nobody waits for it."""
    fleet = redeployed(clock, before=4, after=2)
    late = producer(dp_rank=3, dp_size=4, ep_rank=3, ep_size=4)
    fleet.state.ingest(frame({0: [8] * 4}, who=late, epoch=fleet.epochs[0], seq=9, after_s=9))
    assert fleet.values("moescope_producers", "state")["counting"] == 3
    clock.now += 16
    assert fleet.values("moescope_producers", "state") == {
        "counting": 0,
        "disabled": 0,
        "stale": 2,
        "conflict": 0,
    }


def test_gauges_begin_at_the_change_of_sizes(clock: Clock) -> None:
    for before, after in ((4, 2), (2, 4)):
        fleet = redeployed(clock, before, after)
        assert fleet.series("moescope_ep_imbalance_ratio") == [({}, 1.0)], (before, after)
        assert fleet.series("moescope_dp_imbalance_ratio") == [({}, 1.0)], (before, after)


def test_sizes_that_come_back_come_back_with_all_ranks(clock: Clock) -> None:
    fleet = redeployed(clock, before=4, after=2)
    fleet.start()
    fleet.say([0, 1, 2, 3], 4, 8)
    fleet.say([0, 1, 2, 3], 4, 16)
    assert fleet.values("moescope_tokens_total", "dp_rank") == {"0": 56, "1": 56, "2": 32, "3": 32}
    assert fleet.values("moescope_producer_restarts_total", "dp_rank") == {"0": 2, "1": 2, "2": 1, "3": 1}
    assert fleet.series("moescope_ep_imbalance_ratio") == [({}, 1.0)]
    assert fleet.values("moescope_ep_rank_slots_total", "ep_rank").keys() == {"0", "1", "2", "3"}


def test_restarts_count_every_rank_that_started_again_also_with_another_model(clock: Clock) -> None:
    """The first rank of the new shape pushes out the silent ones, which start again as well."""
    fleet = redeployed(clock, before=2, after=2)
    clock.now += 30
    for rank in (0, 1):
        who = producer(dp_rank=rank, dp_size=2, ep_rank=rank, ep_size=2)
        made = frame({0: [6] * 8}, who=who, epoch=EPOCH + 9 * 10**12, placement=halves(8, 1))
        fleet.state.ingest(made)
    assert fleet.values("moescope_producer_restarts_total", "dp_rank") == {"0": 2, "1": 2}


def test_a_deployment_that_shut_down_in_order_is_gone_and_its_last_counts_are_there(clock: Clock) -> None:
    """As the replicas of a rolling update, or a pod that comes back under another name."""
    fleet = Fleet(clock, expire_after_s=600)
    fleet.start()
    fleet.say([0, 1], 2, 8)
    fleet.say([0], 2, 16, ended=True)
    assert fleet.values("moescope_producers", "state") == {
        "counting": 2,
        "disabled": 0,
        "stale": 0,
        "conflict": 0,
    }
    clock.now += 20  # one rank has not said so: it may hang
    assert fleet.values("moescope_producers", "state") == {
        "counting": 0,
        "disabled": 0,
        "stale": 2,
        "conflict": 0,
    }
    fleet.say([1], 2, 16, ended=True)
    clock.now += 20
    assert fleet.values("moescope_producers", "state") == {
        "counting": 0,
        "disabled": 0,
        "stale": 0,
        "conflict": 0,
    }
    assert fleet.values("moescope_tokens_total", "dp_rank") == {"0": 16, "1": 16}
    assert fleet.series("moescope_conservation_unknown_stages") == []
    assert fleet.state.live_deployments() == []
    clock.now += 600
    assert fleet.series("moescope_tokens_total") == []
    fleet.start()
    fleet.say([0, 1], 2, 8)
    assert fleet.values("moescope_producers", "state") == {
        "counting": 2,
        "disabled": 0,
        "stale": 0,
        "conflict": 0,
    }
    assert fleet.values("moescope_tokens_total", "dp_rank") == {"0": 24, "1": 24}


def test_a_deployment_of_which_a_worker_was_killed_is_stale(clock: Clock) -> None:
    fleet = Fleet(clock)
    fleet.start()
    fleet.say([0, 1], 2, 8)
    fleet.say([0], 2, 16, ended=True)
    clock.now += 60
    assert fleet.values("moescope_producers", "state") == {
        "counting": 0,
        "disabled": 0,
        "stale": 2,
        "conflict": 0,
    }
