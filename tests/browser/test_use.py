"""Links, keys, themes, updates, and what stands between the page and its reader."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import Page, expect

from tests.browser.chrome import Watched
from tests.browser.serving import TRACE, Clock, Serving, feed_large
from tests.service.frames import frame, halves, producer

PARAMETERS = {"layer": "?layer=12", "trace": f"?trace={TRACE}"}
"""What a view needs in its address to show something; the others need nothing."""


def _views() -> dict[str, str]:
    """The page's views with their titles, as the page itself lists them."""
    text = (resources.files("moescope.service") / "page/js/views/index.js").read_text()
    views = dict(re.findall(r'^ +(\w+): \{ title: "([^"]+)",', text, re.MULTILINE))
    assert list(views.values()), "index.js is written in another way: this test must read it anew"
    assert sorted(views) == sorted(re.findall(r'import\("\./(\w+)\.js"\)', text))
    return views


def _open(watched: Watched, url: str, view: str, title: str) -> Page:
    page = watched.open(url, f"#/{view}{PARAMETERS.get(view, '')}")
    expect(page.locator("main h1").first).to_contain_text(title)  # not the view before, nor a notice
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_accessible(large: Serving, new_page: Callable[..., Watched], scheme: str) -> None:
    watched = new_page(color_scheme=scheme)
    for view, title in _views().items():
        page = _open(watched, large.url, view, title)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(15, 19, 23)")
        assert watched.axe() == [], view


def test_nothing_is_wider_than_a_small_screen(large: Serving, new_page: Callable[..., Watched]) -> None:
    watched = new_page(viewport={"width": 390, "height": 800})
    for view, title in _views().items():
        page = _open(watched, large.url, view, title)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view


def test_the_theme_is_kept(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url)
    page.get_by_role("button", name="Theme: auto").click()
    page.get_by_role("button", name="Theme: light").click()
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 23)"


def test_the_state_is_in_the_url(large: Serving, new_page: Callable[..., Watched]) -> None:
    first = new_page()
    page = first.open(large.url, "#/heatmap")
    page.get_by_label("Show", exact=True).select_option("share")
    page.get_by_label("Tokens of", exact=True).select_option("7")
    page.get_by_label("Experts", exact=True).select_option("id")
    page.get_by_label("group by EP rank").uncheck()
    page.get_by_label("Window", exact=True).select_option("10s")
    page.wait_for_url(lambda url: url.count("=") == 7)
    second = new_page()
    other = second.open(large.url, page.url.rpartition("/#")[1][1:] + page.url.rpartition("#")[2])
    assert other.get_by_label("Show", exact=True).input_value() == "share"
    assert other.get_by_label("Tokens of", exact=True).input_value() == "7"
    assert other.get_by_label("Experts", exact=True).input_value() == "id"
    assert not other.get_by_label("group by EP rank").is_checked()
    assert other.get_by_label("Window", exact=True).input_value() == "10s"


def test_with_the_keyboard_only(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/overview")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the numbers")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    assert "#/overview?" in page.url
    page.get_by_role("link", name="Heatmap").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Experts", exact=True).select_option("id")
    page.get_by_label("group by EP rank").uncheck()
    grid = page.get_by_role("application", name="Experts by layer")
    expect(grid).to_be_visible()
    grid.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    readout = page.locator("main .readout").first
    expect(readout).to_contain_text("layer 4 · expert 2 ·")
    page.keyboard.press("End")
    expect(readout).to_contain_text("layer 4 · expert 255 ·")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Layer 4")).to_be_visible()
    page.get_by_role("link", name="next").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Layer 5")).to_be_visible()
    page.go_back()
    page.go_back()
    expect(grid).to_be_visible()


def test_a_click_on_the_heatmap_opens_the_layer(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/heatmap?window=all")
    grid = page.get_by_role("application", name="Experts by layer")
    grid.click(position={"x": 300, "y": 20 + 10 * 0.5})
    expect(page.get_by_role("heading", name="Layer 3")).to_be_visible()
    assert "window=all" in page.url


def test_the_heatmap_shows_colours_and_marks(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/heatmap")
    colours = page.evaluate(
        """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
            const canvas = document.querySelector('canvas.grid');
            const [width, height] = [canvas.width - 40, canvas.height - 20];
            const data = canvas.getContext('2d').getImageData(40, 20, width, height).data;
            const seen = new Set();
            for (let i = 0; i < data.length; i += 4) seen.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
            done(seen.size);
        })))"""
    )
    assert colours > 60


def test_numbers_follow_the_frames(empty: Serving, clock: Clock, watched: Watched) -> None:
    who = producer(ep_size=2)
    for seq, slots in ((1, 100), (2, 300)):
        clock.now += 1
        empty.push(frame({0: [slots, slots]}, who=who, seq=seq, placement=halves(2, 1)))
        page = watched.page if seq > 1 else watched.open(empty.url, "#/layer?layer=0&window=all")
        expect(page.locator(".tile .value").first).to_have_text(str(slots))


def test_two_models_of_one_shape_can_be_compared(empty: Serving, clock: Clock, watched: Watched) -> None:
    clock.now += 1
    for server, counts in (("left", [100, 100]), ("right", [200, 0])):
        empty.push(frame({0: counts}, who=producer(server=server)))
    page = watched.open(empty.url, "#/compare?window=all&server=left&model=tiny&base=same")
    page.get_by_label("Against", exact=True).select_option(label="tiny on right")
    expected = empty.get("/v1/compare", server="left", base_server="right")["layers"][0]["divergence"]
    assert expected > 0.2
    table = page.get_by_role("table", name="Divergence of each layer")
    expect(table.locator("td").last).to_have_text(f"{expected:.4f}")


class _Proxy:
    """What stands in front of a service: a path prefix and a password."""

    prefix = "/observe/moe"

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._password = b"Basic " + base64.b64encode(b"ann:secret")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        from_workers = scope["method"] == "POST"
        if from_workers or headers.get(b"authorization") == self._password:
            path = scope["path"].removeprefix(self.prefix)
            await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)
            return
        challenge = [(b"www-authenticate", b'Basic realm="moe"'), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 401, "headers": challenge})
        await send({"type": "http.response.body", "body": b""})


def test_behind_a_path_prefix_and_a_password(
    clock: Clock, new_page: Callable[..., Watched], tmp_path: Path
) -> None:
    with Serving(clock, wrap=_Proxy, store=tmp_path) as serving:
        feed_large(serving, clock, seconds=10)
        watched = new_page(http_credentials={"username": "ann", "password": "secret"})
        for view, title in _views().items():
            page = _open(watched, serving.url + _Proxy.prefix, view, title)
            expect(page.locator("#status")).to_have_text("Live")
        watched.page.goto(f"{serving.url}{_Proxy.prefix}/docs")
        expect(watched.page.locator("h2 code").first).to_contain_text("POST /v1/ingest")
        assert httpx.get(f"{serving.url}{_Proxy.prefix}/", timeout=60).status_code == 401
        watched.page.goto("about:blank")
