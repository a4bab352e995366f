"""Charts follow the window, a drag zooms, and addresses always name deployment, window and view."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, expect

from tests.browser.chrome import Watched
from tests.browser.serving import EPOCH, Clock, Serving, feed
from tests.service.advice.fleets import plan

CHART = "Imbalance ratio over EP ranks over time"


def _params(page: Page) -> dict[str, str]:
    fragment = urlsplit(page.url).fragment
    return {name: values[0] for name, values in parse_qs(urlsplit(fragment).query).items()}


def _asked(page: Page, url: str) -> dict[str, str]:
    """What the page asks /v1/trend for when it goes to an address."""
    page.goto("about:blank")
    with page.expect_request(lambda request: "/v1/trend?" in request.url) as found:
        page.goto(url)
    return {name: values[0] for name, values in parse_qs(urlsplit(found.value.url).query).items()}


def test_charts_follow_the_window(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(), 1200)
    page = watched.open(empty.url)
    past = _asked(page, f"{empty.url}/#/overview?from={EPOCH + 300}&to={EPOCH + 600}")
    assert (past["step"], past["points"], past["end"]) == ("5", "60", str(EPOCH + 600))
    hint = page.locator("section", has=page.get_by_role("heading", name="Imbalance over EP ranks"))
    expect(hint.locator("header")).to_contain_text("drag to zoom")
    trend = empty.get("/v1/trend", **past)
    assert (trend["at"][0], trend["at"][-1]) == (EPOCH + 305, EPOCH + 600)
    long = _asked(page, f"{empty.url}/#/overview?window=1h")
    assert (long["step"], long["points"], "end" in long) == ("60", "60", False)
    whole = _asked(page, f"{empty.url}/#/overview?window=all")
    assert float(whole["step"]) * float(whole["points"]) >= 1190
    assert int(whole["points"]) <= 60


def test_the_service_tells_the_time(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(), 120)
    watched.page.route("**/v1/live", lambda _: None)  # no tick ever says what time it is
    page = watched.page  # whose clock is years ahead of the service's
    now = int(clock.now)
    asked = _asked(page, f"{empty.url}/#/overview?from={now - 60}&to={now + 3600}")
    assert asked["end"] == str(now)
    watched.settled()
    watched.route("#/ranks?window=1m")
    fixed = page.get_by_role("link", name="Link to this window")
    expect(fixed).to_have_attribute("href", f"#/ranks?{_fixed(clock)}")
    page.get_by_label("Window", exact=True).select_option("past")
    page.wait_for_url(lambda url: f"from={now - 300}&to={now}" in url)


def test_a_drag_zooms_into_the_past_and_back_returns(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(), 600)
    page = watched.open(empty.url, f"#/overview?from={EPOCH + 100}&to={EPOCH + 400}")
    area = page.get_by_role("img", name=CHART).locator(".u-over")
    box = area.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, y, steps=4)
    page.mouse.up()
    page.wait_for_url(lambda url: f"from={EPOCH + 100}" not in url)
    params = _params(page)
    begin, end = int(params["from"]), int(params["to"])
    assert abs(begin - (EPOCH + 105 + 0.25 * 295)) <= 2
    assert abs(end - (EPOCH + 105 + 0.5 * 295)) <= 2
    expect(page.get_by_label("From", exact=True)).to_be_visible()
    assert "window" not in params
    page.go_back()
    page.wait_for_url(lambda url: f"from={EPOCH + 100}&to={EPOCH + 400}" in url)
    page.mouse.click(box["x"] + box["width"] * 0.3, y)  # a click is no drag
    assert _params(page)["from"] == str(EPOCH + 100)


def test_an_address_shows_the_same_when_others_report_too(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    feed(empty, clock, plan(server="m"), 70)
    page = watched.open(empty.url)
    page.wait_for_url(lambda url: "server=m&model=" in url and "window=1m" in url)
    hrefs = page.locator("nav a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert all("server=m&model=simulated%2Fmoe&window=1m" in href for href in hrefs)
    clock.now -= 70
    feed(empty, clock, plan(server="a"), 70)  # comes before the other by name
    page.reload()
    watched.settled()
    control = page.get_by_label("Model", exact=True)
    expect(control.locator("option")).to_have_count(2)
    assert "simulated/moe on m" in control.locator("option:checked").inner_text()
    assert hrefs == page.locator("nav a").evaluate_all("links => links.map(a => a.getAttribute('href'))")


def test_a_link_fixes_the_window(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(), 120)
    page = watched.open(empty.url, "#/ranks?window=1m")
    fixed = page.get_by_role("link", name="Link to this window")
    expect(fixed).to_have_attribute("href", f"#/ranks?{_fixed(clock)}")
    fixed.click()
    expect(page.locator("#status")).to_have_text("Past window")
    expect(fixed).to_be_hidden()
    assert _params(page)["to"] == str(int(clock.now))


def _fixed(clock: Clock) -> str:
    now = int(clock.now)
    return f"server=simulated&model=simulated%2Fmoe&from={now - 60}&to={now}"
