"""Phases and steps of single deployments, as samples."""

from __future__ import annotations

from collections.abc import Iterable

from moescope.service.live.state import LiveState
from moescope.service.metrics.parts.ranks import Found, groups
from moescope.service.metrics.parts.steps import (
    draft_counters,
    phase_counters,
    straggler_gauge,
    straggler_samples,
)
from moescope.service.metrics.samples import Sample
from moescope.service.settings import Settings
from tests.service.frames import frame, producer
from tests.service.live.step_frames import stepped

NOW = 1_700_000_100.0


def values(found: Iterable[Found]) -> dict[tuple[str, ...], float]:
    """Family without its prefix, and the labels behind server and model, to value."""
    samples = [item for item in found if isinstance(item, Sample)]
    return {(item.family.removeprefix("moescope_"), *item.labels[2:]): item.value for item in samples}


def state_of(*frames: object) -> LiveState:
    state = LiveState(Settings(), lambda: NOW)
    for made in frames:
        state.ingest(made)  # type: ignore[arg-type]
    return state


def test_tokens_and_steps_by_phase_add_up_to_all() -> None:
    made = frame({0: [6, 4]}, decode={0: [3, 1]}, steps=5, decode_steps=2, mixed_steps=1)
    [group] = groups(state_of(made))
    assert values(phase_counters(group)) == {
        ("phase_tokens_total", "0", "prefill"): 3,
        ("phase_tokens_total", "0", "decode"): 2,
        ("phase_steps_total", "0", "prefill"): 2,
        ("phase_steps_total", "0", "decode"): 2,
        ("phase_steps_total", "0", "mixed"): 1,
    }


def test_a_producer_that_tells_no_phases_has_unknown_ones_only() -> None:
    [group] = groups(state_of(frame({0: [6, 4]}, tokens=10, steps=5)))
    assert values(phase_counters(group)) == {
        ("phase_tokens_total", "0", "unknown"): 10,
        ("phase_steps_total", "0", "unknown"): 5,
    }


def test_drafts_by_outcome_are_those_of_the_worker_that_tells_most() -> None:
    """All workers of a DP rank verify the same drafts, and one may not have told them yet."""
    workers = [
        frame({0: [6, 4]}, who=producer(tp_rank=rank, tp_size=2), accepted_drafts=a, rejected_drafts=r)
        for rank, a, r in ((0, 2, 1), (1, 2, 3))
    ]
    [group] = groups(state_of(*workers))
    assert values(draft_counters(group)) == {
        ("draft_tokens_total", "0", "accepted"): 2,
        ("draft_tokens_total", "0", "rejected"): 3,
    }


def test_without_drafts_there_is_no_series_of_them() -> None:
    [group] = groups(state_of(frame({0: [6, 4]})))
    assert values(draft_counters(group)) == {}


def test_sums_over_joined_steps() -> None:
    # Slots by EP rank of two steps: the busiest has 4 + 3 and 5, the mean is half of all; two layers alike.
    state = state_of(stepped(0, 0, [[4, 0], [0, 4]]), stepped(1, 0, [[3, 1], [1, 1]]))
    found = values(straggler_samples(state, groups(state)))
    assert found["straggler_joined_steps_total", "0"] == 2
    assert found["straggler_pending_steps", "0"] == 0
    assert found["straggler_max_slots_total",] == 2 * (7 + 5)
    assert found["straggler_mean_slots_total",] == 2 * (4 + 3)
    assert [found["straggler_hottest_layer_steps_total", rank] for rank in "01"] == [2, 2]
    # Rank 0 has 3 above the mean in the first step, rank 1 has 3 - ... in the second; two layers alike.
    caused = [found["straggler_caused_slots_total", rank] for rank in "01"]
    assert sum(caused) == 2 * (7 + 5 - 4 - 3)
    assert caused == [2 * 3, 2 * 2]
    assert found["layer_straggler_max_slots_total", "2"] == 12
    [group] = groups(state)
    gauge = values(straggler_gauge(group.deployment, list(group.spans)))
    assert gauge == {("straggler_cost_ratio",): 1 - 7 / 12}


def test_without_steps_there_are_no_sums_and_no_gauge() -> None:
    state = state_of(frame({0: [6, 4]}, who=producer(ep_size=2)))
    [group] = groups(state)
    assert values(straggler_samples(state, [group])) == {("rearrangements_total",): 0}
    assert values(straggler_gauge(group.deployment, list(group.spans))) == {}
