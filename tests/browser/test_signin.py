"""A service that asks for tokens: the page asks for one, keeps none, and is live afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
from playwright.sync_api import expect

from moescope.capture import wire
from tests.browser.chrome import Watched
from tests.browser.serving import Clock, Serving
from tests.service.frames import frame

TOKENS = {"reader": ["read"], "vllm": ["ingest"]}
SECRETS = {name: f"{name}-0123456789abcdef" for name in TOKENS}


def test_signing_in(clock: Clock, new_page: Callable[..., Watched], tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    entries = (
        f'[[tokens]]\nname = "{name}"\nscopes = {scopes}\n'
        f'sha256 = "{hashlib.sha256(SECRETS[name].encode()).hexdigest()}"\n'
        for name, scopes in TOKENS.items()
    )
    path.write_text("".join(entries))
    with Serving(clock, tokens_file=path) as serving:
        body = wire.encode_frame(frame({1: [400, 100]}))
        headers = {"content-type": wire.CONTENT_TYPE, "authorization": f"Bearer {SECRETS['vllm']}"}
        assert (
            httpx.post(f"{serving.url}/v1/ingest", content=body, headers=headers, timeout=60).status_code
            == 200
        )
        watched = new_page()
        watched.expected += ["401", "403"]  # a browser logs every such answer
        page = watched.open(serving.url)
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert watched.axe() == []
        for secret, words in (("wrong-token-0123456", "wrong"), (SECRETS["vllm"], "needs read")):
            page.get_by_label("Token").fill(secret)
            page.get_by_role("button", name="Sign in").click()
            expect(page.locator("#signin-problem")).to_contain_text(words)
        page.get_by_label("Token").fill(SECRETS["reader"])
        page.keyboard.press("Enter")
        expect(page.locator(".tile").first).to_be_visible()
        expect(page.locator("#status")).to_have_text("Live")
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        assert SECRETS["reader"] not in kept
        assert "moescope_session" not in kept
        page.goto("about:blank")  # it asks no more when the service ends
