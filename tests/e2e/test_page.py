"""The page, fed by a real vLLM with DP=2 and EP=2: its numbers are the API's and vLLM's own."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.chrome import Watched, chromium
from tests.e2e.cluster import Cluster, Request

pytestmark = pytest.mark.e2e


def test_the_page_shows_what_vllm_computed(cluster: Cluster) -> None:
    cluster.complete_all([Request(f"{index} seen on the page", 5 + index) for index in range(6)])
    cluster.assert_exact()
    computed = cluster.computed_tokens()
    with chromium() as browser:
        watched = Watched(browser)
        page = watched.open(cluster.service.url, "#/overview?window=all")
        expect(page.locator("#status")).to_have_text("Live")
        models = page.locator("section", has=page.get_by_role("heading", name="Models"))
        expect(models.locator("tbody td").nth(3)).to_have_text(f"{sum(computed.values()):,}")
        ranks = page.get_by_role("table", name="Tokens per second of each DP rank")
        assert ranks.locator(".tag").all_inner_texts() == ["live", "live"]
        assert "Counts add up" in page.locator(".health").inner_text()
        for layer in cluster.service.get("/v1/balance")["layers"]:
            watched.route(f"#/layer?window=all&layer={layer['layer']}")
            expect(page.get_by_role("heading", name=f"Layer {layer['layer']}")).to_be_visible()
            tiles = page.locator(".tile .value")
            expect(tiles.nth(0)).to_have_text(f"{sum(computed.values()):,}")
            ratio = layer["over_ep_ranks"]["measures"]["imbalance_ratio"]
            expect(tiles.nth(1)).to_have_text(f"{ratio:.3f}")
            assert page.locator(".histogram i").count() == 16
        assert watched.axe() == []
        before = sum(computed.values())
        cluster.complete(Request("one more while the page is open", 9))
        expect(tiles.nth(0)).not_to_have_text(f"{before:,}")
        cluster.assert_exact()
        expect(tiles.nth(0)).to_have_text(f"{sum(cluster.computed_tokens().values()):,}")
        watched.close()
