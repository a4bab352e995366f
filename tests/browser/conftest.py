"""One browser for the tests of a file, a page for each, and a service that has seen a large fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser.chrome import Watched, chromium
from tests.browser.serving import Clock, Serving, feed_large


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not for the session: while it lives, nothing else can run an event loop in this thread.
    with chromium() as started:
        yield started


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Pages; when the test ends, none may have complained."""
    pages: list[Watched] = []

    def make(**options: Any) -> Watched:
        pages.append(Watched(browser, **options))
        return pages[-1]

    yield make
    for page in pages:
        page.close()


@pytest.fixture
def watched(new_page: Callable[..., Watched]) -> Watched:
    return new_page()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def empty(clock: Clock) -> Iterator[Serving]:
    """A service that nobody has reported to."""
    with Serving(clock) as serving:
        yield serving


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """32 ranks, 57 layers of 256 experts in sight, two minutes of past, and a trace; time stands still."""
    clock = Clock()
    with Serving(clock, store=tmp_path_factory.mktemp("store")) as serving:
        feed_large(serving, clock, seconds=120)
        yield serving
