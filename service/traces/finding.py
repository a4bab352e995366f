"""What the answer to an id may be joined from: found in the store, but not read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.interface import Store
from moescope.service.store.records import TracedRequest, TraceQuery
from moescope.service.traces.belonging import MAX_NAMED, SeveralError, ended_well, narrowed, newest_last
from moescope.service.traces.references import Owner, TakenOverBy, owner_of
from moescope.service.traces.routing import Extent
from moescope.service.traces.sources import Source, shapes_of

MAX_FOUND: Final = 256
"""How many traces an id may find, at most, to choose from; each may name `MAX_TAKEN_OVER` others."""
MAX_PARTS: Final = 32
"""How many of them are joined, at most."""
MAX_REFERENCES: Final = 256
"""How many other requests' traces are looked for, at most, to fill what a cache had."""
_PLANNING: Final = 4
"""Planning takes so many times the memory of the runs: spans, and what makes them, beside the runs."""
_COMPARING: Final = 8 << 20  # bytes that a comparison of two traces takes, see `agreement`


@dataclass(frozen=True, slots=True)
class Found:
    """All that may be joined.

    Attributes:
        parts: the traces that the id found, those first that are most likely the main one.
        references: whose request of which id to its trace, which fills what a cache had; None: there is none.
        not_looked_for: those beyond :data:`MAX_REFERENCES`.
    """

    parts: tuple[Source, ...]
    references: Mapping[tuple[Owner, str], Source | None]
    not_looked_for: frozenset[tuple[Owner, str]]

    @property
    def sources(self) -> list[Source]:
        """All of them, each once."""
        return [
            *self.parts,
            *(source for source in self.references.values() if source not in (None, *self.parts)),
        ]

    @property
    def layers(self) -> dict[int, MoeLayer]:
        """Their layers; where they contradict each other, the first part is believed."""
        return shapes_of(self.sources)

    @property
    def extent(self) -> Extent:
        """How large the joined routing is at most. What planning takes is in ``reading``."""
        sources = self.sources
        wanted = [worker for source in sources for worker in source.wanted]
        read_for_plan = sum(worker.runs_bytes for source in sources for worker in source.workers)
        extent = Extent.of(wanted)
        return replace(
            extent.grown_to(extent.layers),
            reading=extent.reading + _PLANNING * read_for_plan + _COMPARING,
        )


def find(
    store: Store,
    name: str,
    among: TraceQuery,
    wanted: Int64Array,
    sample: int | None,
    layers: Collection[int] | None,
) -> Found | None:
    """What may be joined for an id; None: nothing has it.

    Args:
        store: where to look.
        name: the id, any that finds a request.
        among: bounds whose traces are looked at.
        wanted: the positions wanted, as spans.
        sample: the wanted one of several samples.
        layers: the layers wanted; None: all.

    Raises:
        SeveralError: the id finds requests that don't belong together.
        LookupError: none is of the sample.
        StoreError: the store can't be read.
    """
    found = store.traced_requests(replace(among, name=name, limit=MAX_FOUND + 1))
    if not found:
        return None
    if len(found) > MAX_FOUND:
        raise SeveralError(
            f"More than {MAX_FOUND} traces have it. Ask by vLLM's internal id, which GET /v1/traces lists."
        )
    chosen = narrowed(found, name, sample)
    if len(chosen) > MAX_PARTS:
        raise SeveralError(
            f"{len(chosen)} traces have it, of which {MAX_PARTS} can be joined at most. Choose some by server, "
            f"or ask by vLLM's internal id: {', '.join(item.request_id for item in chosen[:MAX_NAMED])}, ..."
        )
    chosen.sort(key=_likely_main, reverse=True)
    parts = {(owner_of(item), item.request_id): _source(store, item, layers) for item in chosen}
    keys = dict.fromkeys(
        (owner_of(item), request_id)
        for item in chosen
        for request_id in TakenOverBy.of(item, wanted).computed_by
    )
    looked_for = list(keys)[:MAX_REFERENCES]
    references = {key: parts.get(key) or _reference(store, *key, layers) for key in looked_for}
    return Found(tuple(parts.values()), references, frozenset(keys) - frozenset(looked_for))


def _likely_main(item: TracedRequest) -> tuple[bool, bool, tuple[float, int]]:
    """As `main_of` chooses, but without reading where a request ended: preemptions may mislead it."""
    return item.tokens + item.cached_tokens > item.prompt_tokens, ended_well(item), newest_last(item)


def _reference(store: Store, owner: Owner, request_id: str, layers: Collection[int] | None) -> Source | None:
    server, model, dp_rank = owner
    query = TraceQuery(server=server, model=model, dp_rank=dp_rank, name=request_id, limit=MAX_FOUND)
    for item in store.traced_requests(query):
        if item.request_id == request_id:
            return _source(store, item, layers)
    return None


def _source(store: Store, item: TracedRequest, layers: Collection[int] | None) -> Source:
    workers = store.traces(item.number, None)
    wanted = workers if layers is None else store.traces(item.number, layers)
    return Source(item, workers, wanted)
