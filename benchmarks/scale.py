"""How the service's cost grows with ranks, layers and deployments, beside what people would otherwise do.

    python -m benchmarks.scale

Workers of DeepSeek-V3's shape (58 layers of 256 experts, top-8) send a frame a second, with phases and the
loads of 25 steps, which are joined. Frames are decoded and taken in by the live state, and each second there
is one scrape at the level of layers and ranks, both without HTTP. Each row is a process of its own. Figures
are seconds of processor per second of such a fleet, so that what else the machine does matters little; "mib"
is the most that the process held. The service has begun after the workers, so that it also keeps what its
counters leave out.

- one: all ranks are one deployment, as large as its EP group. Each frame has loads of each EP rank, so that
  the sum of all frames grows with the square of the ranks, whatever a service does with them.
- of 32: deployments of 32 EP ranks, as many as it takes.
- layers, one of 32: other numbers of layers.

Beside it, of the same counts ("otherwise"): JSON in place of frames, read and added up by numpy; and a
registry of prometheus-client with the slots of each layer, EP rank and phase, set by label and written by the
library. "scrape_ratio" is by byte of the text, since moescope's scrape has more series.

"frame_bytes" are those of one frame as it is sent, "snapshot_bytes" those of a rank's totals as a store keeps
them, "scraped_bytes" those of a scrape of the whole fleet.

The exponent is the slope of log(cost) against log(size), fitted over the rows of a kind: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import generate_latest

from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.text.exposition import expose, negotiate
from moescope.service.metrics.text.writer import Writer
from moescope.service.settings import Settings
from moescope.service.store.codec import encode_totals

RESULTS: Final = Path(__file__).parent / "results" / "scale.json"
EXPERTS: Final = 256
STEPS: Final = 25
DAY_S: Final = 86_400
ROUNDS: Final = 5
"""The first two fill what is kept between frames and scrapes; the others are measured."""
WARM: Final = 2
KINDS: Final = {
    "one": [(1, ranks, 58) for ranks in (8, 32, 128, 256)],
    "of 32": [(ranks // 32, 32, 58) for ranks in (32, 128, 256, 512, 1024)],
    "layers, one of 32": [(1, 32, layers) for layers in (8, 16, 32, 64, 128)],
}


class Fleet:
    """Frames of deployments that have worked for a day.

    A rank computes 80 tokens a step, four fifths of them of decode, and 25 steps a second.
    """

    def __init__(self, deployments: int, ranks: int, layers: int) -> None:
        self.deployments, self.ranks, self.layers = deployments, ranks, layers
        rng = np.random.default_rng(0)
        self._loads = rng.multinomial(80 * 8, np.full(ranks, 1 / ranks), (STEPS, layers))
        self._counts = rng.multinomial(STEPS * 80 * 8, np.full(EXPERTS, 1 / EXPERTS), layers)
        experts = np.arange(EXPERTS)
        table = wire.PlacementTable(wire.pack_ids(experts), wire.pack_ids(experts * ranks // EXPERTS))
        self._placement = wire.Placement(version=1, tables=[table], table_of_layer=[0] * layers)
        self._layers = [wire.MoeLayer(layer, EXPERTS, 8) for layer in range(layers)]

    def counts(self, rank: int, seq: int) -> Any:
        """int64 [layers, experts]: a rank's slots since its start."""
        return np.roll(self._counts, rank, axis=1) * (DAY_S + seq)

    def frame(self, deployment: int, rank: int, seq: int) -> bytes:
        """The frame of a rank in its round ``seq``, from 1 on."""
        seconds = DAY_S + seq
        counts, tokens, steps = self.counts(rank, seq), STEPS * 80 * seconds, STEPS * seconds
        numbers = steps - STEPS + np.arange(STEPS)
        loads = np.roll(self._loads, rank, axis=2)
        made = wire.Frame(
            wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR),
            producer=wire.Producer(
                server=f"bench {deployment}",
                model="deepseek",
                dp_rank=rank,
                dp_size=self.ranks,
                ep_rank=rank,
                ep_size=self.ranks,
            ),
            epoch=10**18,
            seq=seq,
            captured_at_ns=10**18 + seconds * 10**9,
            layers=self._layers,
            counts=wire.pack_counts(counts),
            rows=wire.pack_counts(np.full(self.layers, tokens)),
            tokens=tokens,
            steps=steps,
            placement=self._placement,
        )
        made.decode_counts = wire.pack_counts(counts * 4 // 5)
        made.ep_slots, made.decode_ep_slots = map(self._by_rank, (counts, counts * 4 // 5))
        made.decode_rows = wire.pack_counts(np.full(self.layers, tokens * 4 // 5))
        made.decode_tokens, made.decode_steps = tokens * 4 // 5, steps
        made.step_loads = wire.pack_step_loads(steps - STEPS, steps, numbers, loads, 1)
        return wire.encode_frame(made)

    def _by_rank(self, counts: Any) -> bytes:
        return wire.pack_counts(counts.reshape(self.layers, self.ranks, -1).sum(2))

    def round(self, seq: int) -> Iterator[bytes]:
        """All frames of a second."""
        for deployment in range(self.deployments):
            for rank in range(self.ranks):
                yield self.frame(deployment, rank, seq)


class Cost:
    """Processor seconds, by what they went to; the first rounds don't count."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def add(self, what: str, way: Callable[[], Any], counts: bool) -> Any:
        """Do it, and add what it took."""
        began = time.process_time()
        found = way()
        if counts:
            took = time.process_time() - began
            self.spent[what] = self.spent.get(what, 0.0) + took / (ROUNDS - WARM)
        return found


def service(fleet: Fleet) -> dict[str, float]:
    """What moescope takes for a second of the fleet."""
    now, cost = [1e9], Cost()
    settings = Settings(
        history_mib=256, window_s=2.5, max_producers=4096, metrics_max_series=10_000_000, min_tokens=1
    )
    state = LiveState(settings, lambda: now[0])
    registry, writer = CollectorRegistry(), Writer()
    registry.register(RoutingCollector(state, settings, Instruments()))
    scraped, frame = 0, b""
    for seq in range(1, ROUNDS + 1):
        now[0] += 1
        for frame in fleet.round(seq):
            cost.add("ingest", lambda body=frame: state.ingest(wire.decode_frame(body)), seq > WARM)
        texts = cost.add("scrape", lambda: expose(registry, writer, [negotiate("", "")]), seq > WARM)
        scraped = sum(map(len, texts.values()))
    joins = state.joins(("bench 0", "deepseek"))
    assert joins[0].pending == 0, joins
    kept = encode_totals(state.totals(("bench 0", "deepseek"))[0].span.last)
    return {
        "ingest": cost.spent["ingest"],
        "scrape": cost.spent["scrape"],
        "scraped_bytes": float(scraped),
        "frame_bytes": len(frame),
        "snapshot_bytes": len(kept),
    }


def otherwise(fleet: Fleet) -> dict[str, float]:
    """What JSON and the client library take for it: no joins, no history, no deduplication."""
    cost, sums = Cost(), {}
    registry = CollectorRegistry()
    labels = ("server", "model", "layer", "ep_rank", "phase")
    slots = Counter("slots", "Slots.", labels, registry=registry)
    owner = np.arange(EXPERTS) * fleet.ranks // EXPERTS
    for seq in range(1, ROUNDS + 1):
        for deployment in range(fleet.deployments):
            for rank in range(fleet.ranks):
                counts = fleet.counts(rank, seq)
                told = {"server": f"bench {deployment}", "rank": rank, "counts": counts.tolist()}
                told["decode"] = (counts * 4 // 5).tolist()
                body = json.dumps(told).encode()

                def take(body: bytes = body) -> None:
                    read = json.loads(body)
                    key = read["server"], read["rank"]
                    sums[key] = np.array(read["counts"]), np.array(read["decode"])

                cost.add("ingest", take, seq > WARM)

        def scrape() -> int:
            slots.clear()
            for deployment in range(fleet.deployments):
                server = f"bench {deployment}"
                both = [sums[server, rank] for rank in range(fleet.ranks)]
                total, decode = (np.sum([one[half] for one in both], axis=0) for half in (0, 1))
                for phase, counts in (("decode", decode), ("prefill", total - decode)):
                    of_rank = np.zeros((fleet.layers, fleet.ranks), np.int64)
                    np.add.at(of_rank, (slice(None), owner), counts)
                    for layer, row in enumerate(of_rank.tolist()):
                        for rank, value in enumerate(row):
                            slots.labels(server, "deepseek", str(layer), str(rank), phase).inc(value)
            return len(generate_latest(registry))

        scraped = cost.add("scrape", scrape, seq > WARM)
    return {"ingest": cost.spent["ingest"], "scrape": cost.spent["scrape"], "scraped_bytes": float(scraped)}


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The slope of log(cost) against log(size)."""
    slope, _ = np.polyfit(np.log(sizes), np.log(costs), 1)
    return round(float(slope), 2)


def main() -> None:
    """Print the rows and the exponents, and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"results file (default: {RESULTS.name})")
    parser.add_argument("--no-results", action="store_true", help="write none")
    parser.add_argument("--row", nargs=4, metavar=("WAY", "N", "RANKS", "LAYERS"), help="one row, as JSON")
    options = parser.parse_args()
    if options.row:
        way, *shape = options.row
        found = {"service": service, "otherwise": otherwise}[way](Fleet(*map(int, shape)))
        found["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    rows, exponents = [], {}
    for kind in options.kinds:
        mine = [row(kind, *shape) for shape in KINDS[kind]]
        rows += mine
        sizes = [one["layers"] if kind.startswith("layers") else one["ranks"] for one in mine]
        exponents[kind] = {
            what: exponent(sizes, [one[what] for one in mine]) for what in ("ingest", "scrape")
        }
        print(f"{kind}: exponents {exponents[kind]}", flush=True)
    if not options.no_results:
        document = json.dumps({"exponents": exponents, "rows": rows}).encode()
        options.out.write_bytes(msgspec.json.format(document, indent=1) + b"\n")


def row(kind: str, deployments: int, ranks: int, layers: int) -> dict[str, Any]:
    """A row of the results, printed too."""
    of = {way: measured(way, deployments, ranks, layers) for way in ("service", "otherwise")}
    mine, others = of["service"], of["otherwise"]
    found = {
        "kind": kind,
        "ranks": deployments * ranks,
        "layers": layers,
        "ingest": round(mine["ingest"], 4),
        "scrape": round(mine["scrape"], 4),
        "mib": round(mine["mib"]),
        "frame_bytes": mine["frame_bytes"],
        "snapshot_bytes": mine["snapshot_bytes"],
        "scraped_bytes": round(mine["scraped_bytes"]),
        "otherwise_ingest": round(others["ingest"], 4),
        "otherwise_scrape": round(others["scrape"], 4),
        "otherwise_mib": round(others["mib"]),
        "ingest_ratio": round(others["ingest"] / mine["ingest"], 2),
        "scrape_ratio": round(
            others["scrape"] / others["scraped_bytes"] / (mine["scrape"] / mine["scraped_bytes"]), 1
        ),
    }
    print("  ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def measured(way: str, *shape: int) -> dict[str, float]:
    """A row in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--row", way, *map(str, shape)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(out.stdout)
    return found


if __name__ == "__main__":
    main()
