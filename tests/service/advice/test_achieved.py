"""Rearrangements: predicted against achieved, on simulated fleets that rearrange by load."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.advice.achieved import rearrangements
from tests.service.advice.fleets import DEPLOYMENT, START, Simulated, plan
from tests.service.api.schema_check import check
from tests.service.conftest import Service
from tests.service.frames import frame, halves, placement, producer
from tests.service.traffic import push_fleet


def test_stationary_routing_gives_what_was_promised() -> None:
    # The simulated fleet deals experts by load at 300 s; before that they are placed linearly.
    found = rearrangements(
        Simulated(plan(skew=0.3, rearrange_s=300)).run(590, every=10).state, DEPLOYMENT, 100
    )
    [only] = found
    assert (only.version, only.layers, only.reason) == (2, 3, None)
    assert only.at == START + 300
    assert only.saving_predicted is not None
    assert only.saving_predicted > 0.05
    assert only.saving_achieved == pytest.approx(only.saving_predicted, rel=0.1)
    assert only.otherwise == pytest.approx(only.before, rel=0.02)
    assert only.achieved == pytest.approx(only.predicted, rel=0.02)
    assert only.copies_moved is not None
    assert 0 < only.copies_moved <= 3 * 32


def _push(
    simulated: Simulated, at: float, version: int, seq: int, counts: list[int], **fields: object
) -> None:
    simulated.now = START + at
    where = halves(4, 1, version=version) if version == 1 else placement(range(4), [0, 1, 1, 0], 1, version)
    made = frame(
        {0: counts},
        who=producer(ep_size=2),
        seq=seq,
        after_s=at,
        epoch=int(START * 1e9),
        **{"placement": where, **fields},  # type: ignore[arg-type]
    )
    simulated.state.ingest(made)


def test_a_hand_worked_case() -> None:
    simulated = Simulated(plan())
    total = np.zeros(4, dtype=np.int64)
    for seq in range(1, 21):
        before = seq <= 10
        total = total + ([300, 100, 60, 20] if before else [300, 100, 40, 40])
        _push(simulated, 10.0 * seq, 1 if before else 2, seq, total.tolist())
    [only] = rearrangements(simulated.state, ("prod", "tiny"), 1)
    # Before: 400 and 80 a frame; with 0 and 3 together 320 and 160. After: 340 and 140; without, 400 and 80.
    assert only.before == pytest.approx(400 / 240)
    assert only.predicted == pytest.approx(320 / 240)
    assert only.achieved == pytest.approx(340 / 240)
    assert only.otherwise == pytest.approx(400 / 240)
    assert only.saving_achieved == pytest.approx(1 - 340 / 400)
    assert only.saving_predicted == pytest.approx(1 - 320 / 400)
    assert only.copies_moved == 2
    assert only.at == START + 110


def test_without_tokens_after_it_the_reason_is_given() -> None:
    simulated = Simulated(plan())
    _push(simulated, 10, 1, 1, [30, 10, 6, 2])
    _push(simulated, 60, 2, 2, [30, 10, 6, 2])
    [only] = rearrangements(simulated.state, ("prod", "tiny"), 1)
    assert only.saving_achieved is None
    assert only.reason == "too few tokens before it: 0 of at least 1"


def test_the_cost_of_single_steps_stands_beside_the_sums() -> None:
    """In sums the rearrangement gives nothing; in each step the ranks no longer wait for one of them."""
    simulated = Simulated(plan())
    total = np.zeros(4, dtype=np.int64)
    for seq in range(1, 21):
        before = seq <= 10
        total = total + 100
        loads = [[[400, 0]], [[0, 400]]] if before else [[[250, 150]], [[150, 250]]]
        first = 2 * (seq - 1)
        steps = wire.pack_step_loads(first, first + 2, np.arange(first, first + 2), np.array(loads), 0)
        by_rank = wire.pack_counts(np.array([total[:2].sum(), total[2:].sum()]))
        version = 1 if before else 2
        _push(simulated, 10.0 * seq, version, seq, total.tolist(), step_loads=steps, ep_slots=by_rank)
    [only] = rearrangements(simulated.state, ("prod", "tiny"), 1)
    assert (only.before, only.achieved) == (pytest.approx(1), pytest.approx(1))
    assert (only.cost_before, only.cost_after) == (pytest.approx(0.5), pytest.approx(1 - 200 / 250))
    assert (only.steps_before, only.steps_after) == (18, 16)  # the last frame came just now


def test_an_even_split_over_copies_is_told_to_be_an_estimate() -> None:
    """Older workers don't count which copy a slot went to; expert 0 has one on each rank, after or before."""
    for of_version, name in ((2, "after"), (1, "before")):
        simulated = Simulated(plan())
        for seq in range(1, 21):
            version = 1 if seq <= 10 else 2
            copies = [0, 1, 2, 0, 3, 1] if version == of_version else [0, 1, 2, 1, 3, 2]
            where = placement(
                copies, [0, 0, 0, 1, 1, 1] if version == of_version else [0, 0, 1, 0, 1, 1], 1, version
            )
            _push(simulated, 10.0 * seq, version, seq, [100 * seq] * 4, placement=where)
        [only] = rearrangements(simulated.state, ("prod", "tiny"), 1)
        assert only.reason is None
        assert only.ep_estimate is not None
        assert only.ep_estimate.startswith(f"{name} it, layer 0: ")
        assert "are split evenly" in only.ep_estimate


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, None),
        (5, "before it: the weights were changed in the window"),
        (11, "the weights were changed between"),
        (15, "after it: the weights were changed in the window"),
    ],
)
def test_weights_that_changed_in_or_between_the_windows_are_told(
    change: int | None, told: str | None
) -> None:
    simulated = Simulated(plan())
    for seq in range(1, 21):
        weights = 0 if change is None or seq < change else 1
        _push(simulated, 10.0 * seq, 1 if seq <= 10 else 2, seq, [100 * seq] * 4, weights_version=weights)
    [only] = rearrangements(simulated.state, ("prod", "tiny"), 1)
    assert only.reason is None
    assert only.ep_estimate is None
    assert only.weights is None if told is None else (only.weights or "").startswith(told)


def test_commits_layer_by_layer_are_one_rearrangement() -> None:
    simulated = Simulated(plan(rearrange_s=4, skew=0.3)).run(60, every=2)
    # Versions rise every 4 s: nothing settles, so all of it is one run that began with the first placement.
    assert rearrangements(simulated.state, DEPLOYMENT, 1) == []


def test_over_http(service: Service) -> None:
    push_fleet(service, rounds=20, every=10.0, skew=0.3, rearrange_s=100)
    response = service.client.get("/v1/advice/rearrangements")
    check(service.get("/openapi.json"), "/v1/advice/rearrangements", response)
    [_, first] = response.json()["rearrangements"]
    assert first["saving_achieved"] == pytest.approx(first["saving_predicted"], rel=0.2)
