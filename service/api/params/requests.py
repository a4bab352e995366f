"""Which traced requests are compared, and the one they are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Query

from moescope.service.api.params.query import (
    LARGEST,
    Bounds,
    DpRankParam,
    EndParam,
    StartParam,
    parse_bounds,
)
from moescope.service.api.params.traced import TracedPoolParam
from moescope.service.api.problems import ProblemError
from moescope.service.store.interface import Store
from moescope.service.store.records import TracedRequest, TraceQuery
from moescope.service.store.slots import MAX_COMPARED, ListedRequest

_NAMED: Final = 10
"""Requests that an answer names where several have an id."""

RequestLimitParam = Annotated[int, Query(ge=1, le=1000, description="Most requests in the answer.")]
LikeParam = Annotated[
    str,
    Query(description="Any id of the request to compare with: the completion's, X-Request-Id, vLLM's own."),
]
LikeServerParam = Annotated[
    str | None, Query(description="Its vLLM deployment; needed when several have a request of this id.")
]
LikeModelParam = Annotated[
    str | None, Query(description="Its model; needed when several have a request of this id.")
]


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Which requests; None is any."""

    server: Annotated[str | None, Query(description="Only requests of this vLLM deployment.")] = None
    model: Annotated[str | None, Query(description="Model; needed when requests of several match.")] = None
    pool: TracedPoolParam = None
    dp_rank: DpRankParam = None
    start: StartParam = None
    end: EndParam = None
    min_tokens: Annotated[
        int, Query(ge=1, le=LARGEST, description="Only requests with so many tokens computed.")
    ] = 1
    lora: Annotated[str | None, Query(description="Only requests of this LoRA adapter.")] = None
    base: Annotated[bool, Query(description="Only requests of no LoRA adapter that is known.")] = False
    weights_version: Annotated[
        int | None,
        Query(ge=0, le=LARGEST, description="Only requests of which these weights computed a token."),
    ] = None

    def query(self, now: float) -> TraceQuery:
        """The listing of these requests, with one more than are compared.

        Raises:
            ProblemError: ``start`` or ``end`` is wrong, or both ``lora`` and ``base`` are given (400).
        """
        if self.base and self.lora is not None:
            raise ProblemError(
                400, "lora-and-base", "Both of an adapter and of none", "Give lora or base, not both."
            )
        bounds = self.bounds(now)
        return TraceQuery(
            server=self.server,
            model=self.model,
            pool=self.pool,
            dp_rank=self.dp_rank,
            start=bounds.start,
            end=bounds.end,
            min_tokens=self.min_tokens,
            weights_version=self.weights_version,
            lora="" if self.base else self.lora,
            limit=MAX_COMPARED + 1,
        )

    def bounds(self, now: float) -> Bounds:
        """The window of time.

        Raises:
            ProblemError: ``start`` or ``end`` is wrong (400).
        """
        return parse_bounds(self.start, self.end, now)

    @property
    def of_all(self) -> bool:
        """Whether all requests of the deployments are meant that were stored in the window."""
        some = (self.pool, self.dp_rank, self.weights_version, self.lora)
        return self.min_tokens == 1 and not self.base and all(value is None for value in some)


RequestFilterParam = Annotated[RequestFilter, Depends()]


def only_model(listed: Sequence[ListedRequest]) -> str | None:
    """The one model of the requests; None where there are none.

    Raises:
        ProblemError: they are of several (400).
    """
    models = sorted({item.model for item in listed})
    if len(models) > 1:
        raise ProblemError(
            400,
            "several-models",
            "Requests of several models match",
            f"Choose one by model: {', '.join(models[:_NAMED])}.",
        )
    return models[0] if models else None


def newest_of_each_id(found: Iterable[TracedRequest]) -> list[TracedRequest]:
    """Without those whose internal id came again in the same deployment; newest first, as given."""
    newest: dict[tuple[str, str, int, str], TracedRequest] = {}
    for item in found:
        newest.setdefault((item.server, item.model, item.dp_rank, item.request_id), item)
    return list(newest.values())


def request_named(store: Store, name: str, server: str | None, model: str | None) -> TracedRequest:
    """The one traced request that has an id.

    Raises:
        ProblemError: none has (404), or several (409).
    """
    query = TraceQuery(name=name, server=server, model=model, limit=_NAMED + 1)
    found = newest_of_each_id(store.traced_requests(query))
    if not found:
        raise ProblemError(
            404,
            "no-such-trace",
            "No such trace",
            f"There is none of {name!r}: it wasn't sampled (MOESCOPE_TRACE_RATE), still runs, or was "
            "removed by its time to live. GET /v1/traces lists what there is.",
        )
    if len(found) > 1:
        models = len({item.model for item in found}) > 1
        shown = ", ".join(
            f"like={item.request_id} like_server={item.server}"
            + (f" like_model={item.model}" if models else "")
            for item in found[:_NAMED]
        )
        more = ", and more" if len(found) > _NAMED else ""
        raise ProblemError(
            409, "several-traces", "Several requests have this id", f"Choose one of {shown}{more}."
        )
    return found[0]
