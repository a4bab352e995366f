"""Parts of traces as rows of ClickHouse: a header for each part, a row for each of its layers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT, ExpertArray, TracePart
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.records import ArrivedPart, life_of, pack_taken_over
from moescope.service.store.steps import encode_steps

REQUEST: Final = ("server", "model", "dp_rank", "request_id")
TRACE: Final = (*REQUEST, "pp_rank", "tp_rank", "epoch", "number")
PART_COLUMNS: Final = (
    *TRACE,
    *("part", "parts", "names", "outcome", "prompt_tokens", "cached_tokens", "preemptions"),
    *("started_ms", "ended_ms", "stored_ms", "come", "earlier", "tokens", "runs", "weights_version"),
    *("role", "pool", "lora", "finish_reason", "accepted_drafts", "rejected_drafts", "taken_over"),
    *("steps", "life", "pp_size", "started_step", "computed_tokens"),
)
ROUTING_COLUMNS: Final = (
    *TRACE,
    *("part", "started_ms", "layer", "num_experts", "top_k", "taken", "ids8", "ids16"),
)
MOST: Final = (1 << 63) - 1
_MS_BITS, _OWN_BITS = 21, 13

_encoder = msgspec.msgpack.Encoder()


class Numbers:
    """Numbers that rise with each part and that no other service gives: ms, a count, its own bits.

    Args:
        own: its own bits; None: any.
        last: the number that was given last.
    """

    def __init__(self, own: int | None = None, last: int = 0) -> None:
        self.own = secrets.randbits(_OWN_BITS) if own is None else own
        self.last = last

    def next(self, stored_ms: int) -> int:
        """The number of a part that is stored at this millisecond of Unix time."""
        self.last = max(self.last + (1 << _OWN_BITS), (stored_ms << _MS_BITS) + self.own)
        return self.last


def rows_of(parts: Sequence[ArrivedPart], numbers: Numbers) -> tuple[list[list[Value]], list[list[Value]]]:
    """Rows of ``routing`` and of ``trace_part``."""
    routing: list[list[Value]] = []
    headers: list[list[Value]] = []
    for arrived in parts:
        part, stored_ms = arrived.part, round(arrived.at * 1000)
        trace, started_ms, come = trace_of(part), part.started_at_ns // 1_000_000, numbers.next(stored_ms)
        headers.append(
            [
                *trace,
                *(part.part, part.parts, list(dict.fromkeys([part.request_id, *part.client_ids]))),
                *(part.outcome, part.prompt_tokens, part.cached_tokens, part.preemptions),
                *(started_ms, part.ended_at_ns // 1_000_000, stored_ms, come, MOST - come),
                *(part.tokens, _encoder.encode(part.runs), part.weights_version),
                *(part.producer.role, part.producer.pool, part.lora, part.finish_reason),
                *(part.accepted_drafts, part.rejected_drafts),
                pack_taken_over([] if part.part else part.taken_over),
                *(encode_steps(part.steps) or b"", life_of(part), part.producer.pp_size),
                *(part.started_step, part.computed_tokens),
            ]
        )
        ids = [part.ids_of(i) for i in range(len(part.layers))]
        routing += routing_rows(trace, part.part, started_ms, part.layers, ids)
    return routing, headers


def routing_rows(
    trace: Sequence[Value],
    part: int,
    started_ms: int,
    layers: Sequence[MoeLayer],
    ids: Sequence[ExpertArray],
) -> list[list[Value]]:
    """Rows of ``routing`` of a part.

    Args:
        trace: the values of :data:`TRACE`.
        part: its number.
        started_ms: when the trace's request began, milliseconds of Unix time.
        layers: its layers.
        ids: logical experts of each layer, uint8 or uint16 [tokens, top_k].
    """
    nothing8, nothing16 = np.empty(0, np.uint8), np.empty(0, np.uint16)
    rows: list[list[Value]] = []
    for layer, chosen in zip(layers, ids, strict=True):
        taken = np.flatnonzero(np.bincount(chosen.reshape(-1), minlength=1)).astype(np.uint16)
        is_narrow = chosen.dtype.itemsize == 1
        both = (chosen, nothing16) if is_narrow else (nothing8, chosen)
        taken = taken if is_narrow else taken[taken != NO_EXPERT]
        shape = (layer.layer, layer.num_experts, layer.top_k)
        rows.append([*trace, part, started_ms, *shape, taken, *both])
    return rows


def trace_of(part: TracePart) -> list[Value]:
    """The values of :data:`TRACE`."""
    who = part.producer
    request: list[Value] = [who.server, who.model, who.dp_rank, part.request_id]
    return [*request, who.pp_rank, who.tp_rank, part.epoch, part.trace]
