"""Memory and scrape times of a real Prometheus that scrapes a simulated fleet, rules included.

    python benchmarks/prometheus_memory.py --level layer_expert

256 ranks of DeepSeek-V3's shape feed a real service; Prometheus scrapes it 240 times, as in an hour at 15 s,
but every two seconds. Samples per series are those of the hour; what depends on real time (blocks are
compacted every two hours) is not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).parent / "results" / "prometheus_memory.json"
SERVICE, PROMETHEUS = 19890, 19090


def start(stack: ExitStack, command: list[str], log: Path) -> psutil.Process:
    """A process that ends with the stack."""
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(command, stdout=output, stderr=output)

    def end() -> None:
        process.terminate()
        process.wait(30)

    stack.callback(end)
    return psutil.Process(process.pid)


def query(expr: str) -> float:
    """An instant query's first value, 0 for none."""
    text = urllib.parse.urlencode({"query": expr})
    with urllib.request.urlopen(f"http://127.0.0.1:{PROMETHEUS}/api/v1/query?{text}", timeout=30) as answer:
        found = json.load(answer)["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start everything, wait for the scrapes, read the figures."""
    config = folder / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {options.interval}s, scrape_timeout: {options.interval}s, "
        f"evaluation_interval: {2 * options.interval}s}}\n"
        f"rule_files: ['{ROOT / 'dashboards' / 'rules'}/*.yml']\n"
        "scrape_configs:\n"
        f"  - {{job_name: moescope, static_configs: [{{targets: ['127.0.0.1:{SERVICE}']}}]}}\n"
        f"  - {{job_name: prometheus, static_configs: [{{targets: ['127.0.0.1:{PROMETHEUS}']}}]}}\n"
    )
    moescope, prometheus = str(Path(sys.executable).with_name("moescope")), shutil.which("prometheus")
    if prometheus is None:
        raise SystemExit("Prometheus is missing: install the package prometheus")
    with ExitStack() as stack:
        serve = [moescope, "serve", "--port", str(SERVICE), "--metrics-level", options.level]
        service = start(stack, serve, folder / "serve.log")
        time.sleep(2)
        feed = ["simulate", "--url", f"http://127.0.0.1:{SERVICE}", "--ranks", str(options.ranks)]
        start(stack, [moescope, *feed, "--interval", "15"], folder / "simulate.log")
        flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        address = f"--web.listen-address=127.0.0.1:{PROMETHEUS}"
        server = start(stack, [prometheus, *flags, address], folder / "prometheus.log")
        peak = 0
        began = time.monotonic()
        while time.monotonic() - began < options.scrapes * options.interval:
            time.sleep(1)
            peak = max(peak, server.memory_info().rss)
        job = '{job="moescope"}'
        return {
            "ranks": options.ranks,
            "level": options.level,
            "scrapes": query(f"count_over_time(up{job}[1h])"),
            "failed_scrapes": query(f"count_over_time(up{job}[1h]) - sum_over_time(up{job}[1h])"),
            "series": query(f"scrape_samples_scraped{job}"),
            "head_series": query("prometheus_tsdb_head_series"),
            "scrape_seconds_median": query(f"quantile_over_time(0.5, scrape_duration_seconds{job}[1h])"),
            "scrape_seconds_p95": query(f"quantile_over_time(0.95, scrape_duration_seconds{job}[1h])"),
            "prometheus_rss_mb": round(server.memory_info().rss / 1e6),
            "prometheus_peak_rss_mb": round(peak / 1e6),
            "service_rss_mb": round(service.memory_info().rss / 1e6),
        }


def main() -> None:
    """Measure, print, keep the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--level", default="layer_rank", help="metrics level (default: %(default)s)")
    parser.add_argument("--scrapes", type=int, default=240, help="how many (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=2, help="seconds between them (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, Path(folder))
    print(json.dumps(found, indent=1))
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([*rows, found], indent=1) + "\n")


if __name__ == "__main__":
    main()
