"""Takes the pictures of docs/images: python -m tests.browser.screenshots [folder]."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.browser.chrome import Watched, chromium
from tests.browser.serving import LARGE, Clock, Serving, feed, push_traces
from tests.docs.console import SECONDS, sessions
from tests.docs.fleet import plan_of
from tests.docs.fleet import serving as serving_fleet

SIZES = {"wide": (1440, 900), "narrow": (420, 860)}
SHOTS = {
    "overview": "#/overview",
    "heatmap": "#/heatmap",
    "ranks": "#/ranks",
    "layer": "#/layer?layer=24",
    "compare": "#/compare",
    "advice": "#/advice",
    "traces": "#/traces",
    "trace": "#/trace?trace={trace}",
}
SCHEMES = ("light", "dark")
HOT = {
    "hot-overview": "#/overview",
    "hot-layer": "#/layer?layer=7",
    "hot-heatmap": "#/heatmap",
}
"""Of the fleet that docs/tutorial-hot-expert.md starts; README.md begins with the first."""
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial-hot-expert.md"
COLOURS = 256
"""Colours of a picture; flat areas and thin text need no more."""
LARGEST = 200_000
"""Bytes that a picture may have."""


def main(folder: Path) -> None:
    """All pictures, in both themes."""
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        of_views(folder, browser)
        of_tutorial(folder, browser)


def of_views(folder: Path, browser: Browser) -> None:
    """Every view wide; overview and heatmap narrow, too."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as store, Serving(clock, store=Path(store)) as serving:
        fleet = feed(serving, clock, replace(LARGE, steps_per_s=4.0, trace_rate=0.002), seconds=320, step=10)
        push_traces(serving, *fleet.traces(320.0))
        trace = max(serving.get("/v1/traces")["traces"], key=lambda item: item["tokens"])["request_id"]
        for size, viewport in SIZES.items():
            names = SHOTS if size == "wide" else ("overview", "heatmap")
            routes = {f"{name}-{size}": SHOTS[name].format(trace=trace) for name in names}
            take(folder, browser, serving.url, routes, viewport)


def of_tutorial(folder: Path, browser: Browser) -> None:
    """What the tutorial about a hot expert shows."""
    fleet = sessions(TUTORIAL.read_text())[0].fleet
    with serving_fleet(plan_of(fleet), SECONDS) as serving:
        take(folder, browser, serving.url, HOT, (1440, 800))


def take(folder: Path, browser: Browser, url: str, routes: dict[str, str], viewport: tuple[int, int]) -> None:
    """A picture of each route in each theme, named <name>-<theme>.png."""
    width, height = viewport
    for scheme in SCHEMES:
        watched = Watched(browser, color_scheme=scheme, viewport={"width": width, "height": height})
        for name, route in routes.items():
            page = watched.open(url, route)
            page.wait_for_timeout(700)
            path = folder / f"{name}-{scheme}.png"
            path.write_bytes(small(page.screenshot()))
            print(path.name, path.stat().st_size)
            if path.stat().st_size >= LARGEST:
                raise SystemExit(f"{path} is too large")
        watched.close()


def small(shot: bytes) -> bytes:
    """A PNG that is as small as it gets without loss, or with 256 colours if that is too large."""
    picture = Image.open(BytesIO(shot)).convert("RGB")
    for made in (picture, picture.quantize(COLOURS, dither=Image.Dither.NONE, kmeans=2)):
        packed = BytesIO()
        made.save(packed, "PNG", optimize=True)
        if packed.tell() < LARGEST:
            break
    return packed.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/images"))
