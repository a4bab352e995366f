"""Parts of a folder's traces, as rows of ClickHouse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.clickhouse.trace_rows import MOST, PART_COLUMNS, TRACE, routing_rows
from moescope.service.store.codec import runs_of
from moescope.service.store.moving.source import Request, Source
from moescope.service.store.records import DamagedError, TracedRequest
from moescope.service.store.steps import read_steps

PART_KEY: Final = (*TRACE, "part")
"""What tells a part from all others."""
PartKey = tuple[Value, ...]
"""The values of :data:`PART_KEY`."""


@dataclass(frozen=True, slots=True)
class MovedPart:
    """A part of a trace.

    Attributes:
        header: columns of ``trace_part``, but for those that its number gives.
        layers: of its trace.
        ids: logical experts of each layer, uint8 or uint16 [tokens, top_k].
    """

    header: Mapping[str, Value]
    layers: tuple[MoeLayer, ...]
    ids: tuple[ExpertArray, ...]

    @property
    def trace(self) -> list[Value]:
        """The values of :data:`TRACE`."""
        return [self.header[name] for name in TRACE]

    @property
    def key(self) -> PartKey:
        """The values of :data:`PART_KEY`."""
        return tuple(self.header[name] for name in PART_KEY)

    @property
    def nbytes(self) -> int:
        """Bytes of the ids."""
        return sum(ids.nbytes for ids in self.ids)

    def header_row(self, come: int) -> list[Value]:
        """Its row of ``trace_part``; ``come`` is its number."""
        values = {**self.header, "come": come, "earlier": MOST - come}
        return [values[name] for name in PART_COLUMNS]

    def routing_rows(self) -> list[list[Value]]:
        """Its rows of ``routing``."""
        part, started_ms = self.header["part"], self.header["started_ms"]
        assert isinstance(part, int)
        assert isinstance(started_ms, int)
        return routing_rows(self.trace, part, started_ms, self.layers, self.ids)


def parts_of(source: Source, request: Request, trace: tuple[int, ...]) -> Iterator[MovedPart]:
    """The parts of one worker's trace that are kept, one after the other.

    Args:
        source: the folder.
        request: whose trace it is.
        trace: one of ``request.traces``.

    Raises:
        ValueError, DamagedError: it can't be read; parts before may have been given.
    """
    told, found = _told(request, trace), source.trace(request, trace[0])
    begin = 0
    for part, tokens, runs, weights_version, steps in source.parts(trace[0]):
        runs_of([runs], tokens)
        read_steps(steps, tokens, 0, tokens)
        ids = found.read(begin, begin + tokens)
        begin += tokens
        told |= {"part": part, "tokens": tokens, "runs": runs, "weights_version": weights_version}
        told |= {"steps": steps or b"", "taken_over": b"" if part else request.row[19]}
        yield MovedPart(dict(told), found.layers, ids)


def check_request(request: Request) -> None:
    """What is told of a request can be true.

    Raises:
        ValueError: it can't.
    """
    row = (*request.row[:5], request.names, *request.row[5:])
    TracedRequest.of_row(row)


def why_unreadable(source: Source, request: Request, trace: tuple[int, ...]) -> str | None:
    """Why a trace can't be read as a whole; None: it can. A part is in memory at a time."""
    try:
        for _ in parts_of(source, request, trace):
            pass
    except (ValueError, DamagedError) as error:
        return str(error)
    return None


def _told(request: Request, trace: tuple[int, ...]) -> dict[str, Value]:
    """Columns that are the same for all parts of a trace."""
    _, server, model, dp_rank, request_id, outcome, prompt, cached, preemptions, *rest = request.row
    started_ms, ended_ms, stored_ms, _, role, pool, lora, reason, accepted, rejected, *_ = rest
    _, pp_rank, tp_rank, epoch, number, parts, started_step, began_ms, over_ms, computed = trace
    names = sorted(request.names, key=lambda name: name != request_id)
    return {
        "server": server,
        "model": model,
        "dp_rank": dp_rank,
        "request_id": request_id,
        "pp_rank": pp_rank,
        "tp_rank": tp_rank,
        "epoch": epoch,
        "number": number,
        "parts": parts,
        "names": names,
        "outcome": outcome,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "preemptions": preemptions,
        # An earlier moescope kept these of the request only.
        "started_ms": began_ms or started_ms,
        "ended_ms": over_ms or ended_ms,
        "stored_ms": stored_ms,
        "role": role,
        "pool": pool,
        "lora": lora,
        "finish_reason": reason,
        "accepted_drafts": accepted,
        "rejected_drafts": rejected,
        "life": request.life,
        "pp_size": request.pp_size,
        "started_step": started_step,
        "computed_tokens": computed,
    }
