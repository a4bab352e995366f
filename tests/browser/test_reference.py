"""The reference of the HTTP interface: served by the service alone, whole and accessible."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.chrome import Watched
from tests.browser.serving import Serving


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_route_is_described(empty: Serving, new_page: Callable[..., Watched], scheme: str) -> None:
    watched = new_page(color_scheme=scheme)
    page = watched.page
    page.goto(f"{empty.url}/docs")
    document = httpx.get(f"{empty.url}/openapi.json", timeout=60).json()
    expect(page.locator("h1")).to_contain_text("moescope")
    shown = page.locator("h2 code").all_inner_texts()
    wanted = [f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item]
    assert shown == wanted
    assert "GET /v1/placement" in shown
    row = page.get_by_role("region", name="Parameters of GET /v1/balance").get_by_role("row", name="layer")
    expect(row).to_contain_text("list of integer or null")
    assert watched.axe() == []
