"""Prefill and decode apart: what the page shows of a phase equals what the API answers."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.chrome import Watched
from tests.browser.reading import TIMES, cells, point, tile
from tests.browser.serving import Clock, Serving
from tests.service.frames import frame, halves, producer


def test_a_phase_is_chosen_once_for_all_views(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url)
    view = large.get("/v1/view", start="-1m")
    work = [rank["phases"] for rank in view["dp_ranks"]]
    prefill = sum(rank["prefill_tokens"] for rank in work)
    decode = sum(rank["decode_tokens"] for rank in work)
    assert tile(page, "Prefill") == f"{100 * prefill / (prefill + decode):.1f} %"
    with page.expect_response(lambda answer: "/v1/trend" in answer.url and "phase=decode" in answer.url):
        page.get_by_label("Phase", exact=True).select_option("decode")
    expect(page.locator(".tiles")).to_contain_text(f"{decode:,} tokens of decode in")
    ratio = large.get("/v1/balance", start="-1m", phase="decode")["summary"]["over_ep_ranks"]["ratio_of_sums"]
    assert tile(page, "Imbalance over EP ranks") == f"{ratio:.2f}{TIMES}"

    page.get_by_role("link", name="Heatmap").click()
    page.wait_for_url("**phase=decode**")
    page.get_by_label("Experts", exact=True).select_option("id")
    page.get_by_label("group by EP rank").uncheck()
    counted = large.get("/v1/histogram", start="-1m", phase="decode")["layers"][20]
    expect(page.locator("main")).to_contain_text("tokens of decode")
    words = point(page, "Experts by layer", 20, 131, 57, 256)
    assert f"expert 131 · EP rank 16 · {counted['counts'][131]:,} slots" in words

    watched.route(f"#/layer?layer={counted['layer']}&phase=decode")
    assert tile(page, "Tokens") == f"{counted['tokens']:,}"
    most = max(range(256), key=counted["counts"].__getitem__)
    assert cells(page, "Experts with the most slots")[0][:3] == [
        str(most),
        "",
        f"{counted['counts'][most]:,}",
    ]
    watched.route("#/advice?phase=decode")
    expect(page.get_by_label("Phase", exact=True)).to_be_hidden()


def test_phases_that_are_not_known_are_said_to_be(empty: Serving, clock: Clock, watched: Watched) -> None:
    clock.now += 1
    empty.push(frame({1: [400, 100, 50, 50]}, who=producer(ep_size=2), placement=halves(4, 1)))
    reason = empty.get("/v1/view", phase="prefill")["phase_reason"]
    assert "did not tell" in reason
    for view in ("overview", "heatmap", "ranks", "layer?layer=1"):
        page = watched.open(empty.url, f"#/{view}{'&' if '?' in view else '?'}window=all&phase=prefill")
        note = page.locator("[data-note=phase]")
        expect(note).to_have_text(f"Numbers of prefill alone can't be given: {reason}.")
        if view == "overview":
            assert watched.axe() == []
        page.get_by_label("Phase", exact=True).select_option("")
        expect(note).to_be_hidden()
    expect(page.locator(".tile .value").first).to_have_text("300")
