"""The most expensive requests that the limits accept, by hand; `hunt.py` searches for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from moescope.capture import wire
from moescope.capture.wire.traces import (
    MAX_RUNS,
    TRACE_CONTENT_TYPE,
    TRACE_MAJOR,
    TRACE_MINOR,
    Run,
    TracePart,
    encode_part,
)

EPOCH: Final = 1_700_000_000_000_000_000
STEPS: Final = 65_536

Make = Callable[[int], bytes]
"""From 1, 2, ... to a body; those of one kind follow each other, as of one worker or one request."""


@dataclass(frozen=True, slots=True)
class Costly:
    """A kind of body that takes much of the service.

    ``make`` gives the bodies; ``trace`` says that they are parts of traces, not frames.
    """

    name: str
    make: Make
    trace: bool = False

    @property
    def path(self) -> str:
        """Where it is sent."""
        return "/v1/traces" if self.trace else "/v1/ingest"

    @property
    def content_type(self) -> str:
        """Of its bodies."""
        return TRACE_CONTENT_TYPE if self.trace else wire.CONTENT_TYPE


def _producer(name: str, **sizes: int) -> wire.Producer:
    return wire.Producer(**{"server": name, "model": "costly", "dp_rank": 0, "dp_size": 1, **sizes})  # type: ignore[arg-type]


def _layers(count: int, experts: int, top_k: int = 1) -> list[wire.MoeLayer]:
    return [wire.MoeLayer(i, experts, top_k) for i in range(count)]


def _frame(name: str, seq: int, layers: list[wire.MoeLayer], ep_size: int = 1, **fields: Any) -> bytes:
    slots = sum(layer.num_experts for layer in layers)
    given = {
        "producer": _producer(name, ep_size=ep_size),
        # Of seq slots each: every number has changed since the frame before.
        "counts": np.full(slots, seq, "<i8").tobytes(),
        "rows": np.array([layer.num_experts * seq // layer.top_k for layer in layers], "<i8").tobytes(),
        "tokens": seq,
        "steps": seq,
        **fields,
    }
    return wire.encode_frame(
        wire.Frame(
            wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR),
            epoch=EPOCH,
            seq=seq,
            captured_at_ns=EPOCH + seq * 10**9,
            layers=layers,
            **given,
        )
    )


def _counts(seq: int) -> bytes:
    return _frame("counts", seq, _layers(511, 8192))


def _large_counts(seq: int) -> bytes:
    """Counts of five bytes each, which can't be compressed."""
    counts = np.random.default_rng(0).integers(0, 1 << 36, (511, 8192)) * seq
    rows = counts.sum(axis=1)
    return _frame(
        "large-counts",
        seq,
        _layers(511, 8192),
        counts=counts.astype("<i8").tobytes(),
        rows=rows.astype("<i8").tobytes(),
        tokens=int(rows.max()),
    )


def _phases(seq: int) -> bytes:
    layers = _layers(255, 8192)
    slots = 255 * 8192
    part = {"decode_counts": np.full(slots, seq // 2, "<i8").tobytes(), "decode_rows": bytes(8 * 255)}
    return _frame("phases", seq, layers, **part)


def _copies(name: str, layers: int, copies: int, experts: int, ranks: int, tables: int) -> Make:
    def make(seq: int) -> bytes:
        made = [
            wire.PlacementTable(
                wire.pack_ids((np.arange(copies) + i + seq) % experts),
                wire.pack_ids((np.arange(copies) // experts) % ranks),
            )
            for i in range(tables)
        ]
        placement = wire.Placement(
            version=seq, tables=made, table_of_layer=[i % tables for i in range(layers)]
        )
        return _frame(name, seq, _layers(layers, experts), ranks, placement=placement)

    return make


def _steps(name: str, layers: int, ranks: int, parts: int = 0, empty: bool = False) -> Make:
    def make(seq: int) -> bytes:
        entries = 0 if empty else STEPS
        steps = np.arange(entries, dtype="<u4") // max(1, parts)
        loads = wire.StepLoads(
            first=seq * STEPS,
            end=(seq + 1) * STEPS,
            steps=steps.tobytes(),
            width=1,
            loads=bytes(entries * layers * ranks),
            microbatches=(np.arange(entries) % parts).astype(np.uint8).tobytes() if parts else b"",
        )
        return _frame(name, seq, _layers(layers, 2), ranks, step_loads=loads)

    return make


def _ep_slots(seq: int) -> bytes:
    return _frame("ep-slots", seq, _layers(1024, 1), 256, ep_slots=bytes(8 * 1024 * 256))


def _cells(seq: int) -> bytes:
    return _frame("cells", seq, _layers(4, 1), producer=_producer("cells", dp_size=65_536))


def _words(seq: int) -> bytes:
    reasons = [wire.UncoveredLayer(i, "\U0001f600" * 1024) for i in range(1024)]
    words = {f"{i:02}" + "\U0001f600" * 254: "\U0001f600" * 1024 for i in range(64)}
    return _frame("words", seq, [], uncovered=reasons, unavailable=words)


def _part(
    name: str, number: int, layers: list[wire.MoeLayer], runs: list[Run], width: int, **fields: Any
) -> bytes:
    tokens = sum(run.count for run in runs)
    made = {
        "producer": _producer("traces"),
        "experts": [bytes(tokens * layer.top_k * width) for layer in layers],
        "client_ids": [f"{name}-{number}"],
        **fields,
    }
    return encode_part(
        TracePart(
            wire=(TRACE_MAJOR, TRACE_MINOR),
            epoch=EPOCH,
            trace=number,
            part=0,
            parts=1,
            request_id=f"{name}-{number}-x",
            outcome="ended",
            prompt_tokens=1,
            cached_tokens=0,
            preemptions=0,
            started_at_ns=EPOCH,
            ended_at_ns=EPOCH + 1,
            layers=layers,
            runs=runs,
            id_bytes=width,  # type: ignore[arg-type]
            **made,
        )
    )


def _long(number: int) -> bytes:
    """33 MB of ids: 65,536 tokens of 58 layers and top-8 are 30 MB."""
    return _part("long", number, _layers(58, 256, 8), [Run(0, 65_536)], 1)


def _runs(number: int) -> bytes:
    """As many runs as a part may have, of one token each, with gaps in between."""
    return _part("runs", number, _layers(1, 2), [Run(3 * i, 1) for i in range(MAX_RUNS)], 1)


def _runs_again(number: int) -> bytes:
    """The same position computed again and again."""
    return _part("again", number, _layers(1, 2), [Run(0, 1)] * MAX_RUNS, 1)


def _wide(number: int) -> bytes:
    """Few tokens of which each takes all experts of many layers."""
    return _part("wide", number, _layers(1024, 8192, 1024), [Run(0, 8)], 2)


BODIES: Final = (
    Costly("counts", _counts),
    Costly("large counts", _large_counts),
    Costly("phases", _phases),
    Costly("copies, one table", _copies("copies-a", 1, 1 << 20, 8192, 64, 1)),
    Costly("copies, 1,024 tables", _copies("copies-b", 1024, 1024, 512, 2, 1024)),
    Costly("copies of few experts", _copies("copies-c", 64, 16_384, 4, 4096, 1)),
    Costly("one-expert tables", _copies("copies-d", 1024, 1, 1, 256, 1024)),
    Costly("steps", _steps("steps-a", 1, 1)),
    Costly("steps x cells", _steps("steps-b", 8, 60)),
    Costly("microbatches", _steps("steps-c", 1, 1, parts=64)),
    Costly("idle steps", _steps("steps-d", 1024, 256, empty=True)),
    Costly("slots by EP rank", _ep_slots),
    Costly("DP ranks", _cells),
    Costly("words", _words),
    Costly("long trace", _long, trace=True),
    Costly("runs", _runs, trace=True),
    Costly("runs of one position", _runs_again, trace=True),
    Costly("wide trace", _wide, trace=True),
)


def trace_of(server: str, model: str, name: str, tokens: int, layers: int, experts: int) -> bytes:
    """A whole trace of a deployment, top-8, with random experts of at most 256."""
    rng = np.random.default_rng(tokens)
    ids = [rng.integers(0, experts, (tokens, 8), np.uint8).tobytes() for _ in range(layers)]
    shapes = [wire.MoeLayer(3 + i, experts, 8) for i in range(layers)]
    who = wire.Producer(server=server, model=model, dp_rank=0, dp_size=1)
    fields = {"producer": who, "experts": ids, "client_ids": [name]}
    return _part(name, tokens, shapes, [Run(0, tokens)], 1, **fields)
