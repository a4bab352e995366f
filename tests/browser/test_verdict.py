"""The top of the Overview says what was planted, in the words of the API."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.chrome import Watched
from tests.browser.serving import Clock, Serving, feed
from tests.service.advice.fleets import plan
from tests.service.verdict.planted import PLANTED, Planted, named


def _answer(serving: Serving, number: dict[str, Any]) -> Any:
    """What a number's link to the API has."""
    response = httpx.get(f"{serving.url}/{number['api']}", timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


TAGS = {"ok": "OK", "info": "Info", "warning": "Warning", "critical": "Critical"}


@pytest.mark.parametrize("planted", PLANTED, ids=named)
def test_the_page_says_what_was_planted(
    empty: Serving, clock: Clock, watched: Watched, planted: Planted
) -> None:
    feed(empty, clock, plan(**planted.fields), planted.rounds * 10)
    clock.now += planted.silent_s
    page = watched.open(empty.url)
    [verdict] = empty.get("/v1/verdict")["verdicts"]
    panel = page.get_by_role("region", name="Verdict")
    expect(panel).to_have_attribute("data-kind", planted.kind)
    expect(panel.locator(".tag")).to_have_text(TAGS[planted.severity])
    expect(panel.locator(".lead")).to_have_text(verdict["words"])
    expect(panel.locator(".action")).to_have_text(f"What to do: {verdict['action']['words']}")
    expect(panel).to_contain_text(verdict["confidence"]["words"])
    for also in verdict["also"]:
        expect(panel.get_by_role("listitem").filter(has_text=also["words"])).to_be_visible()


def test_each_number_leads_to_its_proof(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(ranks=8, layers=8, experts=64, hot_rank=2.5), 700)
    page = watched.open(empty.url)
    panel = page.get_by_role("region", name="Verdict")
    expect(panel.locator(".action")).to_contain_text("on loads that it was not fitted on: it saves")
    [verdict] = empty.get("/v1/verdict")["verdicts"]
    panel.get_by_text("Numbers, and where they come from").click()
    numbers = [*verdict["numbers"], *verdict["action"]["numbers"]]
    rows = panel.locator("tbody tr")
    expect(rows).to_have_count(len(numbers))
    for number in numbers:
        answer = _answer(empty, number)
        assert (answer["server"], answer["model"]) == (verdict["server"], verdict["model"])
    view = _answer(empty, numbers[0])
    assert view["over_ep_ranks"]["ratio_of_sums"] == numbers[0]["value"]
    assert watched.axe() == []
    rows.first.get_by_role("link").first.click()
    expect(page.locator("#status")).to_have_text("Past window")
    assert re.search(r"#/overview\?server=simulated&model=simulated%2Fmoe&from=\d+&to=\d+", page.url)
    expect(panel.locator(".lead")).to_have_text(verdict["words"])
