"""The requests of an export, read one after the other in the form that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from moescope.service.api.problems import ProblemError
from moescope.service.api.schemas.export_tables import TableShape
from moescope.service.api.schemas.trace_shapes import Depths, Form, Wish, in_form, refuse_parts
from moescope.service.store.interface import Store
from moescope.service.store.records import StoreError, TracedRequest
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.export import Chosen, Reading, UnreadableError, layers_of
from moescope.service.traces.extent import Extent
from moescope.service.traces.forms import Shaped
from moescope.service.traces.routing import Routing, TooManyPositionsError, put_together

READING_BYTES: Final = 16 << 20
"""The most that reading a request may take beside its tokens; an export leaves out one that takes more."""
AHEAD_BYTES: Final = 8 << 20
"""What is held of the requests that come next, without ids: 32 of them, 4 KiB for each of 64 workers."""


class ExportReader:
    """Reads the routing of one request after the other, in the wanted form.

    Args:
        store: where they are.
        wish: the form.
        depths: what is known of the models' layers.
        layers: the wanted layers; None: all.
    """

    def __init__(self, store: Store, wish: Wish, depths: Depths, layers: list[int] | None) -> None:
        self._store, self._wish, self._depths, self._layers = store, wish, depths, layers
        # With form=vllm all layers tell what is known of the model.
        self._ahead_of = None if wish.form is Form.VLLM else layers
        self._ahead: dict[int, list[WorkerTrace]] = {}

    def expect(self, requests: Sequence[TracedRequest]) -> None:
        """Read what there is of the requests that come next, but for their ids, in few questions.

        If one of them can't be read at all, each is read alone.
        """
        self._ahead = {}
        with suppress(StoreError):
            self._ahead |= self._store.traces_of([each.number for each in requests], self._ahead_of)

    def reading(self, found: TracedRequest) -> Reading:
        """The routing of a request, of which nothing has been read yet.

        Raises:
            UnreadableError: it can't be given; the message says why.
        """
        try:
            if self._wish.form is Form.VLLM:
                routing: Shaped = self._as_vllm(found)
            else:
                routing = put_together(self._workers(found, self._layers))
            return Reading(found, routing, routing.weights)
        except ProblemError as error:
            raise UnreadableError(error.detail) from error
        except TooManyPositionsError as error:
            raise UnreadableError(str(error)) from error

    def shape(self, chosen: Chosen, packed: bool, joined: bool = False) -> TableShape:
        """What all rows of a table of these requests have in common.

        Raises:
            ProblemError: they are of several models, or vLLM's shape of the model isn't known (409).
        """
        if len(chosen.models) > 1:
            listed = ", ".join(f"model={name}" for name in sorted(chosen.models)[:10])
            raise ProblemError(
                409,
                "several-models",
                "Requests of several models",
                f"A table has the layers of one model: choose one by {listed}, or take format=ndjson.",
            )
        known = layers_of(self._store, chosen.numbers)
        wanted = self._layers
        if self._wish.form is Form.VLLM and known:
            [(model, servers)] = chosen.models.items()
            shape = self._depths.shape_of((min(servers), model), known, self._wish, model, wanted)
            return TableShape(shape.layers(wanted, known), shape.dtype, packed, joined)
        layers = tuple(layer for layer in known if wanted is None or layer.layer in wanted)
        return TableShape(layers, Routing.dtype, packed, joined)

    def _as_vllm(self, found: TracedRequest) -> Shaped:
        workers = self._ahead.get(found.number) or self._store.traces(found.number, None)
        known = {layer for worker in workers for layer in worker.layers}
        if not known:
            raise UnreadableError(_NOTHING)
        deployment = found.server, found.model
        shape = self._depths.shape_of(deployment, known, self._wish, found.request_id, self._layers)
        refuse_parts(found, self._wish, self._depths.tell_all(deployment, known, self._layers))
        traced = {layer.layer for layer in known}
        read = None if self._layers is None else sorted(traced & {*self._layers}) or [min(traced)]
        routing = put_together(self._workers(found, read))
        return in_form(routing, self._wish, shape, self._layers, found.request_id)

    def _workers(self, found: TracedRequest, layers: list[int] | None) -> list[WorkerTrace]:
        ahead = self._ahead.pop(found.number, None)
        if ahead is None or layers != self._ahead_of:
            ahead = self._store.traces(found.number, layers)
        workers = [each for each in ahead if each.layers]
        if not workers:
            raise UnreadableError(_NOTHING)
        if Extent.of(workers).reading > READING_BYTES:
            raise UnreadableError(
                "reading it takes too much memory for an export: ask for it alone, by its id"
            )
        return workers


_NOTHING: Final = "it has none of the layers that are asked for, or was removed"
