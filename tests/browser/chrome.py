"""A headless Chromium (Debian's packages) and pages in it that note everything that went wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from devkit.libraries import MissingLibraryError, missing_for_browser, require

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FULL = "chromium"
SHELL = "chromium-headless-shell"
"""The same engine without windows, tabs and what else people have around a page: half of the work."""
AXE = Path(__file__).with_name("vendor") / "axe.min.js"
WIDE = {"width": 1440, "height": 900}
PATIENCE_MS = 60_000.0

expect.set_options(timeout=PATIENCE_MS)


class ChromiumMissingError(RuntimeError):
    """The browser, or what drives it, is not installed."""


@contextmanager
def chromium(*programs: str) -> Iterator[Browser]:
    """A browser with a profile of its own: the first of these programs that is installed.

    If none is named, it is :data:`SHELL`, or :data:`FULL` where there is none.

    Raises:
        ChromiumMissingError: there is none, or a library that Playwright needs is missing.
    """
    named = programs or (SHELL, FULL)
    path = next(filter(None, map(shutil.which, named)), None)
    if path is None:
        raise ChromiumMissingError(f"{named[0]} is missing: devkit/setup-debian.sh {named[0]}")
    try:
        require(missing_for_browser())
    except MissingLibraryError as error:
        raise ChromiumMissingError(f"{error} (`make packages`)") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and what its console and its requests complained of.

    ``expected`` are parts of complaints that the test causes on purpose.
    """

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, **options})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.expected: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))
        self.page.on("request", lambda request: self._request(request.url))

    def open(self, url: str, route: str = "#/overview") -> Page:
        """Go to a view and wait until it shows something other than that it loads."""
        self.page.goto(f"{url}/{route}")
        self.settled()
        return self.page

    def route(self, route: str) -> Page:
        """Change the fragment, as a link does."""
        self.page.evaluate("hash => { location.hash = hash }", route)
        self.settled()
        return self.page

    def settled(self) -> None:
        """Wait for all numbers, or for a state that stands in their place."""
        self.page.wait_for_selector("main > *:not([data-state=loading])")
        self.page.wait_for_selector("main [data-state=loading]", state="detached")

    def axe(self) -> list[str]:
        """What axe finds wrong with the page, as text."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        return [
            f"{rule['id']}: {rule['help']}: {node['html'][:120]}: {node['failureSummary']}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    def close(self) -> None:
        """End; nothing may have gone wrong."""
        self.context.close()
        unexpected = [text for text in self.complaints if not any(part in text for part in self.expected)]
        assert not self.foreign + unexpected, f"left the service: {self.foreign}; complained: {unexpected}"

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _request(self, url: str) -> None:
        if not url.startswith("http://127.0.0.1:"):
            self.foreign.append(url)
