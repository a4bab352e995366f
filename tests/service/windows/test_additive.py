"""Adjacent windows add up to the whole, exactly, in every number, whatever the network did to the frames."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any

import pytest

from moescope.capture import wire
from moescope.service.counts.phase_split import Phase
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.window import ModelWindow
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, placement, producer
from tests.service.windows.fleet_talk import Sizes, Talk

AT = EPOCH / 1e9
FLEETS = [
    Sizes(),
    Sizes(dp=1, tp=2),
    Sizes(dp=2, pp=2),
    Sizes(dp=3, pp=2, tp=2, ep=3),
    Sizes(dp=2, tp=3, ep=3),
]


@functools.cache
def heard(sizes: Sizes, seed: int, bad: bool = True) -> tuple[LiveState, list[float]]:
    """A state that has heard a fleet for 30 s, and the clock that it goes by; both are only read."""
    clock = [AT]
    state = LiveState(Settings(), lambda: clock[0])
    for at, made in Talk(seed, sizes, copies=3, begin=AT).arrivals(30, bad):
        clock[0] = at
        state.ingest(made)
    return state, clock


def numbers(window: ModelWindow) -> dict[Any, float]:
    """Everything that is counted in a window, by name; loads by EP rank in 6ths of a slot."""
    found: dict[Any, float] = {"tokens": window.tokens}
    for rank in window.dp_ranks:
        found |= {
            ("tokens", rank.rank): rank.tokens,
            ("steps", rank.rank): rank.steps,
            ("idle", rank.rank): rank.idle_steps,
        }
        if rank.phases is not None:
            found |= {
                (name, rank.rank): getattr(rank.phases, name)
                for name in (
                    "prefill_tokens",
                    "decode_tokens",
                    "prefill_steps",
                    "decode_steps",
                    "mixed_steps",
                )
            }
    for layer in window.layers:
        for rank, slots, rows in zip(layer.dp_ranks, layer.slots.tolist(), layer.rows, strict=True):
            found["rows", rank, layer.shape.layer] = int(rows)
            found["slots", rank, layer.shape.layer] = slots
        found |= {("counts", layer.shape.layer, e): n for e, n in enumerate(layer.counts.tolist())}
        for ep_rank, slots in enumerate(layer.ep_slots.tolist()):
            assert 6 * slots == pytest.approx(round(6 * slots), abs=1e-9)
            found["ep", layer.shape.layer, ep_rank] = round(6 * slots)
    return found


@pytest.mark.parametrize("sizes", FLEETS)
@pytest.mark.parametrize("phase", [None, *Phase])
def test_adjacent_windows_add_up(sizes: Sizes, phase: Phase | None) -> None:
    moved = 0
    for seed in range(4):
        state, clock = heard(sizes, seed)
        cuts = [None, *(AT + 0.37 * i for i in range(1, 90)), None]
        spans, _ = state.whole_and_parts(("prod", "tiny"), cuts)
        whole = merge_spans_of_phase(spans, phase)
        total: dict[Any, float] = {}
        for start, end in pairwise(cuts):
            part = merge_spans_of_phase(state.spans(("prod", "tiny"), start, end), phase)
            assert all(rank.tokens >= 0 and rank.steps >= 0 for rank in part.dp_ranks)
            for name, number in numbers(part).items():
                assert number >= 0, name
                total[name] = total.get(name, 0) + number
        expected = numbers(whole)
        assert {name: total.get(name, 0) for name in expected} == expected
        assert all(number == 0 for name, number in total.items() if name not in expected)
        assert clock[0] > AT + 29
        moved += whole.tokens
    assert moved > 1000


@pytest.mark.parametrize("sizes", FLEETS)
def test_what_arrived_is_what_was_computed(sizes: Sizes) -> None:
    state, _ = heard(sizes, 7, bad=False)
    window = merge_spans_of_phase(state.spans(("prod", "tiny"), None, None), None)
    last: dict[Any, wire.Frame] = {}
    for _, made in Talk(7, sizes, copies=3, begin=AT).arrivals(30, bad=False):
        last[made.producer.key] = made
    for rank in window.dp_ranks:
        told = [item.tokens for key, item in last.items() if key[2] == rank.rank]
        assert rank.tokens == max(told)


@pytest.mark.parametrize("sizes", FLEETS)
@pytest.mark.parametrize("phase", [None, "decode"])
def test_series_and_trend_and_advice_add_up(service: Service, sizes: Sizes, phase: str | None) -> None:
    wanted = {} if phase is None else {"phase": phase}
    for at, made in Talk(3, sizes, begin=AT).arrivals(40):
        service.clock.now = at
        service.push(made)
    service.clock.now = AT + 60
    answer = service.get("/v1/histogram", start=AT, step="0.7s", **wanted)
    assert sum(part["tokens"] for part in answer["series"]) == answer["tokens"] > 500
    for i, layer in enumerate(answer["layers"]):
        shown = [part["layers"][i] for part in answer["series"]]
        assert sum(part["tokens"] or 0 for part in shown) == layer["tokens"]
        counts = [part["counts"] for part in shown if part["counts"] is not None]
        assert [sum(column) for column in zip(*counts, strict=True)] == layer["counts"]
    for step in (1, 5, 7):
        points = math.ceil(70 / step)
        trend = service.get("/v1/trend", step=step, points=points, **wanted)
        rates = [rate for row in trend["tokens_per_second"] for rate in row if rate is not None]
        assert step * sum(rates) == pytest.approx(answer["tokens"])
    if phase is None:
        advice = service.get("/v1/advice", start=AT)
        assert advice["fit_tokens"] + advice["held_out_tokens"] == answer["tokens"]


def two_workers(service: Service, second: int, tokens: int, times: tuple[float, ...], **fields: Any) -> None:
    """Both TP workers tell of the same tokens, one after the other; the first one counts all rows."""
    for tp_rank, late in enumerate(times):
        service.clock.now = AT + second + late
        rows = tokens if tp_rank == 0 else 0
        who = producer(tp_rank=tp_rank, tp_size=2, ep_rank=tp_rank, ep_size=2)
        counts = {0: [rows] * 2}
        service.push(
            frame(
                counts,
                who=who,
                seq=second + 1,
                after_s=second + late,
                tokens=tokens,
                placement=halves(2, 1),
                **fields,
            )
        )


def test_tp_workers_that_report_half_a_second_apart_count_their_tokens_once(service: Service) -> None:
    for second in range(1, 11):
        two_workers(service, second, 200 * min(max(second - 3, 0), 4), (0.2, 0.7))
    service.clock.now = AT + 11
    cut = service.get("/v1/histogram", start=AT + 0.5, end=AT + 10.5, step="1s")
    assert cut["tokens"] == sum(part["tokens"] for part in cut["series"]) == 800
    assert sorted(part["tokens"] for part in cut["series"]) == [0] * 6 + [200] * 4
    trend = service.get("/v1/trend", step=1, points=10)
    assert [sum(rate or 0 for rate in row) for row in trend["tokens_per_second"]] == [800]


def test_a_burst_shows_once_and_an_empty_last_interval_is_idle(service: Service) -> None:
    for second in range(1, 11):
        two_workers(service, second, 2000 * (second >= 6), (0.2, 0.7))
    answer = service.get("/v1/histogram", start=AT + 1.5, step="1s")
    assert [part["tokens"] for part in answer["series"]] == [0, 0, 0, 0, 2000, 0, 0, 0, 0, 0]
    assert [part["layers"][0]["counts"] for part in answer["series"]] == [[0, 0]] * 4 + [[2000] * 2] + [
        [0, 0]
    ] * 5
    last = service.get("/v1/histogram", start=AT + 6.5)
    assert (last["tokens"], last["layers"][0]["reason"]) == (0, "idle: no tokens in the window")
    assert service.get("/v1/balance", start=AT + 6.5)["layers"][0]["over_experts"]["loads"] == [0, 0]


def test_a_burst_is_in_the_window_in_which_its_stage_tells_of_it(service: Service) -> None:
    for second in range(1, 6):
        for pp_rank, late in ((0, 0.2), (1, 0.7)):
            service.clock.now = AT + second + late
            who = producer(pp_rank=pp_rank, pp_size=2)
            counts = {pp_rank: [100 * (second >= 3)] * 4}
            service.push(
                frame(counts, who=who, seq=second, after_s=second + late, rows=[200 * (second >= 3)])
            )
    parts = service.get("/v1/histogram", start=AT + 0.5, end=AT + 5.5, step="1s")["series"]
    assert [part["tokens"] for part in parts] == [0, 0, 200, 0, 0]
    first, other = ([part["layers"][i]["counts"] for part in parts] for i in (0, 1))
    assert first == [[0] * 4, [0] * 4, [100] * 4, [0] * 4, [0] * 4]
    assert other == [[0] * 4, [0] * 4, None, [100] * 4, [0] * 4]  # not told yet is not zero


def test_parts_of_slots_cancel(service: Service) -> None:
    """All prefill is of expert 3. Of decode a third went to each rank that has a copy of expert 0."""
    placed = placement([0, 1, 2, 3, 0, 0], [0, 0, 1, 1, 2, 3], 1)
    whole, decode = [0, 0, 0, 0], [0, 0, 0, 0]
    for seq in range(1, 60):
        more = [7 * seq + 1, seq % 3, seq % 2, 0]
        decode = [before + new for before, new in zip(decode, more, strict=True)]
        whole = [before + new for before, new in zip(whole, more, strict=True)]
        whole[3] += 2
        service.push(
            frame(
                {0: whole},
                decode={0: decode},
                top_k=1,
                who=producer(ep_size=4),
                seq=seq,
                after_s=seq,
                placement=placed,
            )
        )
    cell = service.get("/v1/balance", phase="prefill")["layers"][0]["over_ep_ranks"]
    assert (cell["loads"], cell["measures"]["dead"]) == ([0, 118, 0, 0], 3)
    assert service.get("/v1/view", phase="prefill", parts=["flows"])["flows"] == [[0, 118, 0, 0]]
    loads = service.get("/v1/balance", phase="decode")["layers"][0]["over_ep_ranks"]["loads"]
    assert loads[2] == loads[3] == decode[0] / 3
    assert sum(loads) == pytest.approx(sum(decode))
