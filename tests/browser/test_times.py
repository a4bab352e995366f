"""Times: with their date where they are not of today, and in a time zone that is named."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect

from tests.browser.chrome import Watched
from tests.browser.reading import cells
from tests.browser.serving import Clock, Serving, feed
from tests.service.advice.fleets import plan

MIDNIGHT = datetime(2023, 11, 15, tzinfo=UTC)


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now = MIDNIGHT.timestamp() - 220
    return clock


def test_times_of_another_day_have_their_date(
    empty: Serving, clock: Clock, new_page: Callable[..., Watched]
) -> None:
    feed(empty, clock, plan(skew=0.8, rearrange_s=200), seconds=400, step=10)  # until 00:03
    at = int(MIDNIGHT.timestamp())
    route = f"#/compare?window=10s&base=window&base_from={at - 60}&base_to={at + 60}"
    watched = new_page(timezone_id="UTC")
    watched.page.clock.set_fixed_time(datetime.fromtimestamp(clock.now, UTC) - timedelta(days=30))  # is wrong
    page = watched.open(empty.url, route)
    words = page.locator("main")
    expect(words).to_contain_text(", 00:02:50 to 00:03:00 (10 s")
    expect(words).to_contain_text("Nov 14, 2023, 23:59:00 to Nov 15, 2023, 00:01:00 (2 min")
    watched.route("#/advice")
    after, before = (row[0] for row in cells(page, "Rearrangements"))
    assert (before[:13], after[:3]) == ("Nov 14, 2023,", "00:")

    now = int(clock.now)
    clock.now += 86400  # the service's day counts
    watched.route(f"{route}&from={now - 10}&to={now}".replace("window=10s&", ""))
    expect(words).to_contain_text(", Nov 15, 2023, 00:02:50 to 00:03:00 (10 s")
    watched.route("#/advice")
    assert all(row[0].startswith("Nov 1") for row in cells(page, "Rearrangements"))


@pytest.mark.parametrize(
    ("zone", "words"), [("UTC", "UTC (GMT+0)"), ("Asia/Kolkata", "Asia/Calcutta (GMT+5:30)")]
)
def test_the_time_zone_is_named(
    empty: Serving, clock: Clock, new_page: Callable[..., Watched], zone: str, words: str
) -> None:
    feed(empty, clock, plan(), seconds=20, step=10)
    page = new_page(timezone_id=zone).open(empty.url)
    expect(page.get_by_text(f"Times are those of this browser's time zone, {words}.")).to_be_visible()


def test_what_is_of_now_beside_a_past_window_says_so(
    empty: Serving, clock: Clock, new_page: Callable[..., Watched]
) -> None:
    feed(empty, clock, plan(), seconds=60, step=10)
    watched = new_page()
    at = int(clock.now)
    page = watched.open(empty.url, f"#/overview?from={at - 40}&to={at - 20}")
    expect(page.get_by_text("of now, not of the past window")).to_have_count(2)
    watched.route("#/overview")
    expect(page.get_by_text("of now, not of the past window")).to_have_count(0)
