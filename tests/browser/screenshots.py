"""Takes the pictures of docs/images: python -m tests.browser.screenshots [folder]."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.browser.chrome import Watched, chromium
from tests.browser.serving import LARGE, Clock, Serving, feed, push_traces

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
LARGEST = 230_000
"""Bytes that a picture may have."""


def main(folder: Path) -> None:
    """Every view wide, in both themes; overview and heatmap narrow, too."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    with (
        tempfile.TemporaryDirectory() as store,
        Serving(clock, store=Path(store)) as serving,
        chromium() as browser,
    ):
        fleet = feed(serving, clock, replace(LARGE, steps_per_s=4.0, trace_rate=0.002), seconds=320, step=10)
        push_traces(serving, *fleet.traces(320.0))
        trace = max(serving.get("/v1/traces")["traces"], key=lambda item: item["tokens"])["request_id"]
        for scheme in ("light", "dark"):
            for size, (width, height) in SIZES.items():
                watched = Watched(browser, color_scheme=scheme, viewport={"width": width, "height": height})
                for name, route in SHOTS.items():
                    if size == "narrow" and name not in ("overview", "heatmap"):
                        continue
                    page = watched.open(serving.url, route.format(trace=trace))
                    page.wait_for_timeout(700)
                    path = folder / f"{name}-{size}-{scheme}.png"
                    page.screenshot(path=path)
                    print(path.name, path.stat().st_size)
                    if path.stat().st_size >= LARGEST:
                        raise SystemExit(f"{path} is too large")
                watched.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/images"))
