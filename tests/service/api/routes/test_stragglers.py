"""/v1/stragglers over a real connection: windows, series, restarts of the service, planted stragglers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Outage, Plan
from moescope.service.simulation.routing import Habits, Shape
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer

AT = EPOCH / 1e9


def push(service: Service, dp_rank: int, seq: int, counts: list[int], first: int, loads: Any) -> None:
    """Both layers alike: cumulative counts of four experts, and the loads of the steps from ``first`` on."""
    values = np.repeat(np.array(loads, dtype=np.int64).reshape(-1, 1, 2), 2, axis=1)
    busy = np.flatnonzero(values.any(axis=(1, 2)))
    made = frame(
        {0: counts, 3: counts},
        who=producer(dp_rank=dp_rank, dp_size=2, ep_rank=dp_rank, ep_size=2),
        seq=seq,
        after_s=service.clock.now - AT,
        placement=halves(4, 2),
        steps=seq,
        step_loads=wire.pack_step_loads(first, first + len(values), first + busy, values[busy], 1),
    )
    assert service.push(made).status_code == 200


def push_two_rounds(service: Service) -> None:
    """In the first ten seconds rank 0 is hot, then 1, by turns; in the second both are even."""
    service.clock.now = AT + 10
    push(service, 0, 1, [8, 0, 8, 0], 0, [[8, 0], [0, 8]])
    push(service, 1, 1, [2, 0, 2, 0], 0, [[2, 0], [0, 2]])
    service.clock.now = AT + 20
    push(service, 0, 2, [10, 0, 10, 0], 2, [[2, 2], [0, 0]])
    push(service, 1, 2, [4, 0, 4, 0], 2, [[2, 2], [0, 0]])


def test_the_cost_is_of_steps_and_the_window_misses_it(service: Service) -> None:
    push_two_rounds(service)
    answer = service.get("/v1/stragglers", end=AT + 10)
    assert (answer["straggler_cost"], answer["windowed_straggler_share"]) == (0.5, 0)
    assert (answer["max_slots"], answer["mean_slots"]) == (40, 20)
    assert answer["hottest"] == [2, 2]
    assert answer["caused"] == [10, 10]
    [layer, _] = answer["layers"]
    assert (layer["steps"], layer["max_slots"], layer["mean_slots"]) == (2, 20, 10)
    assert (layer["straggler_cost"], layer["windowed_straggler_share"]) == (0.5, 0)
    assert layer["caused"] == [5, 5]
    assert answer["stages"] == [{"pp_rank": 0, "joined": 2, "incomplete": 0, "pending": 0, "reason": None}]
    assert answer["reason"] is None


def test_windows_and_series_add_up(service: Service) -> None:
    push_two_rounds(service)
    whole = service.get("/v1/stragglers")
    later = service.get("/v1/stragglers", start=AT + 10)
    assert (later["straggler_cost"], later["stages"][0]["joined"], later["layers"][0]["steps"]) == (0, 2, 1)
    assert whole["straggler_cost"] == pytest.approx(1 - (20 + 8) / (40 + 8))
    series = service.get("/v1/stragglers", start=AT, end=AT + 20, step="10s", layer=3)
    assert [item["straggler_cost"] for item in series["series"]] == [0.5, 0]
    assert [item["joined"] for item in series["series"]] == [2, 2]
    assert [layer["layer"] for layer in series["layers"]] == [3]
    assert service.client.get("/v1/stragglers", params={"layer": 7}).status_code == 404


def test_a_window_with_tokens_and_no_joined_step_is_not_called_idle(service: Service) -> None:
    push_two_rounds(service)
    last = service.clock.now
    assert "idle" in service.get("/v1/stragglers", start=last + 1, end=last + 2)["reason"]
    service.clock.now = last + 20
    for rank in (0, 1):  # goes on without loads of steps, as under EPLB
        push(service, rank, 9, [90, 0, 90, 0], 2, [])
    answer = service.get("/v1/stragglers", start=last + 1)
    assert answer["straggler_cost"] is None
    assert answer["reason"].startswith("no step of the window was joined, though tokens were computed")


def test_late_and_doubled_frames_join_their_steps_once(service: Service) -> None:
    service.clock.now = AT + 10
    push(service, 0, 2, [4, 0, 4, 0], 1, [[0, 4]])
    push(service, 0, 1, [4, 0, 0, 0], 0, [[4, 0]])  # its totals are stale, its steps are not
    push(service, 0, 2, [4, 0, 4, 0], 1, [[0, 4]])
    push(service, 1, 1, [0, 0, 0, 0], 0, [[0, 0], [0, 0]])
    answer = service.get("/v1/stragglers")
    assert (answer["stages"][0]["joined"], answer["max_slots"]) == (2, 16)


def test_what_waits_and_why_is_told(service: Service) -> None:
    service.push(frame({0: [1, 1]}, who=producer(model="one")))
    assert "ep_size is 1" in service.get("/v1/stragglers", model="one")["reason"]
    service.push(frame({0: [1, 1]}, who=producer(model="old", ep_size=2), placement=halves(2, 1)))
    assert "wire 1.3" in service.get("/v1/stragglers", model="old")["reason"]
    service.clock.now = AT + 10
    push(service, 0, 1, [8, 0, 8, 0], 0, [[8, 0], [0, 8]])
    answer = service.get("/v1/stragglers", model="tiny")
    assert answer["straggler_cost"] is None
    assert answer["stages"][0]["pending"] == 2
    assert answer["reason"] == "no loads of steps have come from DP rank 1 since the start"
    assert answer["layers"][0]["straggler_cost"] is None


def test_costs_outlive_the_service(start_service: Callable[..., Service], tmp_path: Path) -> None:
    service = start_service(min_tokens=1, store=tmp_path / "store")
    push_two_rounds(service)
    before = service.get("/v1/stragglers")
    start_service.end_all()  # type: ignore[attr-defined]
    service = start_service(min_tokens=1, store=tmp_path / "store")
    service.clock.now = AT + 21
    after = service.get("/v1/stragglers")
    assert after["layers"] == before["layers"]
    first = service.get("/v1/stragglers", start=AT, end=AT + 20, step="10s")["series"]
    assert [(item["joined"], item["straggler_cost"]) for item in first] == [(2, 0.5), (2, 0)]
    service.clock.now = AT + 30
    push(service, 0, 3, [12, 0, 10, 0], 4, [[2, 0]])
    push(service, 1, 3, [6, 0, 4, 0], 4, [[2, 0]])
    answer = service.get("/v1/stragglers")
    assert (answer["stages"][0]["joined"], answer["max_slots"]) == (5, 48 + 8)


def test_a_hot_rank_that_alternates_costs_what_was_planted_and_looks_balanced_in_the_window(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(min_tokens=1)
    plan = Plan(
        ranks=32,
        shape=Shape(layers=4),
        habits=Habits(skew=0.0, drift=0.0, decode_shift=0.0),
        tokens_per_s=4000.0,
        alternate=2.5,
    )
    fleet = Fleet(plan, int(AT * 1e9))
    loads = np.zeros((128, 4, 32), dtype=np.int64)
    for second in range(1, 5):
        service.clock.now = AT + second
        for made in fleet.advance(1.28):
            assert service.push(made).status_code == 200
            assert made.step_loads is not None
            numbers, values = wire.unpack_step_loads(made.step_loads, 4, 32)
            loads[numbers] += values
    answer = service.get("/v1/stragglers")
    assert answer["stages"][0] == {"pp_rank": 0, "joined": 128, "incomplete": 0, "pending": 0, "reason": None}
    direct = 1 - loads.mean(axis=2).sum() / loads.max(axis=2).sum()
    assert answer["straggler_cost"] == pytest.approx(direct, abs=1e-12)
    assert answer["straggler_cost"] == pytest.approx(1 - 1 / 2.5, abs=0.005)
    assert answer["windowed_straggler_share"] < 0.02
    assert max(answer["hottest"]) / (128 * 4) == pytest.approx(1 / 32, rel=0.05)


def test_a_series_says_what_windows_of_its_intervals_say(start_service: Callable[..., Service]) -> None:
    """With a rank that starts again, steps that are lost, and rearrangements on the way."""
    service = start_service(min_tokens=1)
    plan = Plan(
        ranks=3,
        shape=Shape(layers=3, experts=12, top_k=2),
        habits=Habits(skew=1.0, drift=0.2),
        tokens_per_s=400.0,
        outages=(Outage(1, 6.0, 8.0),),
        rearrange_s=3.0,
        lost_steps=0.1,
    )
    fleet = Fleet(plan, int(AT * 1e9))
    for second in range(1, 11):
        service.clock.now = AT + second
        for made in fleet.advance(1.0):
            assert service.push(made).status_code == 200
    series = service.get("/v1/stragglers", start=AT, end=AT + 10, step="1s")["series"]
    assert len(series) == 10
    assert sum(item["joined"] for item in series) > 80
    for item in series:
        alone = service.get("/v1/stragglers", start=item["start"], end=item["end"])
        for name in ("straggler_cost", "windowed_straggler_share"):
            assert item[name] == (None if alone[name] is None else pytest.approx(alone[name])), item
        assert item["hottest_rank"] == alone["hottest_rank"]
        assert item["truncated"] == alone["window"]["truncated"]
        assert item["joined"] == sum(stage["joined"] for stage in alone["stages"])


def test_a_series_that_is_too_long_is_refused_with_what_to_ask_for(service: Service) -> None:
    who = producer(dp_rank=0, dp_size=2, ep_size=4096)
    service.push(frame({0: [4096] * 4}, who=who, placement=halves(4, 1, ep_size=4096)))
    response = service.client.get("/v1/stragglers", params={"start": "-1h", "step": "4s"})
    assert response.status_code == 200
    wide = {layer: [64] * 4 for layer in range(4)}
    who = producer(dp_rank=0, dp_size=2, ep_size=4096, model="wide")
    service.push(frame(wide, who=who, placement=halves(4, 4, ep_size=4096)))
    params = {"model": "wide", "start": "-1h", "step": "4s"}
    response = service.client.get("/v1/stragglers", params=params)
    assert response.status_code == 400
    assert "ask for 512 intervals at most" in response.json()["detail"]
