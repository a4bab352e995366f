"""What the page fetches when: no more than is shown, and again what did not come."""

from __future__ import annotations

from playwright.sync_api import Page, Request, Route, expect

from tests.browser.chrome import Watched
from tests.browser.serving import Clock, Serving
from tests.service.frames import frame, halves, producer

GOAL_BYTES = 100_000


def _requests(page: Page) -> list[str]:
    """Paths that the page asks for from now on, relative to the service."""
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url.partition("?")[0].split("/", 3)[3])

    page.on("request", note)
    return asked


def test_the_first_load_is_small_and_asks_each_question_once(large: Serving, watched: Watched) -> None:
    sizes: list[float] = []
    cdp = watched.context.new_cdp_session(watched.page)
    cdp.send("Network.enable")
    answered: dict[str, str] = {}
    cdp.on("Network.responseReceived", lambda e: answered.update({e["requestId"]: e["response"]["url"]}))
    cdp.on(
        "Network.loadingFinished",
        lambda e: "/v1/" not in answered[e["requestId"]] and sizes.append(e["encodedDataLength"]),
    )
    asked = _requests(watched.page)
    page = watched.open(large.url, "")
    expect(page.locator("main .chart canvas")).to_have_count(2)
    assert 30_000 < sum(sizes) < GOAL_BYTES
    assert len(asked) < 50
    first = asked.index("v1/ranks"), asked.index("v1/view")
    assert first[0] < first[1]
    others = {"heatmap", "ranks", "pools", "traces", "compare", "advice", "layer", "trace"}
    assert not [path for path in asked if path.removeprefix("page/js/views/").removesuffix(".js") in others]
    seconds = [path for path in ("v1/ranks", "v1/view", "v1/verdict", "v1/trend") if asked.count(path) > 2]
    assert not seconds, "time stands still: a question is asked at first, and once more by a tick at most"
    watched.route("#/heatmap")
    assert "page/js/views/heatmap.js" in asked
    assert asked.count("page/js/dom.js") == 1, "a module that two views need is fetched once"


def test_a_view_that_does_not_load_is_told_and_fetched_again(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    watched.expected = ["Failed to load resource", "net::ERR", "dynamically imported module"]
    who = producer(ep_size=2)
    clock.now += 1
    empty.push(frame({0: [100, 100]}, who=who, seq=1, placement=halves(2, 1)))
    page = watched.open(empty.url)
    refused: list[Route] = []

    def refuse(route: Route) -> None:
        refused.append(route)
        route.abort()

    page.route("**/views/layer.js*", refuse)
    watched.route("#/layer?layer=0&window=all")
    message = page.get_by_role("alert").filter(has_text="A part of this page did not load")
    expect(message).to_be_visible()
    assert watched.axe() == []
    page.unroute("**/views/layer.js*")
    clock.now += 1
    empty.push(frame({0: [300, 300]}, who=who, seq=2, placement=halves(2, 1)))
    expect(page.locator(".tile .value").first).to_have_text("300")
    expect(message).to_have_count(0)
    assert refused


def test_charts_whose_library_does_not_load_are_told_and_drawn_later(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    watched.expected = ["Failed to load resource", "net::ERR"]
    who = producer(ep_size=2)
    clock.now += 1
    empty.push(frame({0: [100, 100]}, who=who, seq=1, placement=halves(2, 1)))
    watched.page.route("**/uPlot*", lambda route: route.abort())
    page = watched.open(empty.url)
    note = page.get_by_text("The part of the page that draws charts did not load.")
    expect(note).to_have_count(2)
    expect(note.first).to_be_visible()
    expect(page.locator(".tile").first).to_be_visible()
    page.unroute("**/uPlot*")
    clock.now += 10  # charts are drawn anew every five seconds
    empty.push(frame({0: [300, 300]}, who=who, seq=2, placement=halves(2, 1)))
    expect(page.locator("main .chart canvas")).to_have_count(2)
    expect(note.first).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.querySelector('.u-select')).position") == "absolute"
