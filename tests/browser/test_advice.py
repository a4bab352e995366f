"""The page's advice and drift are the API's."""

from __future__ import annotations

import httpx
from playwright.sync_api import expect

from tests.browser.chrome import Watched
from tests.browser.serving import Clock, Serving, feed
from tests.service.advice.fleets import plan


def test_advice_and_drift_are_those_of_the_api(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(skew=0.8, rearrange_s=200), seconds=400, step=10)
    pinned = httpx.post(f"{empty.url}/v1/baselines", json={"name": "chat", "start": "-2m"}, timeout=60)
    assert pinned.status_code == 201, pinned.text
    advice = empty.get("/v1/advice")
    page = watched.open(empty.url, "#/advice")
    expect(page.get_by_text(advice["verdict"]["words"])).to_be_visible()
    for line in advice["verdict"]["evidence"]:
        expect(page.get_by_text(line)).to_be_visible()
    rows = page.get_by_role("table", name="Placements and the balance").locator("tbody tr")
    assert rows.count() == len(advice["options"]) + 1
    for row, option in zip(rows.all()[1:], advice["options"], strict=True):
        text = row.inner_text()
        assert option["name"] in text
        assert f"{option['held_out']['ratio_of_sums']:.3f}" in text
        assert f"{100 * option['saving_held_out']:.1f} %" in text
        assert row.locator("td").nth(-2).inner_text() == f"{option['copies_in_vain']}"
    if advice["verdict"]["strategy"] is not None:
        expect(page.get_by_text("recommended")).to_have_count(1)
    rearranged = empty.get("/v1/advice/rearrangements")["rearrangements"]
    past = page.get_by_role("table", name="Rearrangements").locator("tbody tr")
    assert past.count() == len(rearranged) == 2
    assert f"{rearranged[1]['achieved']:.3f}" in past.nth(1).inner_text()
    page.get_by_label("Drift from").select_option("chat")
    drift = empty.get("/v1/drift", baseline="chat")
    expect(page.get_by_text(f"median {drift['summary']['median']:.4f} bits")).to_be_visible()
    assert "drift_base=chat" in page.url


def test_advice_without_traffic_says_what_is_missing(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(tokens_per_s=0), seconds=60)
    page = watched.open(empty.url, "#/advice")
    expect(page.get_by_text("No sample: no layer has enough tokens in both windows.")).to_be_visible()
    expect(page.get_by_text("None since the service started")).to_be_visible()
