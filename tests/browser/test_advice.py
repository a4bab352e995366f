"""The page's advice and drift are the API's."""

from __future__ import annotations

import httpx
from playwright.sync_api import expect

from tests.browser.chrome import Watched
from tests.browser.reading import tile
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


def test_short_data_is_said_first_and_shares_are_of_the_same_time(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    feed(empty, clock, plan(skew=0.8), seconds=100, step=10)
    page = watched.open(empty.url, "#/advice")
    advice = empty.get("/v1/advice")
    assert advice["verdict"]["decision"] == "too_early"
    said = "Too early to say: this rests on data of 100 s only, where 3,600 s were asked for."
    expect(page.locator(".short")).to_contain_text(said)
    assert tile(page, "Verdict") == "Too early to say"
    texts = page.locator("main p").all_inner_texts()
    short = next(i for i, text in enumerate(texts) if said in text)
    assert short < texts.index(advice["verdict"]["words"])
    windowed = f"{100 * advice['waiting']['windowed']:.1f} %"
    hint = page.locator(".tile").filter(has_text="Waited in single steps").locator(".hint")
    expect(hint).to_contain_text(f"By the window's sums it is {windowed} of that time")
    assert watched.axe() == []
    clock.now += 20  # the same fleet for longer
    feed(empty, clock, plan(skew=0.8, server="longer"), seconds=700, step=10)
    watched.route("#/advice?server=longer&judge=10m")
    expect(page.locator(".short")).to_be_hidden()
    assert tile(page, "Verdict") == "Worth it"


def test_one_control_of_the_window_rules(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(skew=0.8), seconds=300, step=10)
    page = watched.open(empty.url, "#/advice?window=5m")
    control = page.get_by_label("Judged over")
    expect(control).to_have_value("1h")
    expect(page.get_by_label("Window", exact=True)).to_be_hidden()
    assert "the other views' window: the last 5m" in control.inner_text()
    with page.expect_request(lambda request: "v1/advice?" in request.url and "start=-5m" in request.url):
        control.select_option("window")
    past = f"from={int(clock.now) - 200}&to={int(clock.now)}"
    watched.route(f"#/advice?{past}")
    expect(control).to_have_value("window")
    with page.expect_request(lambda request: "v1/advice?" in request.url and "start=-6h" in request.url):
        control.select_option("6h")  # it rules, though the other views show the past
    expect(control).to_have_value("6h")
    watched.route(f"#/overview?{past}")
    expect(page.get_by_label("Window", exact=True)).to_be_visible()
