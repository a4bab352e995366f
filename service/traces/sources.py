"""Traces that an answer may be joined from, and which positions each of them computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, reduce

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.records import TracedRequest
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.spans import common, nothing, of_runs, together


class Source:
    """A stored trace.

    Args:
        request: whose it is.
        workers: what each worker traced of it, in all layers; the runs are read when they are asked for.
        wanted: the same in the layers that the answer has.
    """

    def __init__(
        self, request: TracedRequest, workers: Sequence[WorkerTrace], wanted: Sequence[WorkerTrace]
    ) -> None:
        self.request = request
        self.workers = tuple(workers)
        self.wanted = tuple(worker for worker in wanted if worker.layers)

    @cached_property
    def computed_in(self) -> Mapping[int, Int64Array]:
        """Layer to the positions that were computed in it, as spans; layers of the same workers share them.

        Raises:
            StoreError: it can't be read.
        """
        workers_of: dict[int, tuple[int, ...]] = {}
        for at, worker in enumerate(self.workers):
            for layer in worker.layers:
                workers_of[layer.layer] = (*workers_of.get(layer.layer, ()), at)
        spans = [of_runs(worker.runs) for worker in self.workers]
        joined = {several: together(*(spans[at] for at in several)) for several in set(workers_of.values())}
        return {layer: joined[several] for layer, several in workers_of.items()}

    @cached_property
    def anywhere(self) -> Int64Array:
        """The positions that were computed in some layer."""
        return together(*_different(self.computed_in.values()))

    def whole(self, layers: Collection[int]) -> Int64Array:
        """The positions that were computed in all of these layers."""
        if not layers or not set(layers) <= set(self.computed_in):
            return nothing()
        return reduce(common, _different(self.computed_in[layer] for layer in layers))


def _different(several: Iterable[Int64Array]) -> list[Int64Array]:
    """Each array once: many layers have the same one."""
    return list({id(spans): spans for spans in several}.values())


def shapes_of(sources: Iterable[Source]) -> dict[int, MoeLayer]:
    """The layers of all of them; where they contradict each other the first is believed."""
    known: dict[int, MoeLayer] = {}
    for source in sources:
        for worker in source.workers:
            for layer in worker.layers:
                known.setdefault(layer.layer, layer)
    return known


def contradicts(source: Source, known: Mapping[int, MoeLayer]) -> bool:
    """Whether a layer has another number of experts, or another top-k, than the same layer that is known."""
    return any(known.get(layer.layer, layer) != layer for worker in source.workers for layer in worker.layers)
