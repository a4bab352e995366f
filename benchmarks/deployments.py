"""What a scrape costs with many small deployments: processor time, by what has changed since the last one.

    python -m benchmarks.deployments

Each deployment is one worker with one layer. Four rounds of frames go straight into the live state, so the
window of the balance gauges begins within them. A scrape is what GET /metrics does, without HTTP. "changed":
each deployment sent a frame since the last scrape. "unchanged": none did, and the window is the same.
"first": nothing is kept from a scrape before, as after a start.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.results_file import keep, parser_of
from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.text.exposition import expose, negotiate
from moescope.service.metrics.text.writer import Writer
from moescope.service.settings import Settings

RESULTS: Final = Path(__file__).parent / "results" / "deployments.json"
SIZES: Final = (256, 1024, 2048, 4096)
ROUNDS: Final = 4
EPOCH_S: Final = 1_700_000_000
SETTINGS: Final = Settings(
    port=0, max_producers=max(SIZES), metrics_max_series=10_000_000, window_s=2.5, min_tokens=1
)


class World:
    """A state of some deployments, and the time."""

    def __init__(self, deployments: int) -> None:
        self.now = float(EPOCH_S)
        self.state = LiveState(SETTINGS, lambda: self.now)
        self._deployments = deployments
        self._seq = 0
        for _ in range(ROUNDS):
            self.push()

    def push(self) -> None:
        """A frame of each deployment, a second later."""
        self._seq += 1
        self.now += 1
        counts = wire.pack_counts(np.array([4 * self._seq, 12 * self._seq]))
        for number in range(self._deployments):
            self.state.ingest(
                wire.Frame(
                    wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR),
                    producer=wire.Producer(server=f"server-{number}", model="tiny", dp_rank=0, dp_size=1),
                    epoch=EPOCH_S * 10**9,
                    seq=self._seq,
                    captured_at_ns=(EPOCH_S + self._seq) * 10**9,
                    state="counting",
                    layers=[wire.MoeLayer(0, 2, 2)],
                    counts=counts,
                    rows=wire.pack_counts(np.array([8 * self._seq])),
                    tokens=8 * self._seq,
                    steps=self._seq,
                    idle_steps=0,
                )
            )


class Scraper:
    """Scrapes a state, and keeps what is kept between scrapes."""

    def __init__(self, state: LiveState) -> None:
        self._registry, self._writer = CollectorRegistry(), Writer()
        self._registry.register(RoutingCollector(state, SETTINGS, Instruments()))

    def cpu_ms(self) -> tuple[float, int]:
        """Processor time of a scrape, milliseconds, and the answer's bytes."""
        began = time.process_time()
        [body] = expose(self._registry, self._writer, [negotiate("", "")]).values()
        return (time.process_time() - began) * 1e3, len(body)


def measure(deployments: int, runs: int) -> dict[str, Any]:
    """One row of the results."""
    world = World(deployments)
    first, changed, unchanged, nbytes = [], [], [], 0
    scraper = Scraper(world.state)
    scraper.cpu_ms()
    for _ in range(runs):
        first.append(Scraper(world.state).cpu_ms()[0])
        world.push()
        took, nbytes = scraper.cpu_ms()
        changed.append(took)
        unchanged.append(scraper.cpu_ms()[0])
    medians = {
        f"{name}_cpu_ms": round(statistics.median(times), 1)
        for name, times in (("first", first), ("changed", changed), ("unchanged", unchanged))
    }
    each = round(medians["changed_cpu_ms"] / deployments, 3)
    return {"deployments": deployments, **medians, "changed_cpu_ms_each": each, "bytes": nbytes}


def main() -> None:
    """Measure, print, keep the results."""
    parser = parser_of(__doc__, RESULTS, runs=5)
    parser.add_argument("--deployments", type=int, nargs="+", default=list(SIZES))
    options = parser.parse_args()
    rows = []
    for deployments in options.deployments:
        rows.append(measure(deployments, options.runs))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    keep(options, rows)


if __name__ == "__main__":
    main()
