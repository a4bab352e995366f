"""What docs/measures.md defines of windows and of what is no sample, a test each, over a real connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer

AT = EPOCH / 1e9


def push(service: Service, at: float, tokens: int, **fields: Any) -> None:
    """A frame that arrives at a second; tokens since the start, of top-k 2, even over four experts."""
    service.clock.now = AT + at
    named = {"after_s": at, "placement": halves(4, 1), "who": producer(ep_size=2), **fields}
    made = frame({0: [tokens // 2] * 4}, seq=int(at * 10) + 1, **named)
    assert service.push(made).json()["result"] == "accepted"


def tokens(service: Service, start: float | None, end: float | None) -> tuple[int | None, bool]:
    """Tokens of a window (None: not known), and whether it is truncated."""
    bounds = {"start": start, "end": end}
    answer = service.get("/v1/histogram", **{name: AT + at for name, at in bounds.items() if at is not None})
    return answer["tokens"], answer["window"]["truncated"]


def test_a_boundary_takes_the_latest_arrival_at_or_before_it(service: Service) -> None:
    for at, total in ((2, 20), (4, 60), (6, 140)):
        push(service, at, total)
    service.clock.now = AT + 10
    assert tokens(service, 2, 4) == (40, False)  # an arrival at the end counts, one at the begin does not
    assert tokens(service, 3.9, 5.9) == (40, False)
    assert tokens(service, 4, 5.9) == (0, False)
    assert tokens(service, 4, 100) == (80, False)
    assert tokens(service, None, None) == (140, False)


def test_before_the_first_frame_a_boundary_takes_the_first_and_says_so(service: Service) -> None:
    push(service, 5, 50)  # its counting began at AT
    push(service, 7, 70)
    assert tokens(service, -9, 7) == (70, False)
    assert tokens(service, -9, 0) == (0, False)  # nothing had begun
    assert tokens(service, -9, 3) == (50, True)
    assert tokens(service, 3, 7) == (20, True)
    assert tokens(service, 3, 4) == (None, True)
    [layer] = service.get("/v1/histogram", start=AT + 3, end=AT + 4)["layers"]
    assert layer["counts"] is None
    assert "the window is before what the service remembers" in layer["reason"]
    window = service.get("/v1/histogram", start=AT - 9, end=AT + 3)["window"]
    assert window["used_start"] == {"earliest": AT, "latest": AT}
    assert window["used_end"] == {"earliest": AT + 5, "latest": AT + 5}


def test_a_late_frame_of_a_former_start_counts_when_it_comes(service: Service) -> None:
    push(service, 1, 10)
    restarted = EPOCH + 2 * 10**9
    push(service, 3, 30, epoch=restarted, after_s=1)
    push(service, 5, 18, after_s=1.9)
    assert tokens(service, None, 4) == (40, False)
    assert tokens(service, 4, None) == (8, False)


def test_windows_shorter_than_the_time_between_frames_have_none_or_all(service: Service) -> None:
    for second in range(1, 6):
        push(service, second + 0.25, 10 * second)
    answer = service.get("/v1/histogram", start=AT + 1.25, end=AT + 5.25, step="0.5s")
    assert [part["tokens"] for part in answer["series"]] == [0, 10] * 4
    assert answer["series"][0]["layers"][0]["counts"] == [0] * 4


def test_a_joined_step_is_of_the_window_with_the_first_workers_arrival(service: Service) -> None:
    def told(dp_rank: int, at: float, seq: int, first: int) -> None:
        service.clock.now = AT + at
        loads = np.full((2, 1, 2), 5, dtype=np.int64)
        steps = np.array([first, first + 1])
        made = frame(
            {0: [5 * seq] * 4},
            who=producer(dp_rank=dp_rank, dp_size=2, ep_rank=dp_rank, ep_size=2),
            seq=seq,
            after_s=at,
            placement=halves(4, 1),
            step_loads=wire.pack_step_loads(first, first + 2, steps, loads, 1),
        )
        assert service.push(made).json()["result"] == "accepted"

    for second in range(1, 5):
        told(0, second + 0.2, second, 2 * second - 2)
        told(1, second + 0.7, second, 2 * second - 2)

    def joined(start: float, end: float) -> int:
        [stage] = service.get("/v1/stragglers", start=AT + start, end=AT + end)["stages"]
        return int(stage["joined"])

    assert joined(1.5, 3.5) == 4
    assert [joined(2, 2.5), joined(2.5, 3), joined(3, 3.5)] == [2, 0, 2]
    answer = service.get("/v1/stragglers", start=AT + 2.5, end=AT + 3)
    assert (answer["straggler_cost"], answer["reason"][: len("no step")]) == (None, "no step")


def test_the_span_that_was_used_is_shared_out_between_fitting_and_checking(service: Service) -> None:
    for second in range(5, 46):
        push(service, second, 10 * second)
    service.clock.now = AT + 500
    for share, ends_at in ((0.5, 22), (0.8, 36)):  # of the 45 s from its begin to its last frame
        answer = service.get("/v1/advice", start=AT - 1000, fit_share=share)
        assert answer["fit"]["used_end"]["latest"] == AT + ends_at
        assert (answer["fit_tokens"], answer["held_out_tokens"]) == (10 * ends_at, 450 - 10 * ends_at)
    later = service.get("/v1/advice", start=AT + 25, fit_share=0.5)  # 25 to 45
    assert (later["fit_tokens"], later["held_out_tokens"]) == (100, 100)


@pytest.mark.parametrize(
    ("counts", "rows", "least", "reason"),
    [
        (([0] * 4, [0] * 4), (0, 0), 9, "idle: no tokens in the window"),
        (([5] * 4, [0] * 4), (10, 0), 11, "too few tokens: 10 of at least 11"),
        (([0] * 4, [0] * 4), (10, 10), 9, "no slots: the tokens of the window chose no expert here"),
        (([5] * 4, [0] * 4), (10, 0), 10, None),
    ],
)
def test_the_first_reason_that_holds_is_why_there_is_no_sample(
    service: Service,
    counts: Sequence[Sequence[int]],
    rows: Sequence[int],
    least: int,
    reason: str | None,
) -> None:
    for dp_rank in (0, 1):
        who = producer(dp_rank=dp_rank, dp_size=2, ep_rank=dp_rank, ep_size=2)
        service.push(frame({0: counts[dp_rank]}, rows=[rows[dp_rank]], who=who, placement=halves(4, 1)))
    [layer] = service.get("/v1/balance", min_tokens=least)["layers"]
    for axis in ("over_ep_ranks", "over_dp_ranks", "over_experts"):
        assert layer[axis]["reason"] == reason
        assert (layer[axis]["measures"] is None) == (reason is not None)
        assert layer[axis]["loads"] is not None


def test_too_few_tokens_come_before_partial_and_one_rank_before_idle(service: Service) -> None:
    push(service, 1, 10, who=producer(pp_size=2, dp_size=2, ep_size=2))
    made = frame({1: [5] * 4}, who=producer(dp_rank=1, dp_size=2, pp_rank=1, pp_size=2, ep_size=2))
    service.push(made)
    cells = service.get("/v1/balance", layer=0, min_tokens=11)["layers"][0]
    assert cells["over_dp_ranks"]["reason"] == "too few tokens: 10 of at least 11"
    assert (cells["over_ep_ranks"]["loads"], cells["over_experts"]["loads"]) == (None, [5] * 4)


def test_one_dp_rank_has_nothing_to_balance_whatever_else(service: Service) -> None:
    push(service, 1, 0, who=producer(), placement=None)
    [layer] = service.get("/v1/balance")["layers"]
    assert layer["over_dp_ranks"]["reason"].startswith("fewer than two DP ranks take part")
    assert layer["over_ep_ranks"]["reason"].startswith("ep_size is 1")
    assert layer["over_experts"]["reason"] == "idle: no tokens in the window"


def test_a_rank_that_fell_silent_is_gone_and_one_that_reports_is_idle(service: Service) -> None:
    for dp_rank in (0, 1, 2):
        who = producer(dp_rank=dp_rank, dp_size=3, ep_size=2)
        push(service, 1, 100, who=who)
    for second in (30, 60):
        for dp_rank, total in ((0, 100 + second), (1, 100)):
            push(service, second, total, who=producer(dp_rank=dp_rank, dp_size=3, ep_size=2))
    now = service.get("/v1/balance", start=AT + 20)
    assert (now["dp_ranks"], now["dp_tokens"]["loads"]) == ([0, 1], [60, 0])
    assert service.get("/v1/balance")["dp_ranks"] == [0, 1, 2]
