"""Bodies from numbers: every size that the schema has, so that a search can change one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from devkit.soak.costly import EPOCH
from moescope.capture import wire
from moescope.capture.wire.traces import (
    MAX_PARTS,
    MAX_RUNS,
    TRACE_MAJOR,
    TRACE_MINOR,
    Run,
    TracePart,
    encode_part,
)

Genes = dict[str, int]
"""Sizes by name; of each the schema's bound, or what fits into a body, is in `FRAME` or `TRACE`."""

FRAME: Final[Mapping[str, int]] = {
    "layers": wire.MAX_LAYERS,
    "experts": wire.MAX_EXPERTS,
    "top_k": wire.MAX_EXPERTS,
    "dp_size": wire.MAX_RANKS,
    "tp_size": wire.MAX_RANKS,
    "ep_size": wire.MAX_RANKS,
    "uncovered": wire.MAX_LAYERS,
    "absent": wire.MAX_LAYERS,
    "reason": 1024,
    "tables": wire.MAX_LAYERS,
    "copies": 1 << 16,
    "steps": 1 << 16,
    "span": 1 << 16,
    "first": 1 << 20,
    "parts": 255,
    "width": 3,
    "drops": 64,
    "slots": 1 << 20,
    "decode": 1,
    "ep_slots": 1,
    "jump": 1 << 20,
}
TRACE: Final[Mapping[str, int]] = {
    "layers": wire.MAX_LAYERS,
    "experts": wire.MAX_EXPERTS,
    "top_k": wire.MAX_EXPERTS,
    "runs": MAX_RUNS,
    "count": 1 << 16,
    "gap": 1 << 22,
    "parts": MAX_PARTS,
    "names": 8,
    "width": 2,
    "steps": 1,
}
MOST_BYTES: Final = 4 << 20
"""Of a body that is made; larger ones are tried by hand (`costly.py`)."""


def random_genes(bounds: Mapping[str, int], rng: random.Random) -> Genes:
    """Sizes of any order of magnitude; about half of them as small as they can be."""
    return {name: _size(most, rng) for name, most in bounds.items()}


def changed(genes: Genes, bounds: Mapping[str, int], rng: random.Random) -> Genes:
    """Neighbouring genes: one to three sizes are others, or twice or half of what they were."""
    found = dict(genes)
    for name in rng.sample(sorted(bounds), rng.randint(1, 3)):
        kind = rng.randrange(3)
        step = found[name] * 2 if kind == 0 else found[name] // 2 if kind == 1 else _size(bounds[name], rng)
        found[name] = max(0, min(bounds[name], step))
    return found


def crossed(one: Genes, other: Genes, rng: random.Random) -> Genes:
    """Each size of one of two."""
    return {name: rng.choice((one, other))[name] for name in one}


def _size(most: int, rng: random.Random) -> int:
    return rng.choice((0, 1, most, min(most, int(2 ** rng.uniform(0, most.bit_length())))))


def frame_of(genes: Genes, seq: int) -> bytes | None:
    """The frame with these sizes, the ``seq``-th of its worker; None: it would be too large."""
    layers, experts, ranks = genes["layers"], max(1, genes["experts"]), max(1, genes["ep_size"])
    entries, width = genes["steps"], (1, 2, 4)[genes["width"] % 3]
    sizes = (
        8 * layers * experts * (1 + genes["decode"]),
        genes["ep_slots"] * 8 * layers * ranks,
        entries * (layers * ranks * width + 5),
        4 * genes["tables"] * genes["copies"],
        (genes["uncovered"] + genes["absent"] + genes["drops"]) * (genes["reason"] + 8),
    )
    if sum(sizes) > MOST_BYTES:
        return None
    filled = min(seq * genes["slots"], 2**52 // max(1, layers * experts))
    counts = np.full(layers * experts, filled, "<i8").tobytes()
    fields: dict[str, Any] = {}
    if genes["decode"]:
        fields |= {"decode_counts": counts, "decode_rows": bytes(8 * layers)}
    if genes["ep_slots"]:
        fields["ep_slots"] = bytes(8 * layers * ranks)
    if genes["tables"]:
        fields["placement"] = _placement(genes, layers, experts, ranks, seq)
    if genes["span"]:
        fields["step_loads"] = _steps(genes, layers, ranks, width, seq)
    reason = "\U0001f600" * (genes["reason"] // 4) + "x" * (genes["reason"] % 4)
    others = iter(range(layers, layers + genes["uncovered"] + genes["absent"]))
    return wire.encode_frame(
        wire.Frame(
            wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR),
            producer=wire.Producer(
                server="hunt",
                model="m",
                dp_rank=0,
                dp_size=max(1, genes["dp_size"]),
                tp_size=max(1, genes["tp_size"]),
                ep_size=ranks,
            ),
            epoch=EPOCH,
            seq=seq,
            captured_at_ns=EPOCH + seq * 10**9,
            layers=[wire.MoeLayer(i, experts, min(experts, max(1, genes["top_k"]))) for i in range(layers)],
            uncovered=[wire.UncoveredLayer(next(others), reason) for _ in range(genes["uncovered"])],
            absent=[wire.UncoveredLayer(next(others), reason) for _ in range(genes["absent"])],
            counts=counts,
            rows=bytes(8 * layers),
            tokens=filled,
            steps=filled,
            drops={f"{i}{reason[:200]}": i for i in range(genes["drops"])},
            unavailable={f"{i}": reason for i in range(genes["drops"])},
            **fields,
        )
    )


def _placement(genes: Genes, layers: int, experts: int, ranks: int, seq: int) -> wire.Placement:
    places, tables = np.arange(genes["copies"]), genes["tables"]
    owners = wire.pack_ids(places // experts % ranks)
    made = [wire.PlacementTable(wire.pack_ids((places + i + seq) % experts), owners) for i in range(tables)]
    return wire.Placement(version=seq, tables=made, table_of_layer=[i % tables for i in range(layers)])


def _steps(genes: Genes, layers: int, ranks: int, width: Any, seq: int) -> wire.StepLoads:
    entries, parts = genes["steps"], genes["parts"]
    first = genes["first"] + seq * genes["jump"]
    return wire.StepLoads(
        first=first,
        end=first + genes["span"],
        steps=(np.arange(entries, dtype="<u4") // max(1, parts)).tobytes(),
        width=width,
        loads=bytes(entries * layers * ranks * width),
        microbatches=(np.arange(entries) % parts).astype(np.uint8).tobytes() if parts else b"",
    )


def part_of(genes: Genes, number: int) -> bytes | None:
    """The part of a trace with these sizes, the first of the ``number``-th trace; None: too large."""
    layers, experts = max(1, genes["layers"]), max(1, genes["experts"])
    runs, count, width = max(1, genes["runs"]), max(1, genes["count"]), max(1, genes["width"])
    top_k, tokens = max(1, genes["top_k"]), max(1, genes["runs"]) * max(1, genes["count"])
    if tokens * (layers * top_k * width + 8 * genes["steps"]) + 12 * runs > MOST_BYTES:
        return None
    return encode_part(
        TracePart(
            wire=(TRACE_MAJOR, TRACE_MINOR),
            producer=wire.Producer(server="hunt", model="m", dp_rank=0, dp_size=1),
            epoch=EPOCH,
            trace=number,
            part=0,
            parts=max(1, genes["parts"]),
            request_id=f"x{number}",
            client_ids=[f"{number}/{i}" + "n" * 200 for i in range(genes["names"])],
            outcome="ended",
            prompt_tokens=1,
            cached_tokens=0,
            preemptions=0,
            started_at_ns=EPOCH,
            ended_at_ns=EPOCH,
            layers=[wire.MoeLayer(i, experts, top_k) for i in range(layers)],
            runs=[Run(i * genes["gap"], count) for i in range(runs)],
            id_bytes=width,  # type: ignore[arg-type]
            experts=[bytes(tokens * top_k * width)] * layers,
            steps=bytes(8 * tokens * genes["steps"]),
        )
    )


Body = Callable[[Genes, int], bytes | None]
