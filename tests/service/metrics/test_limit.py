"""The cap on series, and the instruments' histograms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moescope.service.metrics.instruments import Durations
from moescope.service.metrics.limit import admit
from moescope.service.settings import MetricsLevel
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer


def test_a_family_fits_whole_or_not_at_all_and_coarse_ones_come_first() -> None:
    sizes = {
        "moescope_layer_expert_slots_total": 60,
        "moescope_layer_ep_rank_slots_total": 40,
        "moescope_tokens_total": 4,
        "moescope_history_bytes": 1,
    }
    found = admit(sizes, limit=50)
    assert found.families == {
        "moescope_history_bytes",
        "moescope_tokens_total",
        "moescope_layer_ep_rank_slots_total",
    }
    assert (found.series, found.overflow) == (45, {"moescope_layer_expert_slots_total": 60})
    assert admit(sizes, limit=105).overflow == {}
    assert admit(sizes, limit=1).families == {"moescope_history_bytes"}


def test_over_the_cap_the_scrape_says_what_is_missing(start_service: Callable[..., Service]) -> None:
    service = start_service(min_tokens=1, metrics_level=MetricsLevel.LAYER_EXPERT, metrics_max_series=200)
    who = producer(dp_rank=0, ep_rank=0, ep_size=2)
    service.push(frame({layer: [4, 4, 2, 2] * 64 for layer in range(3)}, who=who, placement=halves(256, 3)))
    for scrapes in (1, 2):
        families = {
            item.name: item for item in text_string_to_metric_families(service.client.get("/metrics").text)
        }
        lost = {
            sample.labels["family"]: sample.value for sample in families["moescope_overflowed_series"].samples
        }
        assert lost["moescope_layer_expert_slots_total"] == 3 * 256 * scrapes
        assert {name for name, value in lost.items() if value} == {"moescope_layer_expert_slots_total"}
        assert "moescope_layer_expert_slots" not in families
        assert len(families["moescope_layer_ep_rank_slots"].samples) == 3 * 2
        shown = sum(len(family.samples) for family in families.values())
        assert families["moescope_exposed_series"].samples[0].value == shown
        assert families["moescope_max_exposed_series"].samples[0].value == 200


def test_durations_fall_into_buckets_also_when_the_block_raises() -> None:
    times = iter([0.0, 0.5, 1.0, 3.0, 3.0, 3.1])
    durations = Durations((0.1, 1.0), lambda: next(times))
    with durations.timed():
        pass
    with pytest.raises(KeyError), durations.timed():
        raise KeyError("x")
    with durations.timed():
        pass
    buckets, total = durations.read()
    assert buckets == [("0.1", 0.0), ("1.0", 2.0), ("+Inf", 3.0)]
    assert total == pytest.approx(2.6)
