"""What is written to a store and read back: immutable values, the same for every engine."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args, get_type_hints

import msgspec

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TakenOver, TracePart
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.totals import Totals

Key = tuple[str, str, int, int, int]
"""``Producer.key``: (server, model, dp_rank, pp_rank, tp_rank)."""
PLACEMENT: Final = "placement"
"""The kind of documents that tell where a producer's experts are. They have its name (:func:`name_of`) and go
when it does."""


_OUTCOMES: Final = frozenset(get_args(get_type_hints(TracePart)["outcome"]))
_END_MS: Final = 253_402_300_800_000
"""The year 10,000: no calendar goes on."""
_encoder = msgspec.msgpack.Encoder()
_key_decoder = msgspec.json.Decoder(Key)
_taken_over_decoder = msgspec.msgpack.Decoder(tuple[TakenOver, ...])


class StoreError(Exception):
    """The store can't be read or written; the message says which one, why, and what to do."""


class StoreAwayError(StoreError):
    """The engine does not answer, so that whatever is asked of it next will not be answered either."""


class DamagedError(StoreError):
    """Something that was asked for can't be read; all else can."""


class UnkeepableError(StoreError):
    """Something that can't be kept whatever the state of the store; others can."""


@dataclass(frozen=True, slots=True)
class Posting:
    """An account after a frame; it replaces the account's earlier one and adds to its history.

    Attributes:
        key: whose account.
        birth: when its counting began, seconds of Unix time on the service's clock.
        at: when the totals were true, in the same units; never before that of an earlier posting.
        account: the account with all epochs that are remembered.
        began_again: the model has another shape than before: its history goes.
    """

    key: Key
    birth: float
    at: float
    account: AccountState
    began_again: bool = False


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A producer that is no longer kept; its account and its history go, as far as they are known.

    Where its experts are (:data:`PLACEMENT`) goes with its last account.

    Where several services share a store, another may have kept a newer frame meanwhile, or one of another
    start: that stays.

    Attributes:
        key: who.
        lives: epoch and highest ``seq`` of the starts that go.
        until: when that was, seconds of Unix time.
    """

    key: Key
    lives: tuple[tuple[int, int], ...] = ()
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class StoredTotals:
    """Totals that were true at ``at``, seconds of Unix time."""

    at: float
    totals: Totals


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store holds now: snapshots of totals, traced requests, and bytes on disk."""

    snapshots: int
    traces: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ArrivedPart:
    """A checked part of a trace; ``at`` is when it came, seconds of Unix time on the service's clock."""

    part: TracePart
    at: float


@dataclass(frozen=True, slots=True)
class TraceShape:
    """What all parts of one trace have in common, or they can't be put together."""

    parts: int
    id_bytes: int
    layers: tuple[MoeLayer, ...]

    @classmethod
    def of(cls, part: TracePart) -> TraceShape:
        """The shape that a part says its trace has."""
        return cls(part.parts, part.id_bytes, tuple(part.layers))

    def check(self, part: TracePart) -> None:
        """A part is of this shape.

        Raises:
            RefusedError: names the field that differs, and both values.
        """
        other = TraceShape.of(part)
        for name in ("parts", "id_bytes"):
            if getattr(self, name) != getattr(other, name):
                raise _contradicts(part, name, getattr(self, name), getattr(other, name))
        if self.layers != other.layers:
            at = next(
                (i for i, (a, b) in enumerate(zip(self.layers, other.layers, strict=False)) if a != b),
                min(len(self.layers), len(other.layers)),
            )
            old, new = (_shown(layers[at : at + 1]) for layers in (self.layers, other.layers))
            raise _contradicts(part, f"layers[{at}]", old, new)


def _shown(layers: tuple[MoeLayer, ...]) -> str:
    if not layers:
        return "no more layer"
    [layer] = layers
    return f"layer {layer.layer} of {layer.num_experts} experts, top-k {layer.top_k}"


def _contradicts(part: TracePart, name: str, old: object, new: object) -> RefusedError:
    return RefusedError(
        "contradicts",
        f"{name}: {new}, but earlier parts of trace {part.trace} of epoch {part.epoch} said {old}; "
        "all parts of a trace have the same",
    )


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """Which traces to list; None is any.

    ``start`` and ``end`` bound when a trace was stored, seconds of Unix time; ``expert`` needs ``layer``;
    ``pool``: only requests of deployments that were of this pool then.
    ``before`` is the number of the last trace on the page before. ``weights_version``: that version of the
    weights computed some of its tokens. ``taken_over``: whether the requests found have theirs; it may be
    long, so lists do without. ``lora``: only requests of this adapter; empty: only those of none that is
    known. ``numbers``: only requests with one of these numbers.
    """

    server: str | None = None
    model: str | None = None
    dp_rank: int | None = None
    name: str | None = None
    start: float | None = None
    end: float | None = None
    min_tokens: int = 1
    layer: int | None = None
    expert: int | None = None
    before: int | None = None
    limit: int = 100
    weights_version: int | None = None
    lora: str | None = None
    pool: str | None = None
    numbers: tuple[int, ...] | None = None
    taken_over: bool = True


def life_of(part: TracePart) -> int:
    """Which of the requests of one deployment that have one id a part is of.

    A request's id may come again: vLLM is started anew, or is one that adds no random suffix to the ids that
    clients give. The worker's epoch and the number of the trace tell the one from the other. Several workers
    of a DP rank have neither in common, but the number of the request's first step. 0: it isn't told.
    """
    who = part.producer
    if who.tp_size == who.pp_size == 1:
        return min(part.epoch + part.trace, (1 << 63) - 1)
    return part.started_step + 1 if part.started_step < (1 << 63) - 1 else 0


def pack_taken_over(taken_over: Sequence[TakenOver]) -> bytes:
    """References as every engine keeps them: msgpack; none: no bytes."""
    return _encoder.encode(taken_over) if taken_over else b""


def unpack_taken_over(data: bytes) -> tuple[TakenOver, ...]:
    """Stored references back to what the worker told.

    Raises:
        ValueError: they are damaged.
    """
    try:
        return _taken_over_decoder.decode(data) if data else ()
    except msgspec.DecodeError as error:
        raise ValueError(f"damaged references of a trace: {error}") from error


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """A request with a complete trace in at least one worker.

    An id that comes again is another request (see :func:`life_of`).

    Attributes:
        number: rises with each request that is stored.
        names: vLLM's internal id, and those by which a client knows it.
        tokens: tokens computed for it, those that were computed again included.
        role, pool: of its deployment, as in ``Producer``.
        lora, finish_reason, taken_over: see ``TracePart``; empty where the store doesn't have them.
        accepted_drafts, rejected_drafts: see ``TracePart``.
        missing_stages: of how many pipeline stages no worker's trace is complete.
        missing_tokens: how many tokens the workers of the other stages computed that no complete trace of
            theirs has. 0 also where the workers don't tell it (before wire minor 4).
    """

    number: int
    server: str
    model: str
    dp_rank: int
    request_id: str
    names: tuple[str, ...]
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    started_at: float
    ended_at: float
    stored_at: float
    tokens: int
    role: str = ""
    pool: str = ""
    lora: str = ""
    finish_reason: str = ""
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    taken_over: tuple[TakenOver, ...] = ()
    missing_stages: int = 0
    missing_tokens: int = 0

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> TracedRequest:
        """From these fields in their order: times in milliseconds, names in any order, references as stored.

        Raises:
            ValueError: something in it can't be true.
        """
        number, server, model, dp_rank, request_id, names, outcome, prompt, cached, preemptions, *rest = row
        started_ms, ended_ms, stored_ms, tokens, role, pool, lora, reason, *rest = rest
        accepted, rejected, taken_over, missing_stages, missing_tokens = rest
        if not names:
            raise ValueError("a damaged row: it has no name")
        if outcome not in _OUTCOMES:
            raise ValueError(f"a damaged row, or a newer moescope's: its outcome is {outcome[:20]!r}")
        told = (dp_rank, prompt, cached, preemptions, tokens, accepted, rejected)
        if min(*told, started_ms, ended_ms, stored_ms) < 0 or max(started_ms, ended_ms, stored_ms) >= _END_MS:
            raise ValueError("a damaged row: it has counts or times that can't be true")
        return cls(
            number=number,
            server=server,
            model=model,
            dp_rank=dp_rank,
            request_id=request_id,
            names=tuple(sorted(names, key=lambda name: (-len(name), name))),
            outcome=outcome,
            prompt_tokens=prompt,
            cached_tokens=cached,
            preemptions=preemptions,
            started_at=started_ms / 1000,
            ended_at=ended_ms / 1000,
            stored_at=stored_ms / 1000,
            tokens=tokens,
            role=role,
            pool=pool,
            lora=lora,
            finish_reason=reason,
            accepted_drafts=accepted,
            rejected_drafts=rejected,
            taken_over=unpack_taken_over(taken_over),
            missing_stages=missing_stages,
            missing_tokens=missing_tokens,
        )


@dataclass(frozen=True, slots=True)
class Document:
    """Something small that is kept under a name until it is removed, such as a baseline.

    Attributes:
        kind: what it is, such as ``baseline``.
        name: unique within the kind; a later one of the same name replaces it.
        content: as its owner encodes it; None removes it.
    """

    kind: str
    name: str
    content: bytes | None


def name_of(key: Key) -> str:
    """The name of the documents about a producer."""
    return json.dumps(key)


def key_in(name: str) -> Key | None:
    """The producer that a document with this name is about; None: it is no name of one."""
    try:
        return _key_decoder.decode(name)
    except msgspec.DecodeError:
        return None


Record = Posting | Forgotten | ArrivedPart | Document
