"""Another deployment that is worse off than the one that is shown is said in every view, with a way there."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.chrome import Watched
from tests.browser.serving import Clock, Serving, feed
from tests.service.advice.fleets import plan

GRAVE = ("ok", "info", "warning", "critical")


def test_a_graver_verdict_elsewhere_is_said_and_leads_there(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    begun = clock.now
    feed(empty, clock, plan(server="calm"), 70)
    page = watched.open(empty.url, "#/ranks?window=5m")
    page.wait_for_url(lambda url: "server=calm" in url)
    notice = page.locator("#elsewhere")
    expect(notice).to_be_hidden()
    shown = page.url
    page.goto("about:blank")  # a page that asks while the clock is set back has the calm one heard earlier
    clock.now = begun
    feed(empty, clock, plan(server="blind", uncovered=(4,)), 70)
    clock.now = begun
    feed(empty, clock, plan(server="sick", ranks=8, layers=8, experts=64, hot_rank=2.5), 70)
    page.goto(shown)
    watched.settled()
    verdicts = empty.get("/v1/verdict")["verdicts"]
    words = {item["server"]: item["words"] for item in verdicts}
    grave = {item["server"]: GRAVE.index(item["severity"]) for item in verdicts}
    expect(notice).to_contain_text(f"Critical elsewhere now: simulated/moe on sick: {words['sick']}")
    if (
        grave["blind"] > grave["calm"]
    ):  # on a slow machine the calm one's data are late at times, which is told
        expect(notice).to_contain_text("1 other deployment worse than this one too")
    assert watched.axe() == []
    notice.get_by_role("link").click()
    page.wait_for_url(lambda url: "#/overview" in url and "server=sick" in url)
    expect(page.get_by_role("region", name="Verdict").locator(".lead")).to_have_text(words["sick"])
    expect(notice).to_be_hidden()
    watched.route("#/overview?server=blind&model=simulated%2Fmoe")
    expect(notice).to_contain_text("on sick")
    expect(notice).not_to_contain_text("other deployment")
