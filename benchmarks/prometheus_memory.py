"""Memory and scrape times of a real Prometheus that scrapes a simulated fleet, rules included.

    python benchmarks/prometheus_memory.py --level layer_expert

256 ranks of DeepSeek-V3's shape feed a real service. Prometheus scrapes it 240 times, every 15 seconds: that
is a real hour. A shorter ``--interval`` gives as many samples per series in less time. But rules look back
minutes of real time, and find more samples in them. Every rank sends a frame every ``--frames`` seconds. Few
steps are simulated, because making them takes long; the number of series does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).parent / "results" / "prometheus_memory.json"
STEPS_PER_S: Final = "0.2"
PARTS: Final = 4
"""How often memory is noted, at even distances in the run."""


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(stack: ExitStack, command: list[str], log: Path) -> psutil.Process:
    """A process that ends with the stack."""
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(command, stdout=output, stderr=output)

    def end() -> None:
        process.terminate()
        process.wait(30)

    stack.callback(end)
    return psutil.Process(process.pid)


def query(port: int, expr: str) -> float:
    """An instant query's first value, 0 for none."""
    text = urllib.parse.urlencode({"query": expr})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{text}", timeout=30) as answer:
        found = json.load(answer)["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


def configuration(interval: int, service: int, prometheus: int) -> str:
    """Prometheus scrapes the service and itself, and evaluates all rules at every other scrape."""
    return (
        f"global: {{scrape_interval: {interval}s, scrape_timeout: {min(interval, 10)}s, "
        f"evaluation_interval: {2 * interval}s}}\n"
        f"rule_files: ['{ROOT / 'dashboards' / 'rules'}/*.yml']\n"
        "scrape_configs:\n"
        f"  - {{job_name: moescope, static_configs: [{{targets: ['127.0.0.1:{service}']}}]}}\n"
        f"  - {{job_name: prometheus, static_configs: [{{targets: ['127.0.0.1:{prometheus}']}}]}}\n"
    )


def watch(server: psutil.Process, seconds: float) -> tuple[list[int], int]:
    """Prometheus's resident memory, MB: at the end of each part of a time, and the largest seen."""
    began, noted, peak = time.monotonic(), [], 0
    for part in range(1, PARTS + 1):
        while time.monotonic() - began < seconds * part / PARTS:
            time.sleep(1)
            resident = server.memory_info().rss
            peak = max(peak, resident)
        noted.append(round(resident / 1e6))
    return noted, round(peak / 1e6)


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time, user and system."""
    times = process.cpu_times()
    return float(round(times.user + times.system, 1))


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start everything, wait for the scrapes, read the figures."""
    port, prometheus_port = free_port(), free_port()
    config = folder / "prometheus.yml"
    config.write_text(configuration(options.interval, port, prometheus_port))
    moescope, prometheus = str(Path(sys.executable).with_name("moescope")), shutil.which("prometheus")
    if prometheus is None:
        raise SystemExit("Prometheus is missing: install the package prometheus")
    with ExitStack() as stack:
        serve = [moescope, "serve", "--port", str(port), "--metrics-level", options.level, "--no-store"]
        service = start(stack, serve, folder / "serve.log")
        time.sleep(2)
        feed = ["simulate", "--url", f"http://127.0.0.1:{port}", "--ranks", str(options.ranks)]
        feed += ["--interval", str(options.frames), "--steps", STEPS_PER_S]
        start(stack, [moescope, *feed], folder / "simulate.log")
        flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        address = f"--web.listen-address=127.0.0.1:{prometheus_port}"
        server = start(stack, [prometheus, *flags, address], folder / "prometheus.log")
        resident, peak = watch(server, options.scrapes * options.interval)
        found = partial(query, prometheus_port)
        job = '{job="moescope"}'
        return {
            "machine": f"{psutil.cpu_count()} cores, Python {platform.python_version()}",
            "ranks": options.ranks,
            "level": options.level,
            "scrape_interval_s": options.interval,
            "scrapes": found(f"count_over_time(up{job}[2h])"),
            "failed_scrapes": found(f"count_over_time(up{job}[2h]) - sum_over_time(up{job}[2h])"),
            "series": found(f"scrape_samples_scraped{job}"),
            "head_series": found("prometheus_tsdb_head_series"),
            "samples": found("prometheus_tsdb_head_samples_appended_total"),
            "failed_rule_evaluations": found("sum(prometheus_rule_evaluation_failures_total)"),
            "rules_seconds": found("sum(prometheus_rule_group_last_duration_seconds)"),
            "scrape_seconds_median": found(f"quantile_over_time(0.5, scrape_duration_seconds{job}[2h])"),
            "scrape_seconds_p99": found(f"quantile_over_time(0.99, scrape_duration_seconds{job}[2h])"),
            "scrape_seconds_max": found(f"max_over_time(scrape_duration_seconds{job}[2h])"),
            "prometheus_rss_mb_each_quarter": resident,
            "prometheus_peak_rss_mb": peak,
            "prometheus_cpu_seconds": cpu_seconds(server),
            "service_rss_mb": round(service.memory_info().rss / 1e6),
            "service_cpu_seconds": cpu_seconds(service),
        }


def main() -> None:
    """Measure, print, keep the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--level", default="layer_rank", help="metrics level (default: %(default)s)")
    parser.add_argument("--scrapes", type=int, default=240, help="how many (default: %(default)s)")
    parser.add_argument(
        "--interval", type=int, default=15, help="seconds between them (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=10, help="seconds between a rank's frames (default: %(default)s)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the stack ends what was started
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, Path(folder))
    print(json.dumps(found, indent=1))
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([*rows, found], indent=1) + "\n")


if __name__ == "__main__":
    main()
