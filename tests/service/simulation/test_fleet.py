"""The simulated fleet: frames that a service accepts, with the balance that was asked for."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moescope.capture import wire
from moescope.capture.wire.traces import decode_part, encode_part
from moescope.service.cli.simulate_options import outage
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Outage, Plan
from moescope.service.simulation.routing import Habits, RoutingModel, Shape
from moescope.service.simulation.traces import TOKENS_OF_A_REQUEST
from tests.service.cli.running import run
from tests.service.conftest import Service

SHAPE = Shape(layers=3, experts=16, top_k=4, first_layer=2)
PLAN = Plan(ranks=4, shape=SHAPE, tokens_per_s=1000.0)
START_NS = 1_700_000_000 * 10**9


def frames(plan: Plan, seconds: float = 10.0) -> list[wire.Frame]:
    made = list(Fleet(plan, START_NS).advance(seconds))
    for frame in made:
        wire.check_frame(frame)
    return made


def counts(frame: wire.Frame) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return wire.unpack_counts(frame.counts).reshape(len(frame.layers), -1)


@pytest.mark.parametrize("tokens", [0, 1, 3, 100, 100_000])
@pytest.mark.parametrize("habits", [Habits(skew=0.0), Habits(skew=2.0, dead=5), Habits(hot=1.0, dead=1)])
def test_slots_are_conserved_and_no_token_takes_an_expert_twice(tokens: int, habits: Habits) -> None:
    model = RoutingModel(SHAPE, habits, seed=3)
    inclusion = model.inclusion()
    assert inclusion.sum(axis=1) == pytest.approx(SHAPE.top_k)
    assert ((inclusion == 0).sum(axis=1) == habits.dead).all()
    drawn = model.draw(tokens, inclusion)
    assert (drawn.sum(axis=1) == tokens * SHAPE.top_k).all()
    assert drawn.min() >= 0
    assert drawn.max() <= tokens
    assert (drawn[inclusion == 0] == 0).all()


def test_skew_drift_and_the_hot_expert_do_what_they_say() -> None:
    even = RoutingModel(SHAPE, Habits(skew=0.0), seed=1).inclusion()
    assert even == pytest.approx(SHAPE.top_k / SHAPE.experts)
    skewed = RoutingModel(SHAPE, Habits(skew=1.0), seed=1)
    assert skewed.inclusion().max() > 2 * even.max()
    assert len(set(skewed.inclusion().argmax(axis=1).tolist())) > 1  # each layer has an order of its own
    before = skewed.inclusion()
    drifting = RoutingModel(SHAPE, Habits(skew=1.0, drift=0.1), seed=1)
    drifting.advance(100)
    assert np.abs(drifting.inclusion() - before).max() > 0.05
    hot = RoutingModel(SHAPE, Habits(skew=0.0, hot=0.9, hot_moves_s=60), seed=1)
    first = hot.inclusion()
    assert first.max(axis=1) == pytest.approx(0.9)
    hot.advance(61)
    assert (hot.inclusion().argmax(axis=1) != first.argmax(axis=1)).all()


def test_the_same_seed_gives_the_same_frames() -> None:
    assert frames(PLAN) == frames(PLAN)
    assert frames(PLAN) != frames(replace(PLAN, seed=7))


def test_rank_imbalance_is_max_over_mean_of_tokens() -> None:
    tokens = [frame.tokens for frame in frames(replace(PLAN, rank_imbalance=2.5), 1000.0)]
    assert tokens[0] == max(tokens)
    assert max(tokens) / np.mean(tokens) == pytest.approx(2.5, rel=0.02)


def test_totals_are_cumulative_and_a_rank_that_fails_begins_a_new_epoch() -> None:
    fleet = Fleet(replace(PLAN, outages=(Outage(1, 2.0, 4.0), Outage(2, 3.0))), START_NS)
    seen: dict[int, list[wire.Frame]] = {}
    for _ in range(5):
        for frame in fleet.advance(1.0):
            seen.setdefault(frame.producer.dp_rank, []).append(frame)
    assert [frame.seq for frame in seen[0]] == [1, 2, 3, 4, 5]
    assert (np.diff([counts(frame) for frame in seen[0]], axis=0) >= 0).all()
    assert [frame.seq for frame in seen[1]] == [1, 1, 2]
    assert seen[1][1].epoch == START_NS + 4 * 10**9
    assert len(seen[2]) == 2


def placed(frame: wire.Frame, counts: np.ndarray) -> np.ndarray:
    """Slots by layer and EP rank, through the frame's placement."""
    assert frame.placement is not None
    slots = np.zeros((len(frame.layers), frame.producer.ep_size), dtype=np.int64)
    for layer, table in enumerate(frame.placement.table_of_layer):
        logical = wire.unpack_ids(frame.placement.tables[table].physical_to_logical)
        ranks = wire.unpack_ids(frame.placement.tables[table].physical_to_ep_rank)
        np.add.at(slots[layer], ranks, counts[layer][logical])
    return slots


def step_loads(frame: wire.Frame) -> tuple[np.ndarray, np.ndarray]:
    assert frame.step_loads is not None
    return wire.unpack_step_loads(frame.step_loads, len(frame.layers), frame.producer.ep_size)


@pytest.mark.parametrize("rearrange_s", [None, 1.0])
def test_steps_have_one_number_on_all_ranks_and_their_loads_are_what_was_counted(
    rearrange_s: float | None,
) -> None:
    plan = replace(PLAN, tokens_per_s=30.0, rearrange_s=rearrange_s, habits=Habits(skew=1.0))
    fleet, before, at = (
        Fleet(plan, START_NS),
        {rank: np.zeros((3, 16), dtype=np.int64) for rank in range(4)},
        0,
    )
    dummies = 0
    for _ in range(4):
        made = list(fleet.advance(1.0))
        for frame in made:
            wire.check_frame(frame)
            assert frame.step_loads is not None
            assert (frame.step_loads.first, frame.step_loads.end) == (at, at + 25)
            numbers, loads = step_loads(frame)
            rank = frame.producer.dp_rank
            assert loads.sum(axis=0).tolist() == placed(frame, counts(frame) - before[rank]).tolist()
            assert frame.steps + frame.idle_steps == at + 25
            dummies += 25 - len(numbers)
            before[rank] = counts(frame)
        at += 25
    assert dummies > 0


def test_decode_is_a_part_of_the_whole_and_has_a_habit_of_its_own() -> None:
    (first, *_) = frames(replace(PLAN, decode_share=0.25), 400.0)
    decode = wire.unpack_counts(first.decode_counts).reshape(3, -1)
    assert first.decode_tokens / first.tokens == pytest.approx(0.25, rel=0.02)
    assert (decode.sum(axis=1) == first.decode_tokens * SHAPE.top_k).all()
    assert 0 < first.mixed_steps <= first.steps - first.decode_steps
    shares = decode / decode.sum(axis=1, keepdims=True)
    others = counts(first) - decode
    assert np.abs(shares - others / others.sum(axis=1, keepdims=True)).max() > 0.02
    (alike, *_) = frames(replace(PLAN, habits=Habits(decode_shift=0.0)), 400.0)
    decode = wire.unpack_counts(alike.decode_counts).reshape(3, -1)
    assert decode / decode.sum(axis=1, keepdims=True) == pytest.approx(
        counts(alike) / counts(alike).sum(axis=1, keepdims=True), abs=0.01
    )


def test_drafts_are_a_share_of_the_decode_tokens_and_some_are_accepted() -> None:
    (first, *_) = frames(replace(PLAN, draft_share=0.5, draft_acceptance=0.8), 400.0)
    drafts = first.accepted_drafts + first.rejected_drafts
    assert 0.45 * first.decode_tokens < drafts < 0.55 * first.decode_tokens
    assert 0.75 * drafts < first.accepted_drafts < 0.85 * drafts
    (without, *_) = frames(PLAN, 400.0)
    assert (without.accepted_drafts, without.rejected_drafts) == (0, 0)


def test_a_hot_rank_that_alternates_is_planted_in_every_step_and_in_no_window() -> None:
    made = frames(replace(PLAN, alternate=2.0, habits=Habits(skew=0.0, decode_shift=0.0)), 16.0)
    loads = np.sum([step_loads(frame)[1] for frame in made], axis=0)  # every rank computes in each step
    assert loads.shape == (400, 3, 4)
    assert (loads.argmax(axis=2) == (np.arange(400) % 4)[:, np.newaxis]).all()
    assert loads.max(axis=2).sum() / loads.mean(axis=2).sum() == pytest.approx(2.0, rel=0.01)
    window = loads.sum(axis=0)
    assert (window.max(axis=1) / window.mean(axis=1)).max() < 1.02


def test_lost_steps_are_left_out_of_the_loads_only() -> None:
    (first, *_) = frames(replace(PLAN, lost_steps=0.5), 8.0)
    assert first.step_loads is not None
    assert first.step_loads.end == 200
    assert 60 < first.step_loads.first < 140
    assert first.steps + first.idle_steps == 200
    (late, *_) = frames(PLAN, 40.0)
    assert late.step_loads is not None
    assert late.step_loads.end - late.step_loads.first == 512
    (none, *_) = frames(replace(PLAN, lost_steps=1.0), 8.0)
    assert none.step_loads is not None
    assert none.step_loads.first == none.step_loads.end == 200


def test_without_phases_frames_are_those_of_an_older_capturer() -> None:
    (first, *_) = frames(replace(PLAN, phases=False))
    assert first.wire == (1, 2)
    assert (first.decode_counts, first.decode_rows, first.step_loads) == (b"", b"", None)
    assert first.decode_tokens == first.decode_steps == first.mixed_steps == 0


def test_a_rearrangement_moves_experts_by_load() -> None:
    plan = replace(PLAN, habits=Habits(skew=1.0), rearrange_s=10.0)
    fleet = Fleet(plan, START_NS)
    before, after = (next(iter(fleet.advance(9.0))).placement, next(iter(fleet.advance(2.0))).placement)
    assert before is not None
    assert after is not None
    assert (before.version, after.version) == (1, 2)
    assert len(after.tables) == SHAPE.layers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_imbalance": 5.0}, "rank imbalance 5 is not in 1..4"),
        ({"outages": (Outage(4, 1.0),)}, "rank 4 can't fail"),
        ({"alternate": 4.5}, r"alternate 4.5 is not in 1..4"),
    ],
)
def test_plans_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **fields)  # type: ignore[arg-type]


def test_shapes_and_outages_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="top-k 8 is above"):
        Shape(experts=4)
    with pytest.raises(ValueError, match="fewer than top-k 4"):
        RoutingModel(SHAPE, Habits(dead=13), seed=0)
    assert outage("3@60-120.5") == Outage(3, 60.0, 120.5)
    with pytest.raises(ValueError, match=r"write RANK@START"):
        outage("3:60")


def test_the_command_feeds_a_service_that_measures_what_was_asked_for(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(use_clock=time.time, min_tokens=1)
    done = run(
        "simulate",
        *("--url", service.url, "--ranks", "4", "--layers", "3", "--experts", "16", "--top-k", "4"),
        *("--rank-imbalance", "2", "--uncovered", "4", "--dead", "2"),
        *("--interval", "0.1", "--duration", "0.3"),
    )
    assert done.returncode == 0, done.output
    assert "4 ranks, 3 layers of 16 experts" in done.stdout
    (deployment,) = service.get("/v1/ranks")["deployments"]
    assert [rank["dp_rank"] for rank in deployment["dp_ranks"]] == [0, 1, 2, 3]
    balance = service.get("/v1/balance")
    assert balance["dp_tokens"]["measures"]["imbalance_ratio"] == pytest.approx(2, rel=0.2)
    assert [layer["layer"] for layer in balance["layers"]] == [3, 5]
    assert [layer["over_experts"]["measures"]["dead"] for layer in balance["layers"]] == [2, 2]
    histogram = service.get("/v1/histogram")
    assert [layer["slots"] for layer in histogram["layers"]] == [balance["tokens"] * 4] * 2


def test_errors_say_what_to_do() -> None:
    assert run("simulate", "--rank-imbalance", "99").returncode == 2
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    url = f"http://127.0.0.1:{free}"
    done = run("simulate", "--url", url, "--duration", "0", "--interval", "0.05")
    assert done.returncode == 5
    assert "no service answers" in done.stdout


def test_traces_are_real_wire_messages_of_requests_that_choose_by_the_fleets_popularity() -> None:
    plan = replace(PLAN, habits=Habits(skew=1.0, dead=3), trace_rate=1.0, outages=(Outage(2, 0.0),))
    fleet = Fleet(plan, START_NS)
    counted = sum(counts(frame) for frame in fleet.advance(20.0))
    parts = [decode_part(encode_part(part)) for part in fleet.traces(20.0)]
    assert len(parts) == pytest.approx(3 * 20 * 1000 / TOKENS_OF_A_REQUEST, rel=0.3)
    assert {part.producer.dp_rank for part in parts} == {0, 1, 3}
    assert len({(part.producer.key, part.trace) for part in parts}) == len(parts)
    assert any(part.cached_tokens for part in parts)
    assert any(part.preemptions for part in parts)
    traced = np.zeros_like(counted)
    for part in parts:
        for index in range(len(part.layers)):
            ids = part.ids_of(index)
            assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()  # no expert twice by one token
            traced[index] += np.bincount(ids.ravel(), minlength=SHAPE.experts)
    assert ((counted == 0) == (traced == 0)).all()  # dead experts stay dead
    for mine, theirs in zip(traced, counted, strict=True):
        assert np.corrcoef(mine, theirs)[0, 1] > 0.8


def test_tracing_changes_no_frame_and_none_is_made_unless_asked_for() -> None:
    assert frames(replace(PLAN, trace_rate=1.0)) == frames(PLAN)
    fleet = Fleet(PLAN, START_NS)
    list(fleet.advance(10.0))
    assert list(fleet.traces(10.0)) == []
    with pytest.raises(ValueError, match="trace rate 2"):
        replace(PLAN, trace_rate=2.0)


def routed(plan: Plan) -> list[tuple[wire.Producer, np.ndarray[tuple[int, int], np.dtype[np.float64]]]]:
    """Each replica's producer of rank 0, and the shares of the experts over its ranks, [L, E]."""
    found = []
    for deployment in plan.deployments:
        made = list(Fleet(deployment, START_NS).advance(20.0))
        for frame in made:
            wire.check_frame(frame)
        slots = np.sum([counts(frame) for frame in made], axis=0)
        found.append((made[0].producer, slots / slots.sum(axis=1, keepdims=True)))
    return found


def test_replicas_have_one_habit_and_tokens_of_their_own() -> None:
    plan = replace(PLAN, replicas=3, pool="chat", habits=Habits(skew=1.0, drift=0.1))
    (a, of_a), (b, of_b), (c, of_c) = routed(plan)
    assert [who.server for who in (a, b, c)] == ["simulated-0", "simulated-1", "simulated-2"]
    assert {(who.pool, who.role) for who in (a, b, c)} == {("chat", "")}
    assert np.abs(of_a - of_b).max() < 0.01
    assert (of_a != of_b).any()
    shifted = routed(replace(plan, replica_shift=1.0))
    assert np.abs(shifted[0][1] - shifted[1][1]).max() < 0.01
    assert np.abs(shifted[0][1] - shifted[2][1]).max() > 0.05
    assert np.abs(of_b - of_c).max() < 0.01


def test_one_replica_has_more_tokens() -> None:
    plan = replace(PLAN, replicas=4, replica_imbalance=2.5)
    tokens = [
        sum(frame.tokens for frame in Fleet(deployment, START_NS).advance(20.0))
        for deployment in plan.deployments
    ]
    assert np.array(tokens) / np.mean(tokens) == pytest.approx([2.5, 0.5, 0.5, 0.5], rel=0.05)


def test_prefill_and_decode_are_computed_apart() -> None:
    made = {
        deployment.role: list(Fleet(deployment, START_NS).advance(10.0))
        for deployment in replace(PLAN, replicas=2, roles=True).deployments
    }
    assert {role: frames[0].producer.role for role, frames in made.items()} == {
        "prefill": "prefill",
        "decode": "decode",
    }
    assert all(frame.decode_tokens == 0 < frame.tokens for frame in made["prefill"])
    assert all(frame.decode_tokens == frame.tokens > 0 for frame in made["decode"])


def test_replicas_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="2 replicas or more"):
        replace(PLAN, roles=True)
    with pytest.raises(ValueError, match=r"replica imbalance 3 is not in 1\.\.2"):
        replace(PLAN, replicas=2, replica_imbalance=3.0)


def test_the_command_feeds_all_replicas(start_service: Callable[..., Service]) -> None:
    service = start_service(use_clock=time.time, min_tokens=1)
    options = ["--replicas", "2", "--pool", "chat", "--roles", "--ranks", "2", "--layers", "2"]
    done = run("simulate", "--url", service.url, "--duration", "0", "--interval", "0.05", *options)
    assert done.returncode == 0, done.output
    assert done.stdout.startswith("2 replicas of 2 ranks, ")
    [pool] = service.get("/v1/pools")["pools"]
    assert [(item["server"], item["role"]) for item in pool["deployments"]] == [
        ("simulated-0", "prefill"),
        ("simulated-1", "decode"),
    ]
