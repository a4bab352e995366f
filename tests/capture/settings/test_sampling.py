"""Which requests are traced: a share of them, the same on every rank, and those that ask for it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from moescope.capture.settings.sampling import TraceSampling


def test_the_rate_is_a_share_and_the_same_everywhere() -> None:
    names = [f"request-{n}" for n in range(4000)]
    chosen = [name for name in names if TraceSampling(rate=0.1).wants(name, False)]
    assert 300 < len(chosen) < 500
    assert chosen == [name for name in names if TraceSampling(rate=0.1).wants(name, False)]
    assert set(chosen) <= {name for name in names if TraceSampling(rate=0.2).wants(name, False)}
    assert all(TraceSampling(rate=1.0).wants(name, False) for name in names)


@pytest.mark.parametrize(
    ("sampling", "asked", "wanted"),
    [
        (TraceSampling(), True, False),
        (TraceSampling(opt_in=True), True, True),
        (TraceSampling(opt_in=True), False, False),
        (TraceSampling(rate=1.0), False, True),
    ],
)
def test_who_asks_is_traced_where_requests_may_ask(
    sampling: TraceSampling, asked: bool, wanted: bool
) -> None:
    assert sampling.wants("request-1", asked) is wanted


@pytest.mark.parametrize(
    ("sampling", "any_"),
    [(TraceSampling(), False), (TraceSampling(rate=0.001), True), (TraceSampling(opt_in=True), True)],
)
def test_whether_any_request_may_be_traced(sampling: TraceSampling, any_: bool) -> None:
    assert sampling.any is any_


def test_ids_that_are_alike_are_chosen_apart() -> None:
    """Ids of one client often differ in their last characters only; the hash must not follow them."""
    half = TraceSampling(rate=0.5)
    chosen = [half.wants(f"chatcmpl-{number:08x}", False) for number in range(2000)]
    changes = sum(one != after for one, after in pairwise(chosen))
    assert 800 < changes < 1200
