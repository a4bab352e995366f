"""The values of the series of every part, read back by the parser of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from tests.service.conftest import Clock, Service
from tests.service.frames import EPOCH, frame, halves, producer
from tests.service.metrics.scraped import names_of, push_both, rank, series_of, text_of, value_of


def test_counters_and_gauges_have_the_right_values(service: Service) -> None:
    push_both(service)
    series = series_of(service)
    assert value_of(series, "moescope_tokens_total", dp_rank="1") == 150
    assert value_of(series, "moescope_idle_steps_total", dp_rank="0") == 7
    assert value_of(series, "moescope_draft_tokens_total", dp_rank="0", outcome="accepted") == 11
    assert value_of(series, "moescope_draft_tokens_total", dp_rank="1", outcome="rejected") == 5
    assert value_of(series, "moescope_layer_dp_rank_slots_total", layer="0", dp_rank="0") == 300
    assert value_of(series, "moescope_layer_ep_rank_slots_total", layer="0", ep_rank="0") == 400
    assert value_of(series, "moescope_layer_ep_rank_slots_total", layer="0", ep_rank="1") == 200
    assert value_of(series, "moescope_ep_rank_slots_total", ep_rank="0") == 700
    assert value_of(series, "moescope_layer_ep_imbalance_ratio", layer="0") == pytest.approx(4 / 3)
    assert value_of(series, "moescope_ep_imbalance_ratio") == pytest.approx(700 / 500)
    assert value_of(series, "moescope_ep_worst_layer_imbalance_ratio") == 1.5
    assert value_of(series, "moescope_dp_imbalance_ratio") == 1
    assert value_of(series, "moescope_layer_dead_experts", layer="3") == 2
    assert value_of(series, "moescope_layer_max_vio_ratio", layer="3") == 2
    assert value_of(series, "moescope_layer_max_vio_limit_ratio", layer="0") == 1  # 4 experts, top-2
    assert value_of(series, "moescope_producers", state="counting") == 2
    assert value_of(series, "moescope_uncovered_layers", dp_rank="0") == 1
    assert value_of(series, "moescope_conservation_mismatched_layers", dp_rank="0") == 1
    assert value_of(series, "moescope_placement_version", dp_rank="0") == 4
    assert value_of(series, "moescope_producer_drops_total", dp_rank="0", reason="steps_lost") == 2
    worker = {"dp_rank": "1", "pp_rank": "0", "tp_rank": "0"}
    assert value_of(series, "moescope_traces_captured_total", **worker) == 5
    assert value_of(series, "moescope_traces_delivered_total", **worker) == 3
    assert value_of(series, "moescope_traces_dropped_total", reason="buffer_full", **worker) == 1


def test_absent_layers_are_counted_and_those_without_a_number_are_one(service: Service) -> None:
    absent = [wire.UncoveredLayer(layer, "not found") for layer in (5, 6)]
    service.push(frame({0: [1, 1]}, who=rank(0), absent=absent))
    service.push(frame({0: [1, 1]}, who=rank(1), absent_unnamed="not known which"))
    service.push(frame({0: [1, 1]}, who=producer(server="whole")))
    series = series_of(service)
    assert value_of(series, "moescope_absent_layers", dp_rank="0") == 2
    assert value_of(series, "moescope_absent_layers", dp_rank="1") == 1
    assert value_of(series, "moescope_absent_layers", server="whole", model="tiny", dp_rank="0") == 0


def test_no_steps_are_lost_between_two_scrapes(service: Service) -> None:
    # Peers set a gauge at each step and lose all steps but the last before a scrape.
    push_both(service)
    before = series_of(service)
    for seq in (2, 3, 4):
        service.clock.now += 1
        push_both(service, scale=seq, seq=seq)
    after = series_of(service)
    for name, labels in (
        ("moescope_tokens_total", {"dp_rank": "0"}),
        ("moescope_layer_ep_rank_slots_total", {"layer": "0", "ep_rank": "0"}),
    ):
        first, last = value_of(before, name, **labels), value_of(after, name, **labels)
        assert first is not None
        assert last == 4 * first


def test_idle_has_no_series_while_counters_stay(service: Service) -> None:
    push_both(service)
    service.clock.now += 120
    for dp_rank in (0, 1):  # still alive, and idle
        service.push(
            frame(
                {0: [100, 100, 60, 40], 3: [150, 0, 50, 0]},
                who=rank(dp_rank),
                seq=2,
                rows=[150, 150],
                placement=halves(4, 2),
                idle_steps=99,
                accepted_drafts=11,
                rejected_drafts=5,
                drops={"steps_lost": 2},
            )
        )
    series = series_of(service)
    ratios = {name for name in names_of(series) if name.endswith(("_ratio", "_dead_experts"))}
    assert ratios == set()
    assert value_of(series, "moescope_tokens_total", dp_rank="0") == 150
    assert value_of(series, "moescope_idle_steps_total", dp_rank="0") == 99


def test_an_unseen_layer_has_no_zeros(service: Service) -> None:
    service.push(frame({0: [4, 4], 1: [0, 0]}, tokens=4, who=rank(0), placement=halves(2, 2)))
    series = series_of(service)
    assert not [labels for _, labels in series if ("layer", "1") in labels]
    assert value_of(series, "moescope_unseen_layers", dp_rank="0") == 1


def test_without_expert_parallelism_there_is_no_ep_series(service: Service) -> None:
    service.push(frame({0: [4, 4]}))
    assert not [name for name, labels in series_of(service) if "_ep_" in name or "ep_rank" in dict(labels)]


def test_unplaced_slots_are_told_instead_of_zero_load(service: Service) -> None:
    service.push(frame({0: [4, 4]}, who=rank(0)))
    series = series_of(service)
    assert value_of(series, "moescope_layer_unplaced_slots_total", layer="0") == 8
    assert "moescope_layer_ep_rank_slots_total" not in names_of(series)


def test_a_vanished_rank_expires_and_sums_never_shrink(start_service: Callable[..., Service]) -> None:
    service = start_service(min_tokens=1, expire_after_s=100)
    push_both(service)
    service.clock.now += 200
    service.push(
        frame(
            {0: [100, 100, 60, 40], 3: [150, 0, 50, 0]},
            who=rank(0),
            seq=2,
            rows=[150, 150],
            placement=halves(4, 2),
            idle_steps=8,
            accepted_drafts=11,
            rejected_drafts=5,
            drops={"steps_lost": 2},
        )
    )
    series = series_of(service)
    assert value_of(series, "moescope_tokens_total", dp_rank="0") == 150
    assert value_of(series, "moescope_tokens_total", dp_rank="1") is None
    assert value_of(series, "moescope_snapshot_age_seconds", dp_rank="1") is None
    # The sum over sources keeps the vanished one's slots: a drop would look like a restart to a rate.
    assert value_of(series, "moescope_layer_ep_rank_slots_total", layer="0", ep_rank="0") == 400
    service.clock.now += 200
    assert not {
        name for name in names_of(series_of(service)) if name.endswith(("_tokens_total", "_slots_total"))
    }


def test_phases_add_up_and_steps_of_unknown_phase_are_told_apart(service: Service) -> None:
    told = {"decode": {0: [1, 1]}, "decode_steps": 2, "mixed_steps": 1}
    service.push(frame({0: [4, 4]}, steps=2))
    service.push(frame({0: [3, 3]}, steps=4, epoch=EPOCH + 9, **told))
    series = series_of(service)
    phases = ("prefill", "decode", "mixed", "unknown")
    tokens, steps = (
        [value_of(series, f"moescope_phase_{unit}_total", dp_rank="0", phase=phase) for phase in phases]
        for unit in ("tokens", "steps")
    )
    assert tokens == [2, 1, None, 4]
    assert steps == [1, 2, 1, 2]
    assert value_of(series, "moescope_tokens_total", dp_rank="0") == 7
    assert value_of(series, "moescope_steps_total", dp_rank="0") == 6


def test_straggler_sums_give_the_cost_and_other_services_can_be_added(service: Service) -> None:
    push_both(service)
    push_both(service, scale=2, seq=2)
    series = series_of(service)
    most = value_of(series, "moescope_straggler_max_slots_total")
    mean = value_of(series, "moescope_straggler_mean_slots_total")
    assert (most, mean) == (2 * 2 * (200 + 150), 2 * 2 * (150 + 100))
    assert value_of(series, "moescope_straggler_cost_ratio") == pytest.approx(1 - 250 / 350)
    assert value_of(series, "moescope_layer_straggler_max_slots_total", layer="3") == 600
    assert value_of(series, "moescope_straggler_hottest_layer_steps_total", ep_rank="0") == 4
    assert value_of(series, "moescope_straggler_joined_steps_total", pp_rank="0") == 2


def test_rearrangements_are_counted_once_and_restarts_are_none(service: Service) -> None:
    def push(dp_rank: int, seq: int, version: int, epoch: int = EPOCH) -> None:
        placed = halves(2, 1, version=version)
        made = frame({0: [seq, seq]}, who=rank(dp_rank), seq=seq, epoch=epoch, placement=placed)
        assert service.push(made).status_code == 200

    for seq, version in ((1, 3), (2, 4), (3, 6)):
        push(0, seq, version)
        push(1, seq, version)
    push(0, 1, 0, epoch=EPOCH + 200 * 10**9)
    assert value_of(series_of(service), "moescope_rearrangements_total") == 2


def test_a_restart_of_a_dp_rank_is_one_whatever_its_workers(service: Service) -> None:
    for start in range(2):
        for tp_rank in range(4):
            who = producer(tp_rank=tp_rank, tp_size=4)
            made = frame({0: [1, 1]}, who=who, epoch=EPOCH + start * 10**9)
            assert service.push(made).status_code == 200
    assert value_of(series_of(service), "moescope_producer_restarts_total", dp_rank="0") == 1


def test_how_far_back_windows_reach_and_what_would_help(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    settings = Settings(port=0, history_mib=1, window_s=60)
    state = LiveState(settings, clock)
    large = {layer: [2 * layer + (1 << 33)] * 1000 for layer in range(60)}  # nothing narrower holds them
    for second in range(1, 8):
        clock.now += 10
        state.ingest(
            frame(large, epoch=int(clock.now - 10 * second) * 10**9, after_s=10 * second, seq=second)
        )
    text = text_of(state, settings)
    [line] = [item for item in text.splitlines() if item.startswith("moescope_history_span_seconds{")]
    assert float(line.rpartition(" ")[2]) < 20
    assert "reach back" in caplog.text
    assert "Set history_mib to" in caplog.text
