"""Silence is loud, what is old goes away, and an address that names nothing says so."""

from __future__ import annotations

from playwright.sync_api import Route, expect

from moescope.capture import wire
from tests.browser.chrome import Watched
from tests.browser.serving import Clock, Serving, feed
from tests.service.advice.fleets import plan
from tests.service.frames import frame, halves, producer


def _icon(watched: Watched) -> str:
    return watched.page.locator("link[rel=icon]").get_attribute("href") or ""


def test_a_minute_of_silence_is_said_everywhere_and_ends_by_itself(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    fleet = feed(empty, clock, plan(), 70)
    page = watched.open(empty.url)
    expect(page.locator("#status")).to_have_text("Live")
    assert page.title() == "Overview \u00b7 moescope"
    normal = page.locator(".tile .value").first.evaluate("e => getComputedStyle(e).color")
    clock.now += 59  # every worker is stale, and it isn't a minute yet
    page.reload()
    watched.settled()
    expect(page.locator("#status")).to_have_text("Live")
    clock.now += 241
    expect(page.locator("#status")).to_have_text("Silent for 5 min")
    assert page.title() == "Silent for 5 min \u00b7 Overview \u00b7 moescope"
    assert _icon(watched) == "page/icon-silent.svg"
    assert watched.page.request.get(f"{empty.url}/{_icon(watched)}").ok
    notice = page.locator("#silent")
    expect(notice).to_contain_text(empty.get("/v1/verdict")["verdicts"][0]["words"])
    expect(page.locator("main")).to_have_attribute("data-silent", "")
    assert page.locator(".tile .value").first.evaluate("e => getComputedStyle(e).color") != normal
    assert watched.axe() == []
    watched.route("#/ranks")
    expect(page.locator("#status")).to_have_text("Silent for 5 min")
    assert page.title() == "Silent for 5 min \u00b7 Ranks \u00b7 moescope"
    watched.route(f"#/ranks?from={int(clock.now) - 900}&to={int(clock.now) - 300}")
    expect(page.locator("#status")).to_have_text("Past window")
    expect(notice).to_be_hidden()
    watched.route("#/ranks")
    expect(notice).to_be_visible()
    empty.push(*fleet.advance(10.0))
    expect(page.locator("#status")).to_have_text("Live")
    assert page.title() == "Ranks \u00b7 moescope"
    assert _icon(watched) == "page/icon.svg"
    expect(notice).to_be_hidden()
    expect(page.locator("main[data-silent]")).to_have_count(0)


def test_an_end_in_order_is_no_alarm(empty: Serving, clock: Clock, watched: Watched) -> None:
    made = frame(
        {1: [400, 100, 50, 50]},
        who=producer(ep_size=2),
        placement=halves(4, 1),
        epoch=int(clock.now * 1e9),
        ended=True,
    )
    empty.push(made)
    clock.now += 300
    page = watched.open(empty.url)
    expect(page.locator("#status")).to_have_text("Shut down for 5 min")
    assert _icon(watched) == "page/icon.svg"


def test_a_restart_is_news_for_a_quarter_of_an_hour(empty: Serving, clock: Clock, watched: Watched) -> None:
    who = producer(ep_size=2)

    def push(**fields: object) -> wire.Frame:
        return frame({1: [400, 100, 50, 50]}, who=who, placement=halves(4, 1), **fields)  # type: ignore[arg-type]

    empty.push(push(epoch=int(clock.now * 1e9)))
    clock.now += 10
    begun = int(clock.now * 1e9)
    empty.push(push(epoch=begun))
    page = watched.open(empty.url)
    tag = page.get_by_role("table", name="Tokens per second of each DP rank").locator(".tag")
    expect(tag).to_have_text("live, restarted")
    expect(page.locator(".health")).to_contain_text("1 restart of workers, the last one")
    clock.now += 901
    empty.push(push(epoch=begun, seq=2, after_s=901))
    expect(tag).to_have_text("live")
    expect(page.locator(".health")).not_to_contain_text("restart")


def test_an_address_that_names_no_view_says_so(large: Serving, watched: Watched) -> None:
    for name in ("overveiw", "constructor"):
        page = watched.open(large.url, f"#/{name}?window=5m")
        expect(page.get_by_role("heading", name="No such view")).to_be_visible()
        expect(page.locator("main")).to_contain_text(f'no view "{name}"')
        assert page.title() == "No such view \u00b7 moescope"
        assert watched.axe() == []
    page.locator("main").get_by_role("link", name="Heatmap").click()
    expect(page.get_by_role("application", name="Experts by layer")).to_be_visible()
    assert "window=5m" in page.url


def test_waiting_for_the_first_answer_has_words(large: Serving, watched: Watched) -> None:
    held: list[Route] = []
    watched.page.route("**/v1/ranks", lambda route: held.append(route))
    watched.page.goto(f"{large.url}/#/heatmap")
    expect(watched.page.get_by_role("heading", name="Loading: Heatmap")).to_be_visible()
    expect(watched.page.get_by_text("Asking the service")).to_be_visible()
    for route in held:
        route.continue_()
