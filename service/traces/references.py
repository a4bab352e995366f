"""Who computed the positions of a request that a KV cache had, as its worker tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.store.records import TracedRequest
from moescope.service.traces.spans import common, together


@dataclass(frozen=True, slots=True)
class TakenOverBy:
    """What a request took over, within some positions.

    Attributes:
        computed_by: vLLM's internal id of another request to the positions, as spans.
        unknown: why it isn't known who computed them, to the positions.
    """

    computed_by: Mapping[str, Int64Array]
    unknown: Mapping[str, Int64Array]

    @classmethod
    def of(cls, request: TracedRequest, wanted: Int64Array) -> TakenOverBy:
        """That of a request within the positions ``wanted``."""
        computed_by: dict[str, list[tuple[int, int]]] = {}
        unknown: dict[str, list[tuple[int, int]]] = {}
        for entry in request.taken_over:
            group = computed_by if entry.request_id else unknown
            key = entry.request_id or entry.why
            group.setdefault(key, []).append((entry.first, entry.first + entry.count))
        return cls(_within(computed_by, wanted), _within(unknown, wanted))


def _within(several: Mapping[str, list[tuple[int, int]]], wanted: Int64Array) -> dict[str, Int64Array]:
    found = {key: common(together(np.array(spans, np.int64)), wanted) for key, spans in several.items()}
    return {key: spans for key, spans in found.items() if len(spans)}
