"""Looks: whole on a phone, aligned on a large screen, hot is bright in the dark, and help is a key away."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chrome import Watched
from tests.browser.serving import TRACE, Clock, Serving, feed
from tests.service.advice.fleets import plan

PHONE = {"width": 390, "height": 844}
LARGE_SCREEN = {"width": 2560, "height": 1300}
CUT = """() => [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => e.getAttribute("aria-label"))"""


def _left(page: Page, selector: str) -> float:
    box = page.locator(selector).first.bounding_box()
    assert box is not None
    return box["x"]


@pytest.mark.parametrize(
    "view",
    [
        "overview",
        "ranks",
        "heatmap",
        "pools",
        "compare",
        "traces",
        "advice",
        "layer?layer=12",
        f"trace?trace={TRACE}",
    ],
)
def test_tables_are_whole_on_a_phone(large: Serving, new_page: Callable[..., Watched], view: str) -> None:
    watched = new_page(viewport=PHONE)
    page = watched.open(large.url, f"#/{view}")
    assert page.evaluate(CUT) == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    if view == "overview":
        card = page.get_by_role("table", name="Worst layers").locator("tbody tr").first
        assert card.locator("td[data-label]").count() == 5
        assert watched.axe() == []


def test_tables_of_advice_are_whole_on_a_phone(
    empty: Serving, clock: Clock, new_page: Callable[..., Watched]
) -> None:
    """With rearrangements and placements, which a fleet that stands still has not."""
    feed(empty, clock, plan(skew=0.8, rearrange_s=200), seconds=400, step=10)
    watched = new_page(viewport=PHONE)
    page = watched.open(empty.url, "#/advice")
    expect(page.get_by_role("table", name="Rearrangements").locator("tbody tr")).to_have_count(2)
    assert page.get_by_role("table", name="Placements and the balance").locator("tbody tr").count() > 1
    assert page.evaluate(CUT) == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert watched.axe() == []


@pytest.mark.parametrize("view", ["overview", "ranks", "layer?layer=12", "compare", "traces", "advice"])
def test_tables_are_whole_on_a_laptop(large: Serving, watched: Watched, view: str) -> None:
    assert watched.open(large.url, f"#/{view}").evaluate(CUT) == []


@pytest.mark.parametrize("view", ["overview", "compare", "traces", "advice"])
def test_header_and_views_are_aligned_on_a_large_screen(
    large: Serving, new_page: Callable[..., Watched], view: str
) -> None:
    page = new_page(viewport=LARGE_SCREEN).open(large.url, f"#/{view}")
    left = _left(page, "main .panel")
    assert left > 400
    assert _left(page, ".brand") == left
    assert _left(page, ".controls label") == left
    rights = page.evaluate(
        """() => [...document.querySelectorAll("main > .stack > :not(.unseen)")].filter(e => e.clientWidth)
            .map(e => Math.round(e.getBoundingClientRect().right))"""
    )
    assert len(set(rights)) == 1


def test_in_the_dark_hot_is_bright_and_cold_recedes(large: Serving, new_page: Callable[..., Watched]) -> None:
    page = new_page(color_scheme="dark").open(large.url, "#/heatmap")
    lightness = page.evaluate(
        """() => {
            const scale = document.querySelector(".legend .scale canvas");
            const { data } = scale.getContext("2d").getImageData(0, 0, 256, 1);
            const of = i => 0.2126 * data[4 * i] + 0.7152 * data[4 * i + 1] + 0.0722 * data[4 * i + 2];
            const ground = getComputedStyle(document.querySelector(".panel")).backgroundColor;
            const [r, g, b] = ground.match(/[0-9]+/g).map(Number);
            return { all: [...Array(256).keys()].map(of), ground: 0.2126 * r + 0.7152 * g + 0.0722 * b };
        }"""
    )
    steps = lightness["all"]
    assert all(after > before - 1 for before, after in pairwise(steps))  # never darker towards hot
    assert abs(steps[0] - lightness["ground"]) < 10
    assert steps[-1] > 200


def test_experts_are_by_load_within_their_ep_rank(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/heatmap")
    expect(page.get_by_label("Experts", exact=True)).to_have_value("load")
    expect(page.get_by_label("group by EP rank")).to_be_checked()


def test_help_has_keys_and_words_and_keys_work(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url)
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Help")
    expect(dialog).to_be_visible()
    for word in ("MaxVio", "Ratio of sums", "Slot"):
        expect(dialog.locator("dt").filter(has_text=word)).to_be_visible()
    assert watched.axe() == []
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("2")
    expect(page.get_by_role("application", name="Experts by layer")).to_be_visible()
    page.keyboard.press("w")
    expect(page.get_by_label("Window", exact=True)).to_be_focused()
    page.keyboard.press("1")  # in a field it is no key of the page
    expect(page.get_by_role("application", name="Experts by layer")).to_be_visible()
    page.get_by_role("button", name="Help: keys and words").click()
    expect(dialog).to_be_visible()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("3")
    head = page.get_by_role("table", name="How often each EP rank was the hottest").locator("thead th")
    assert "max" in (head.last.locator("button").get_attribute("title") or "")
