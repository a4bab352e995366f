"""Searches for small bodies that take much of the service: by evolution, within what the schema can say.

``python -m devkit.soak.hunt [--tries 4000] [--seed 1]`` prints the worst that it found. Sizes (`genes.py`)
are mutated and crossed, and what took most memory or time for a byte sent goes on.

A body may take `ALLOWANCE` bytes whatever its size, and `MOST_PER_BYTE` bytes for each byte beyond that. The
allowance is harmless: three threads decode and count, so bodies of many clients take it three times at most.
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from devkit.soak.gate import Options, Outcome
from devkit.soak.genes import FRAME, TRACE, Body, Genes, changed, crossed, frame_of, part_of, random_genes
from moescope.capture import wire
from moescope.capture.wire.traces import decode_part
from moescope.service.api.schemas import trace_formats
from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.traces.routing import TooManyPositionsError, put_together

ALLOWANCE: Final = 8 << 20
MOST_PER_BYTE: Final = 64.0
MOST_CPU_S: Final = 1.0
"""CPU time of any body, of those up to 4 MB that are tried."""
_POOL: Final = 24
_PIECES: Final = 4  # of a download that are looked at

Taken = tuple[float, int, int, str]
"""CPU seconds, bytes at most, bytes kept, and what became of it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one body took.

    Attributes:
        sent: its bytes.
        peak: bytes that were allocated at most meanwhile, without the body.
        kept: bytes that are still allocated afterwards.
        cpu_s: CPU time of its thread.
        verdict: ``accepted``, or why it was refused.
    """

    kind: str
    genes: Genes
    sent: int
    peak: int
    kept: int
    cpu_s: float
    verdict: str

    @property
    def per_byte(self) -> float:
        """Bytes of memory for each byte sent, beyond the allowance."""
        return max(0, self.peak - ALLOWANCE) / self.sent

    def told(self) -> str:
        """It in words, with the sizes that are not as small as they can be."""
        sizes = ", ".join(f"{name} {size}" for name, size in self.genes.items() if size > 1)
        return (
            f"{self.kind} of {self.sent:,} bytes: {self.per_byte:.0f} x beyond the allowance, peak "
            f"{self.peak / 2**20:.1f} MiB, kept {self.kept / 2**20:.2f} MiB, {self.cpu_s * 1e3:.0f} ms, "
            f"{self.verdict[:60]} ({sizes})"
        )


def hunt(tries: int, seed: int) -> list[Found]:
    """The bodies that took most, of frames and traces: by memory for a byte, by time, by what is kept."""
    with tempfile.TemporaryDirectory(prefix="moescope-hunt-") as folder:
        frames = _evolve("frame", FRAME, frame_of, _take_frames, tries, seed)
        traces = _evolve(
            "trace", TRACE, part_of, lambda bodies: _take_traces(bodies, Path(folder)), tries, seed
        )
    return frames + traces


def _evolve(
    kind: str,
    bounds: Mapping[str, int],
    body_of: Body,
    take: Callable[[list[bytes]], Taken],
    tries: int,
    seed: int,
) -> list[Found]:
    rng = random.Random(seed)  # noqa: S311 it need not be hard to guess
    scores: tuple[Callable[[Found], float], ...] = (
        lambda item: item.per_byte + item.peak / item.sent * 1e-3,
        lambda item: item.cpu_s / (item.sent + 4096),
        lambda item: item.kept / (item.sent + 4096),
        lambda item: item.cpu_s,
    )
    pools: list[list[Found]] = [[] for _ in scores]
    for turn in range(tries):
        if turn and not turn % 200:
            print(f"   {kind} {turn}: {max(item.per_byte for item in pools[0]):.0f} x", flush=True)
        pool = rng.choice(pools)
        if len(pool) < _POOL // 2 or rng.random() < 0.2:
            genes = random_genes(bounds, rng)
        elif rng.random() < 0.3:
            genes = crossed(rng.choice(pool).genes, rng.choice(pool).genes, rng)
        else:
            genes = changed(rng.choice(pool).genes, bounds, rng)
        bodies = [body_of(genes, number) for number in (1, 2)]
        made = [body for body in bodies if body is not None]
        if len(made) < len(bodies):
            continue
        cpu_s, peak, kept, verdict = take(made)
        item = Found(kind, genes, len(made[-1]), peak, kept, cpu_s, verdict)
        for score, of_score in zip(scores, pools, strict=True):
            of_score.append(item)
            of_score.sort(key=score, reverse=True)
            del of_score[_POOL:]
    return list({id(item): item for pool in pools for item in pool[:3]}.values())


def _measured(job: Callable[[], str]) -> Taken:
    gc.collect()
    tracemalloc.start()
    began = time.thread_time()
    try:
        verdict = job()
        cpu_s = time.thread_time() - began
        gc.collect()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return cpu_s, peak, kept, verdict


def _take_frames(bodies: list[bytes]) -> Taken:
    """What the second of two frames of a worker takes; memory is allocated for what changed, too."""
    state = LiveState(Settings(store=None, port=0), lambda: 1_700_000_100.0)

    def take(body: bytes) -> str:
        try:
            return state.ingest(wire.decode_frame(body)).value
        except (wire.WireError, RefusedError) as error:
            return str(error)

    first = _measured(lambda: take(bodies[0]))
    second = _measured(lambda: take(bodies[1]))
    return max(first[0], second[0]), max(first[1], second[1]), max(first[2], second[2]), second[3]


def _take_traces(bodies: list[bytes], folder: Path) -> Taken:
    """What a part takes to keep, and then to download."""
    place = folder / "store"
    store = SqliteStore(place, Retention())

    def take() -> str:
        try:
            part = decode_part(bodies[0])
        except wire.WireError as error:
            return str(error)
        store.save([ArrivedPart(part, 1_700_000_000.0)])
        for found in store.traced_requests(TraceQuery(limit=1)):
            try:
                pieces = trace_formats.as_raw(put_together(store.traces(found.number, None)))
            except TooManyPositionsError as error:
                return str(error)
            for _, _piece in zip(range(_PIECES), pieces, strict=False):
                pass
        return "accepted"

    try:
        return _measured(take)
    finally:
        store.close()
        shutil.rmtree(place)


def search(options: Options) -> Outcome:
    """The worst bodies that a search finds."""
    tries = 400 if options.quick else 6000
    found = hunt(tries, 1)
    for item in found:
        print(f"   {item.told()}")
    most = max(found, key=lambda item: item.per_byte)
    slowest = max(found, key=lambda item: item.cpu_s)
    keeper = max(found, key=lambda item: item.kept / item.sent if item.sent > 4096 else 0)
    return Outcome(
        most.per_byte <= MOST_PER_BYTE and slowest.cpu_s <= MOST_CPU_S,
        f"{2 * tries} bodies up to 4 MB tried. Most memory beyond {ALLOWANCE >> 20} MiB: {most.told()}. "
        f"Slowest: {slowest.told()}. Most kept: {keeper.told()}",
    )


def main() -> None:
    """Search, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tries", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for item in hunt(given.tries, given.seed):
        print(item.told())


if __name__ == "__main__":
    main()
