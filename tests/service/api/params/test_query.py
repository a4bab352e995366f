"""Windows, intervals and choices as they are written in a query."""

from __future__ import annotations

import pytest

from moescope.service.api.params.query import MAX_STEPS, Bounds, check_known, choose, parse_bounds, parse_step
from moescope.service.api.problems import ProblemError
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from tests.service.frames import frame, producer

NOW = 1_700_000_100.0


@pytest.mark.parametrize(
    ("start", "end", "bounds"),
    [
        (None, None, (None, None)),
        ("", "now", (None, NOW)),
        ("-5m", None, (NOW - 300, None)),
        ("-1.5h", "-30s", (NOW - 5400, NOW - 30)),
        ("-2d", "1700000000.5", (NOW - 172_800, 1_700_000_000.5)),
    ],
)
def test_ends_of_windows(
    start: str | None, end: str | None, bounds: tuple[float | None, float | None]
) -> None:
    assert parse_bounds(start, end, NOW) == Bounds(*bounds)


@pytest.mark.parametrize(
    "text",
    [
        *("yesterday", "-5", "5m", "nan", "inf", "-1e3s"),
        *(f"-{'9' * 400}s", f"-{'9' * 309}d", "9" * 400, "-99999d", "-1"),
    ],
)
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_bounds(text, None, NOW)
    assert caught.value.status == 400


def test_a_window_does_not_end_before_it_begins() -> None:
    with pytest.raises(ProblemError, match=r"60 s after end"):
        parse_bounds("-1m", "-2m", NOW)
    with pytest.raises(ProblemError, match=r"5 s after end"):
        parse_bounds(str(NOW + 5), None, NOW)


def test_intervals_end_with_the_window_and_the_last_may_be_shorter() -> None:
    whole = Bounds(NOW - 60, None)
    assert parse_step(None, whole, NOW) == []
    assert parse_step("20s", whole, NOW) == [NOW - 60, NOW - 40, NOW - 20, NOW]
    assert parse_step("25", whole, NOW) == [NOW - 60, NOW - 35, NOW - 10, NOW]
    assert parse_step("1h", whole, NOW) == [NOW - 60, NOW]
    assert parse_step("10s", Bounds(NOW - 60, NOW - 40), NOW) == [NOW - 60, NOW - 50, NOW - 40]


@pytest.mark.parametrize(
    ("step", "bounds", "slug"),
    [
        ("soon", Bounds(NOW - 60, None), "bad-step"),
        ("0", Bounds(NOW - 60, None), "bad-step"),
        ("10s", Bounds(None, NOW), "step-without-start"),
        ("1s", Bounds(NOW - MAX_STEPS - 1, None), "too-many-steps"),
    ],
)
def test_intervals_that_can_not_be_are_refused(step: str, bounds: Bounds, slug: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_step(step, bounds, NOW)
    assert (caught.value.status, caught.value.kind) == (400, slug)


def test_as_many_intervals_as_may_be() -> None:
    assert len(parse_step("1s", Bounds(NOW - MAX_STEPS, None), NOW)) == MAX_STEPS + 1


def test_the_only_deployment_need_not_be_named_and_of_several_one_is_chosen() -> None:
    state = LiveState(Settings(), lambda: NOW)
    with pytest.raises(ProblemError, match="MOESCOPE_ENDPOINT") as none:
        choose(state, None, None)
    assert none.value.status == 404
    state.ingest(frame({0: [1, 1]}, who=producer(server="a")))
    assert choose(state, None, None) == ("a", "tiny")
    state.ingest(frame({0: [1, 1]}, who=producer(server="b")))
    assert choose(state, "b", None) == ("b", "tiny")
    with pytest.raises(ProblemError, match="server=a model=tiny, server=b model=tiny") as several:
        choose(state, None, "tiny")
    assert several.value.status == 400
    with pytest.raises(ProblemError, match="There are: server=a") as unknown:
        choose(state, "c", None)
    assert unknown.value.status == 404


def test_what_is_asked_for_must_be_known() -> None:
    check_known("layer", [1, 3], [1, 2, 3])
    with pytest.raises(ProblemError, match=r"There is no DP rank \[4, 7\]; known are \[0, 1\]") as caught:
        check_known("DP rank", [7, 0, 4], [0, 1])
    assert (caught.value.status, caught.value.kind) == (404, "no-such-dp-rank")
