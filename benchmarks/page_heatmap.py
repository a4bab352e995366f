"""Frame time and memory of the page's heatmap at one update a second, measured in headless Chromium.

    python -m benchmarks.page_heatmap --seconds 300

A service and a simulated fleet (32 ranks, 58 layers of 256 experts, top-8) run beside the browser on this
machine. First frames: intervals of requestAnimationFrame, without a GPU; script time and heap are Chromium's
own counters, the heap after a garbage collection. Then memory: what the renderers of another browser hold,
which no debugger watches, since a debugger keeps every answer that the page got.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from playwright.sync_api import CDPSession

from devkit.processes import free_port
from tests.browser.chrome import FLAGS, FULL, Watched, chromium

RECORD = """() => {
    window.intervals = [];
    let last = performance.now();
    const frame = now => { window.intervals.push(now - last); last = now; requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
}"""


@contextmanager
def running(*args: str) -> Iterator[None]:
    """A command of moescope, ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moescope.service", *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def wait_for(url: str) -> None:
    """Until the service answers."""
    for _ in range(200):
        try:
            urllib.request.urlopen(url).close()  # noqa: S310 our own address
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(url)


def counters(cdp: CDPSession) -> dict[str, float]:
    """Chromium's counters, after a garbage collection."""
    cdp.send("HeapProfiler.collectGarbage")
    return {item["name"]: item["value"] for item in cdp.send("Performance.getMetrics")["metrics"]}


def memory(address: str, seconds: float) -> list[int]:
    """MiB that the renderers of a browser that only shows the page hold, noted ten times."""
    with tempfile.TemporaryDirectory() as profile:
        browser = subprocess.Popen(
            [
                "chromium",
                "--headless",
                *FLAGS,
                f"--user-data-dir={profile}",
                "--remote-debugging-port=0",
                address,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(10)
            found = [renderers(browser.pid)]
            for _ in range(10):
                time.sleep(seconds / 10)
                found.append(renderers(browser.pid))
        finally:
            browser.terminate()
            browser.wait(10)
            time.sleep(1)
    return found


def renderers(pid: int) -> int:
    """MiB that the renderers below a process hold: the sum of their unique memory."""
    children = psutil.Process(pid).children(recursive=True)
    return round(sum(p.memory_full_info().uss for p in children if "--type=renderer" in p.cmdline()) / 2**20)


def frames(url: str, seconds: float, route: str) -> dict[str, Any]:
    """Open the heatmap and watch it."""
    with chromium(FULL) as browser:
        watched = Watched(browser)
        requests: list[str] = []
        watched.page.on("request", lambda request: requests.append(request.url))
        page = watched.open(url, route)
        page.wait_for_timeout(5000)
        cdp = watched.context.new_cdp_session(page)
        cdp.send("Performance.enable")
        page.evaluate(RECORD)
        requests.clear()
        before = counters(cdp)
        page.wait_for_timeout(1000 * seconds)
        intervals = np.array(page.evaluate("window.intervals"))
        page.evaluate("window.intervals = []")
        after = counters(cdp)
        updates = sum("/v1/view" in item for item in requests)
        watched.close()
    p50, p99 = np.percentile(intervals, [50, 99])
    return {
        "seconds": seconds,
        "updates": updates,
        "frames": len(intervals),
        "frame_interval_ms": {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(intervals.max(), 1)},
        "frames_over_50_ms": int((intervals > 50).sum()),
        "script_ms_per_update": round(
            1000 * (after["ScriptDuration"] - before["ScriptDuration"]) / updates, 1
        ),
        "heap_mib": [round(item["JSHeapUsedSize"] / 2**20, 1) for item in (before, after)],
        "dom_nodes": [int(item["Nodes"]) for item in (before, after)],
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--route", default="#/heatmap?window=1m")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running("serve", "--port", str(port), "--no-store"):
        wait_for(f"{url}/readyz")
        with running("simulate", "--url", url, "--hot", "0.2", "--dead", "2"):
            time.sleep(3)
            result = frames(url, args.seconds, args.route)
            result["renderer_mib"] = memory(f"{url}/{args.route}", args.seconds)
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
