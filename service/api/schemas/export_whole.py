"""The requests of an export, each joined from the traces of all who computed it."""

from __future__ import annotations

from typing import Final

from moescope.service.api.problems import ProblemError
from moescope.service.api.schemas.joined_reading import Asked, look_for
from moescope.service.api.schemas.request_routing import told_of
from moescope.service.api.schemas.trace_shapes import Depths, Wish
from moescope.service.store.interface import Store
from moescope.service.store.records import DamagedError, TracedRequest, TraceQuery
from moescope.service.traces.belonging import SeveralSamplesError
from moescope.service.traces.export import Reading, UnreadableError
from moescope.service.traces.joining import Joined
from moescope.service.traces.names import RequestName
from moescope.service.traces.routing import MAX_POSITIONS
from moescope.service.traces.weights import Computed

WHOLE_BYTES: Final = 48 << 20
"""The most that reading a joined request may take beside its tokens; an export leaves out one that takes
more. Traces of 58 layers of top-8 take about 20 MiB: three segments of the store, and a comparison."""
MAX_TOLD: Final = 1 << 20
"""Most bytes of JSON that say where a request's rows come from."""
_ALONE: Final = "ask for it alone, with GET /v1/requests/{id}/routing"


class WholeReader:
    """Reads one whole request after the other, in the wanted form.

    Args:
        store: where they are.
        wish: the form.
        depths: what is known of the models' layers.
        layers: the wanted layers; None: all.
    """

    def __init__(self, store: Store, wish: Wish, depths: Depths, layers: list[int] | None) -> None:
        self._store, self._wish, self._depths, self._layers = store, wish, depths, layers

    def reading(self, found: TracedRequest) -> Reading | None:
        """The routing of the request whose main trace this one is; None: another one is its main trace.

        Raises:
            UnreadableError: it can't be given; the message says why.
        """
        name = RequestName.of(found.request_id)
        outer = name.outer if name.outer in found.names else found.request_id
        asked = Asked(outer, TraceQuery(model=found.model), name.sample, self._layers, wish=self._wish)
        try:
            looked = look_for(asked, self._store, self._depths)
            if looked is None:
                raise UnreadableError("it was removed just now")
            if all(part.request.number != found.number for part in looked.found.parts):
                raise UnreadableError(f"a newer request of the same id is joined: {_ALONE}, by server")
            if looked.extent.reading > WHOLE_BYTES:
                raise UnreadableError(f"reading it takes too much memory for an export: {_ALONE}")
            joined, routing = looked.read(MAX_POSITIONS)
        except DamagedError as error:
            raise UnreadableError(str(error)) from error
        except ProblemError as error:
            only_prompt = found.tokens + found.cached_tokens <= found.prompt_tokens
            if only_prompt and isinstance(error.__cause__, SeveralSamplesError):
                return None  # a prefill instance's, which goes with each sample
            raise UnreadableError(error.detail) from error
        if joined.main.number != found.number:
            _of_another(joined, found)
            return None
        told = told_of(joined)
        if len(told) > MAX_TOLD:
            raise UnreadableError(f"it is joined from too many runs for an export: {_ALONE}")
        return Reading(found, routing, versions_of(joined), told)


def _of_another(joined: Joined, found: TracedRequest) -> None:
    """A trace that isn't the main one of its request may be left away, if all it has is in the answer.

    Raises:
        UnreadableError: it isn't.
    """
    for part in joined.parts:
        if part.request.number == found.number and part.unused in ("nothing_shared", "unreadable"):
            raise UnreadableError(
                f"it is not the main trace of its request, which is {joined.main.request_id}, and is not "
                f"joined with it ({part.unused}): {_ALONE}, by vLLM's internal id"
            )


def versions_of(joined: Joined) -> list[Computed]:
    """Which version of the weights computed each position, as the workers of its trace count."""
    found = [
        Computed(item.version, max(first, item.first), min(end, item.end))
        for part in joined.parts
        for first, end in part.positions.tolist()
        for item in part.weights
    ]
    return [item for item in found if item.first < item.end]
