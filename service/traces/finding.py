"""What the answer to an id may be joined from: found in the store, but not read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.interface import Absence, Store
from moescope.service.store.records import TracedRequest, TraceQuery
from moescope.service.traces.belonging import MAX_NAMED, SeveralError, ended_well, narrowed, newest_last
from moescope.service.traces.extent import Extent
from moescope.service.traces.missing import NOT_KEPT, TOO_MANY
from moescope.service.traces.references import TakenOverBy
from moescope.service.traces.sources import Source, shapes_of

MAX_FOUND: Final = 256
"""How many traces an id may find, at most, to choose from."""
MAX_PARTS: Final = 32
"""How many of them are joined, at most."""
MAX_REFERENCES: Final = 256
"""How many other requests' traces are looked for, at most, to fill what a cache had."""
_PLANNING: Final = 4
"""Planning takes so many times the memory of the runs: spans, and what makes them, beside the runs."""
_ENTRY: Final = 512  # bytes of an entry of what was taken over, as objects and as spans
_COMPARING: Final = 8 << 20  # bytes that a comparison of two traces takes, see `agreement`


@dataclass(frozen=True, slots=True)
class Found:
    """All that may be joined.

    Attributes:
        parts: the traces that the id found, those first that are most likely the main one.
        references: the number of a request and vLLM's internal id of another one, whose computation its KV
            cache had, to that one's trace, or to why there is none (see `missing`).
        asked: the layers that were asked for; None: all.
        absent: why further traces of the id are not here, as far as the store remembers; None: it knows of
            none.
    """

    parts: tuple[Source, ...]
    references: Mapping[tuple[int, str], Source | str]
    asked: frozenset[int] | None = None
    absent: Absence | None = None

    @property
    def sources(self) -> list[Source]:
        """All of them, each once."""
        several = (*self.parts, *(item for item in self.references.values() if isinstance(item, Source)))
        return list({source.request.number: source for source in several}.values())

    @property
    def layers(self) -> dict[int, MoeLayer]:
        """Their layers; where they contradict each other, the first part is believed."""
        return shapes_of(self.sources)

    @property
    def wanted(self) -> list[int]:
        """Those of their layers that the answer has, rising."""
        workers = (worker for source in self.sources for worker in source.wanted)
        return sorted({layer.layer for worker in workers for layer in worker.layers})

    @property
    def may_lack_layers(self) -> bool:
        """Whether the model may have layers, among those asked for, that no trace here has.

        A trace without a lost pipeline stage has all that there are.
        """
        unknown = self.asked is None or not self.asked <= set(self.layers)
        return unknown and all(source.request.missing_stages for source in self.sources)

    @property
    def extent(self) -> Extent:
        """How large the joined routing is at most; some of its layers must be wanted.

        What planning takes is in ``reading``.
        """
        sources = self.sources
        extent = Extent.of([worker for source in sources for worker in source.wanted])
        runs = sum(worker.runs_bytes for source in sources for worker in source.workers)
        entries = sum(len(part.request.taken_over) for part in self.parts)
        more = _PLANNING * runs + _ENTRY * entries + _COMPARING
        return replace(extent.grown_to(extent.layers), reading=extent.reading + more)


def find(
    store: Store,
    name: str,
    among: TraceQuery,
    positions: Int64Array,
    sample: int | None,
    layers: Collection[int] | None,
) -> Found | None:
    """What may be joined for an id; None: nothing has it.

    Args:
        store: where to look.
        name: the id, any that finds a request.
        among: bounds whose traces are looked at.
        positions: those wanted, as spans.
        sample: the wanted one of several samples.
        layers: the layers wanted; None: all.

    Raises:
        SeveralError: the id finds requests that don't belong together.
        LookupError: none is of the sample.
        StoreError: the store can't be read.
    """
    found = store.traced_requests(replace(among, name=name, limit=MAX_FOUND + 1, taken_over=False))
    if not found:
        return None
    if len(found) > MAX_FOUND:
        raise SeveralError(
            f"More than {MAX_FOUND} traces have it. Ask by vLLM's internal id, which GET /v1/traces lists."
        )
    chosen = narrowed(found, name, sample)
    if len(chosen) > MAX_PARTS:
        raise SeveralError(
            f"{len(chosen)} traces have it, of which {MAX_PARTS} can be joined at most. Choose some by "
            "server, or ask by vLLM's internal id: "
            f"{', '.join(item.request_id for item in chosen[:MAX_NAMED])}, and more."
        )
    chosen = [item for short in chosen for item in _with_references(store, name, among, short.number)]
    chosen.sort(key=_likely_main, reverse=True)
    sources = {item.number: _source(store, item, layers) for item in chosen}
    chosen = [item for item in chosen if sources[item.number].workers]  # others were removed just now
    if not chosen:
        return None
    references: dict[tuple[int, str], Source | str] = {}
    looked_for: set[tuple[str, str, int, str]] = set()
    for item in chosen:
        for request_id in TakenOverBy.of(item, positions).computed_by:
            looked_for.add((item.server, item.model, item.dp_rank, request_id))
            known = len(looked_for) <= MAX_REFERENCES
            references[item.number, request_id] = (
                _reference(store, item, request_id, sources, layers) if known else TOO_MANY
            )
    parts = tuple(sources[item.number] for item in chosen)
    wanted = None if layers is None else frozenset(layers)
    return Found(parts, references, wanted, store.why_absent(name))


def _with_references(store: Store, name: str, among: TraceQuery, number: int) -> list[TracedRequest]:
    """The request of a number, with what it took over; none: it was removed just now."""
    query = replace(among, name=name, before=number + 1, limit=1)
    return [item for item in store.traced_requests(query) if item.number == number]


def _likely_main(item: TracedRequest) -> tuple[bool, bool, tuple[float, int]]:
    """As `main_of` chooses, but without reading where a request ended: preemptions may mislead it."""
    return item.tokens + item.cached_tokens > item.prompt_tokens, ended_well(item), newest_last(item)


def _reference(
    store: Store,
    item: TracedRequest,
    request_id: str,
    sources: dict[int, Source],
    layers: Collection[int] | None,
) -> Source | str:
    """The trace of the request of an id whose computation another one had; or why there is none.

    Where ids come again it is the newest that had begun before the other one ended.
    """
    query = TraceQuery(
        server=item.server,
        model=item.model,
        dp_rank=item.dp_rank,
        name=request_id,
        limit=MAX_FOUND,
        taken_over=False,
    )
    for other in store.traced_requests(query):
        if other.request_id == request_id and other.started_at <= item.ended_at:
            if other.number not in sources:
                sources[other.number] = _source(store, other, layers)
            if sources[other.number].workers:
                return sources[other.number]
    why = store.why_absent(request_id)
    if why == "incomplete" and store.traced_requests(TraceQuery(name=request_id, limit=1, taken_over=False)):
        return NOT_KEPT  # the store means another one of this id
    return why or NOT_KEPT


def _source(store: Store, item: TracedRequest, layers: Collection[int] | None) -> Source:
    workers = store.traces(item.number, None)
    wanted = workers if layers is None else store.traces(item.number, layers)
    return Source(item, workers, wanted)
