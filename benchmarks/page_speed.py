"""How fast the page is on a slow computer: a large heatmap, hundreds of ranks, and the first load.

    python -m benchmarks.page_speed

Headless Chromium without a GPU, its processor slowed four times, beside a service and a simulated fleet with
a frame a second from each rank: 32 ranks with 61 layers of 384 experts for the heatmap, 256 ranks with 58
layers of 256 experts for the overview and the load.

- heatmap: intervals of requestAnimationFrame while the view has an update a second. A screen of 60 Hz shows
  no frame in less than 16.7 ms; so also the work of a frame: what the main thread ran from one to the next.
- overview: the processor's time of an update, script, style and layout and all else, and the longest task.
- load: what the first visit fetches, as it goes over the wire with its headers, until half a second after the
  Overview is whole, charts too; when that was, and when it had its first rows, once they were painted.
  "files" are those of the page; "data" are answers of the API. The median of some visits.
- answers: how long the service takes for what the Overview asks at an update, while all ranks report.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser, CDPSession, Page

from benchmarks.page_heatmap import RECORD, running, wait_for
from devkit.processes import free_port
from tests.browser.chrome import FULL, Watched, chromium

RESULTS: Final = Path(__file__).parent / "results" / "page_speed.json"
SLOWED: Final = 4
VISITS: Final = 3
ANSWERS: Final = 9
TRACED_S: Final = 10.0
FloatArray = NDArray[np.float64]
TASKS: Final = """() => {
    window.tasks = [];
    new PerformanceObserver(list => {
        for (const entry of list.getEntries()) window.tasks.push(entry.duration);
    }).observe({type: "longtask", buffered: false});
}"""
WATCH: Final = """(() => {
    window.shown = {};
    const note = name => {
        if (name in window.shown) return;
        window.shown[name] = 0;
        requestAnimationFrame(() => setTimeout(() => {
            window.shown[name] = performance.now();
            document.documentElement.setAttribute(`data-${name}`, "");
        }));
    };
    new MutationObserver(() => {
        if (!document.querySelector("main table.cards tbody tr")) return;
        note("first_rows_ms");
        const charts = document.querySelectorAll("main .chart canvas").length;
        if (charts === 2 && !document.querySelector("main [data-state=loading]")) note("whole_ms");
    }).observe(document, {childList: true, subtree: true, attributes: true});
})()"""
SHOWN: Final = """() => ({
    first_paint_ms: performance.getEntriesByName("first-contentful-paint")[0]?.startTime,
    ...window.shown,
})"""


@contextmanager
def fleet(ranks: int, layers: int, experts: int) -> Iterator[str]:
    """The address of a service that has been told of a fleet for some seconds, and is told on."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    shape = ("--ranks", str(ranks), "--layers", str(layers), "--experts", str(experts))
    with running("serve", "--port", str(port), "--no-store"):
        wait_for(f"{url}/readyz")
        with running("simulate", "--url", url, *shape):
            time.sleep(8)
            yield url


def slowed(watched: Watched) -> CDPSession:
    """A session of a page whose processor is slowed."""
    cdp = watched.context.new_cdp_session(watched.page)
    cdp.send("Performance.enable")
    cdp.send("Emulation.setCPUThrottlingRate", {"rate": SLOWED})
    return cdp


def settled(watched: Watched, url: str, view: str) -> tuple[Page, CDPSession, list[str]]:
    """A view that has been shown for a while, and the addresses that it asks for from then on."""
    page = watched.open(url, f"#/{view}?window=1m")
    cdp = slowed(watched)
    page.wait_for_timeout(5000)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    return page, cdp, requests


def spent(cdp: CDPSession) -> dict[str, float]:
    """Chromium's counters of time, without a garbage collection that the page did not ask for."""
    return {item["name"]: item["value"] for item in cdp.send("Performance.getMetrics")["metrics"]}


def heatmap(browser: Browser, url: str, seconds: float) -> dict[str, Any]:
    """Frames of the heatmap."""
    watched = Watched(browser)
    page, cdp, requests = settled(watched, url, "heatmap")
    before = spent(cdp)
    page.evaluate(RECORD)
    page.wait_for_timeout(1000 * seconds)
    intervals = np.array(page.evaluate("window.intervals"))
    after = spent(cdp)
    updates = sum("/v1/view" in item for item in requests)
    browser.start_tracing(
        page=page, categories=["devtools.timeline", "disabled-by-default-devtools.timeline"]
    )
    page.wait_for_timeout(1000 * TRACED_S)
    work = work_of_frames(json.loads(browser.stop_tracing())["traceEvents"])
    watched.close()
    return {
        "updates": updates,
        "frames": len(intervals),
        "frame_ms": _percentiles(intervals),
        "work_of_a_frame_ms": _percentiles(work),
        "task_ms_per_update": _per_update(before, after, "TaskDuration", updates),
        "script_ms_per_update": _per_update(before, after, "ScriptDuration", updates),
    }


def work_of_frames(events: list[dict[str, Any]]) -> FloatArray:
    """Milliseconds that the page's main thread ran between each frame's begin and the next one's."""
    main = {e["tid"] for e in events if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"}
    mine = [e for e in events if e["tid"] in main]
    tasks = sorted((e["ts"], e["dur"]) for e in mine if e["name"] == "RunTask" and "dur" in e)
    starts, durations = np.array(tasks, dtype=np.float64).reshape(-1, 2).T
    fired = [e["ts"] for e in mine if e["name"] == "FireAnimationFrame"]
    begins = np.unique(np.searchsorted(starts, fired, side="right") - 1)  # the task that each frame begins in
    return np.add.reduceat(durations, begins)[:-1] / 1000


def overview(browser: Browser, url: str, seconds: float) -> dict[str, Any]:
    """Updates of the overview."""
    watched = Watched(browser)
    page, cdp, requests = settled(watched, url, "overview")
    page.evaluate(TASKS)
    before = spent(cdp)
    page.wait_for_timeout(1000 * seconds)
    tasks = page.evaluate("window.tasks")
    after = spent(cdp)
    updates = sum("/v1/view" in item for item in requests)
    watched.close()
    return {
        "updates": updates,
        "task_ms_per_update": _per_update(before, after, "TaskDuration", updates),
        "script_ms_per_update": _per_update(before, after, "ScriptDuration", updates),
        "layout_ms_per_update": _per_update(before, after, "LayoutDuration", updates),
        "tasks_over_50_ms": len(tasks),
        "longest_task_ms": round(max(tasks, default=0.0)),
    }


def answers(url: str) -> dict[str, dict[str, float]]:
    """How long the service takes for what the Overview asks at an update, and the bytes that it sends."""
    asked: dict[str, dict[str, str | list[str]]] = {
        "ranks": {},
        "view": {"start": "-1m", "parts": ["ep_ranks", "hot"]},
        "verdict": {"start": "-1m"},
    }
    found = {}
    with httpx.Client(base_url=url, timeout=60) as client:
        for name, params in asked.items():
            took, sent = [], 0
            for _ in range(ANSWERS):
                time.sleep(0.2)
                begun = time.perf_counter()
                with client.stream("GET", f"/v1/{name}", params=params) as response:
                    sent = sum(len(part) for part in response.iter_raw())
                took.append(1000 * (time.perf_counter() - begun))
            found[name] = {"p50_ms": round(float(np.median(took)), 1), "bytes": sent}
    return found


def load(browser: Browser, url: str) -> dict[str, Any]:
    """The median of some first visits."""
    visits = [visit(browser, url) for _ in range(VISITS)]
    return {name: round(float(np.median([each[name] for each in visits]))) for name in visits[0]}


def visit(browser: Browser, url: str) -> dict[str, float]:
    """A first visit, with nothing in the cache."""
    watched = Watched(browser)
    cdp = slowed(watched)
    cdp.send("Network.enable")
    kinds: dict[str, str] = {}
    sizes: dict[str, int] = {"files": 0, "data": 0}
    counts: dict[str, int] = {"files": 0, "data": 0}

    def answered(event: dict[str, Any]) -> None:
        kinds[event["requestId"]] = "data" if "/v1/" in event["response"]["url"] else "files"

    def ended(event: dict[str, Any]) -> None:
        kind = kinds.get(event["requestId"])
        if kind is not None:
            sizes[kind] += int(event["encodedDataLength"])
            counts[kind] += 1

    cdp.on("Network.responseReceived", answered)
    cdp.on("Network.loadingFinished", ended)
    page = watched.page
    page.add_init_script(WATCH)
    page.goto(f"{url}/")
    page.wait_for_selector("html[data-whole_ms]")
    timing = page.evaluate(SHOWN)
    page.wait_for_timeout(500)
    watched.close()
    return {
        "files": counts["files"],
        "files_bytes": sizes["files"],
        "data": counts["data"],
        "data_bytes": sizes["data"],
        **timing,
    }


def told(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What was found, printed."""
    print(name, json.dumps(found), flush=True)
    return found


def _percentiles(values: FloatArray) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 95, 99)}


def _per_update(before: dict[str, float], after: dict[str, float], name: str, updates: int) -> float:
    return round(1000 * (after[name] - before[name]) / max(1, updates), 1)


def main() -> None:
    """Measure, print, keep the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30, help="of each view (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"results file (default: {RESULTS.name})")
    parser.add_argument("--no-results", action="store_true", help="write none")
    options = parser.parse_args()
    found: dict[str, Any] = {"slowed": SLOWED}
    with chromium(FULL) as browser:
        with fleet(32, 61, 384) as url:
            found["heatmap"] = told("heatmap", heatmap(browser, url, options.seconds))
        with fleet(256, 58, 256) as url:
            found["load"] = told("load", load(browser, url))
            found["answers"] = told("answers", answers(url))
            found["overview"] = told("overview", overview(browser, url, options.seconds))
    found["load_average"], found["cores"] = round(os.getloadavg()[0], 1), os.cpu_count()
    if not options.no_results:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
